"""Stand-ins by role: a model, an optimizer, a gradient scaler where the slice does not make its own."""

from __future__ import annotations

import zlib
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import torch
from ghost import Ghost, short
from ghost_math import combine, scalar_of, weights_of
from ghost_world import Gate
from step_accelerate import Accelerator
from step_fabric import Fabric
from step_roles import ACCELERATOR, FABRIC, MANY, MODEL, OPTIMIZER, SCALER, OptimizerCall, Roles, goes_with, tag
from step_wrapped import WrappedOptimizer

WIDTH = 4
DEFAULT_LR = 1e-3


class StandInModel(torch.nn.Module):
    """A small model that takes any arguments; its output depends, linearly, on all its parameters and inputs."""

    def __init__(self, name: str, children: Sequence[str] = ()) -> None:
        super().__init__()
        self.gl_name = name
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(name.encode()))
            self.first = torch.nn.Linear(WIDTH, WIDTH)
            self.second = torch.nn.Linear(WIDTH, 2)
        for child in children:
            if not hasattr(type(self), child):
                # not add_module: it refuses names that __getattr__ answers
                self._modules.setdefault(child, StandInModel(f"{name}.{child}"))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """A ghost tensor; a plain ghost where gradients are off."""
        return combine(self.gl_name, (self, *args), kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_"):
                raise
        if name in ("module", "_orig_mod"):
            return self
        if name == "device":
            return torch.device("cpu")
        ghost = Ghost(f"{self.gl_name}.{name}")
        object.__setattr__(ghost, "gl_extra", self)
        return ghost

    def __getitem__(self, index: Any) -> StandInModel:
        if not isinstance(index, str):
            return self
        if index not in self._modules:
            self._modules[index] = StandInModel(f"{self.gl_name}[{index!r}]")
        part: Any = self._modules[index]
        return self if part is None else part

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Any]:
        return iter([self])

    def to(self, *args: Any, **kwargs: Any) -> StandInModel:
        """It stays where it is, in single precision."""
        return self

    cuda = half = bfloat16 = double = float = cpu = to

    @property
    def module(self) -> StandInModel:
        """What it is wrapped in is stood in for by the model itself."""
        return self

    def clip_grad_norm_(self, max_norm: Any, norm_type: Any = 2.0, **kwargs: Any) -> Any:
        """What FSDP models have."""
        return torch.nn.utils.clip_grad_norm_(self.parameters(), max_norm, norm_type)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Nothing is loaded."""
        return Ghost("load_state_dict()")


class Many:
    """A collection of models or optimizers: list and dict at once, its elements made when asked for."""

    def __init__(self, name: str, make: Callable[[str], Any]) -> None:
        self.gl_name = name
        self._make = make
        self._elements: Dict[str, Any] = {}

    def __getitem__(self, key: Any) -> Any:
        return self.at(f"[{short(key)}]")

    def at(self, place: str) -> Any:
        """The element at ``[0]`` or ``['name']``."""
        if place not in self._elements:
            self._elements[place] = self._make(self.gl_name + place)
        return self._elements[place]

    def _all(self) -> Dict[str, Any]:
        return self._elements if self._elements else {"0": self[0]}

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._all().values()))

    def __len__(self) -> int:
        return len(self._all())

    def __contains__(self, key: Any) -> bool:
        return True

    def values(self) -> List[Any]:
        """As of a dict."""
        return list(self._all().values())

    def keys(self) -> List[str]:
        """As of a dict."""
        return list(self._all())

    def items(self) -> List[Any]:
        """As of a dict."""
        return list(self._all().items())

    def get(self, key: Any, default: Any = None) -> Any:
        """As of a dict that holds everything."""
        return self[key]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return Ghost(f"{self.gl_name}.{name}")


class StandIns:
    """The objects behind the paths with a role, made when first asked for; real ones are bound by the program."""

    def __init__(
        self,
        roles: Roles,
        assumed: Dict[str, Any],
        gate: Gate,
        watch: Callable[[str, Sequence[torch.Tensor]], None],
    ) -> None:
        self.roles = roles
        self.watch = watch
        """Told the parameters of every model made here."""
        self.gate = gate
        self.assumed = assumed
        self.bound: Dict[str, Any] = {}
        self.maybe_none: Dict[int, str] = {}
        """Scalers made here: a program may also run without one, so their presence is an unknown guard."""
        self.made: List[Any] = []
        self.order: List[str] = []
        """Paths of the stand-ins, models ahead of optimizers, for a run that makes them all at its beginning."""
        self._guesses: List[Tuple[str, torch.optim.Optimizer]] = []
        """Optimizers whose models were guessed: a model that turns up later may be theirs as well."""

    def bind(self, path: str, value: Any) -> None:
        """The program itself bound ``path``."""
        if isinstance(value, (torch.nn.Module, torch.optim.Optimizer, torch.amp.GradScaler)):
            self.bound[path] = value

    def premake(self, paths: Sequence[str]) -> None:
        """Make the stand-ins of an earlier run: then a loss reaches what is only stepped with after it."""
        for path in paths:
            self.value(path)

    def value(self, path: str) -> Any:
        """The object for ``path``, by its role."""
        if path not in self.bound:
            role = self.roles.of(path) or MODEL
            origin = self._origin(path)
            self.bound[path] = self._make(path, role) if origin == path else self.value(origin)
            if role == OPTIMIZER:
                self.order.append(path)
        return self.bound[path]

    def _origin(self, path: str) -> str:
        """The model that ``path`` is another name of, by the text; itself where there is none."""
        seen = [path]
        while self.roles.aliases.get(seen[-1], path) not in seen:
            seen.append(self.roles.aliases[seen[-1]])
        back = self.roles.aliases.get(seen[-1])
        return min(seen[seen.index(back) :]) if back in seen else seen[-1]  # two names of each other

    def _make(self, path: str, role: str) -> Any:
        if role.startswith(MANY):
            return Many(path, lambda place: self._make(place, role[len(MANY) :]))
        if role == OPTIMIZER:
            made = self.optimizer(path)
            # whoever passes an accelerator along with an optimizer has prepared the optimizer
            gate = self.gate
            return WrappedOptimizer(made, lambda: gate.open) if self.roles.comes_prepared else made
        if role in (ACCELERATOR, FABRIC):
            self.assumed.setdefault(path, role)
            if role == FABRIC:
                return Fabric()
            return Accelerator(gradient_accumulation_steps=Ghost(f"{path}.gradient_accumulation_steps"))
        if role == SCALER:
            scaler = torch.amp.GradScaler("cpu")
            self.maybe_none[id(scaler)] = path
            self.assumed.setdefault(path, "GradScaler()")
            self.made.append(scaler)
            return scaler
        return self.model(path)

    def model(self, path: str) -> StandInModel:
        """A new stand-in model, with the submodules the program speaks of."""
        model = StandInModel(path, self.roles.children.get(path, ()))
        self.assumed.setdefault(path, "stand-in model")
        self.made.append(model)
        self.watch(path, weights_of(model))
        self.bound[path] = model
        self.order.insert(sum(self.roles.of(p) != OPTIMIZER for p in self.order), path)
        self._attach(path, model)
        for owner, optimizer in self._guesses:
            if path in self._close(owner, self.models()):
                add_weights(optimizer, weights_of(model))
        return model

    def _attach(self, path: str, model: StandInModel) -> None:
        """``model.net.head`` is a part of the stand-in ``model``."""
        prefix, _, _ = path.rpartition(".")
        while prefix:
            whole = self.bound.get(prefix)
            if isinstance(whole, StandInModel) and whole is not model:
                whole._modules.setdefault(path[len(prefix) + 1 :].replace(".", "_"), model)
                return
            prefix, _, _ = prefix.rpartition(".")

    def layer(self, name: str) -> StandInModel:
        """A part of a model of the program's own."""
        model = StandInModel(name)
        self.assumed.setdefault(name, "stand-in layer")
        self.made.append(model)
        self.watch(f"layer {len(self.made)} {name}", weights_of(model))
        return model

    def optimizer(self, path: str, given: Sequence[torch.Tensor] = ()) -> torch.optim.Optimizer:
        """An optimizer over ``given``, or the models that belong to ``path``: as the text constructs it, else SGD."""
        call = self._constructor(path)
        parameters = unique([p for p in given if p.requires_grad])
        if not parameters:
            models = self._models_for(path, call)
            parameters = unique([p for m in models for p in weights_of(m) if p.requires_grad])
        parameters = parameters or list(self.model(f"{path}.model").parameters())
        kind = getattr(torch.optim, call.name, None) if call is not None else None
        if kind is not None and call is not None:
            try:
                made: torch.optim.Optimizer = kind(parameters, **dict(call.keywords))
            except (TypeError, ValueError):
                made = torch.optim.SGD(parameters, lr=DEFAULT_LR)
        else:
            made = torch.optim.SGD(parameters, lr=DEFAULT_LR)
            self.assumed.setdefault(path, f"SGD(lr={DEFAULT_LR})")
        self.made.append(made)
        if not given and (call is None or not call.models):
            self._guesses.append((path, made))
        return made

    def _constructor(self, path: str) -> Optional[OptimizerCall]:
        last = path.rsplit(".", 1)[-1]
        same = [c for c in self.roles.optimizers if c.target == path]
        close = [c for c in self.roles.optimizers if c.target.rsplit(".", 1)[-1] == last]
        return next(iter([*same, *close]), None)

    def models(self) -> Dict[str, torch.nn.Module]:
        """All models met or made so far, each once; submodules are part of theirs."""
        found: Dict[str, torch.nn.Module] = {}
        for path, value in self.bound.items():
            if isinstance(value, torch.nn.Module) and all(value is not m for m in found.values()):
                found[path] = value
        return found

    def _expected(self, path: str) -> Dict[str, torch.nn.Module]:
        """Models that the program will bind, where it has none yet: made now, one for each name."""
        by_name: Dict[str, str] = {}
        for other, role in self.roles.by_path.items():
            if role == MODEL and "[" not in other and other not in self.bound:
                by_name.setdefault(other.rsplit(".", 1)[-1], other)
        for other in goes_with(path, list(by_name.values())):
            self.value(other)
        if not self.models():
            self.model("model")
        return self.models()

    def _partners(self, path: str) -> List[torch.nn.Module]:
        """The model ``models[k]`` that goes with the optimizer ``optimizers[k]``; of any optimizer, all there are."""
        base, bracket, key = path.partition("[")
        prefix = base.rpartition(".")[0]
        for other, role in self.roles.by_path.items() if bracket else ():
            if other.rpartition(".")[0] != prefix:
                continue
            found: List[Any] = []
            if role == MANY + MODEL:
                many = self.value(other)
                if isinstance(many, Many):
                    found = many.values() if key == "0]" else [many.at(bracket + key)]
            elif role == MODEL and other.endswith("[]"):
                found = [self.value(other[:-2] + bracket + key)]
            elif role == MODEL and "[" not in other and other + bracket + key in self.roles.called:
                whole = self.value(other)
                found = [whole[key[1:-2]]] if isinstance(whole, StandInModel) and key[:1] == "'" else []
            if found and all(isinstance(f, torch.nn.Module) for f in found):
                return found
        return []

    def _models_for(self, path: str, call: Optional[OptimizerCall]) -> List[torch.nn.Module]:
        partners = self._partners(path)
        if partners:
            return partners
        prefix = path.rpartition(".")[0]
        for other, role in list(self.roles.by_path.items()):
            base = other.rpartition(".")[0]
            if role == MODEL and base == prefix and "[" not in other and other not in self.bound:
                self.value(other)
        models = self.models() or self._expected(path)
        if call is not None and call.models:
            wanted = {m.rsplit(".", 1)[-1] for m in call.models}
            chosen = [m for p, m in models.items() if p.rsplit(".", 1)[-1] in wanted]
            # what the text says it was given exists, though nothing else speaks of it
            chosen = chosen or [m for p in call.models for m in [self.value(p)] if isinstance(m, torch.nn.Module)]
            if chosen:
                return chosen
        return [models[p] for p in self._close(path, models)]

    def _close(self, path: str, models: Iterable[str]) -> List[str]:
        """The models that an optimizer goes with: its owner, or those of its name that are no other's."""
        models = list(models)
        owner = path.rpartition(".")[0]
        if owner in models:
            return [owner]
        chosen = goes_with(path, models)
        if tag(path):
            return chosen
        others = [o for o, role in self.roles.by_path.items() if role == OPTIMIZER and o != path]
        claimed = {m for o in others for m in models if o.rpartition(".")[0] == m}
        claimed |= {m for o in others if tag(o) for m in goes_with(o, models) if tag(m) and tag(m)[:1] == tag(o)[:1]}
        return [m for m in chosen if m not in claimed] or chosen

    def loss(self, name: str = "") -> torch.Tensor:
        """A loss of which only the name is known: of what is trained, it depends on what goes with the name."""
        optimizers = {p: o for p, o in self.bound.items() if isinstance(o, torch.optim.Optimizer)}
        models = self.models()
        held = [p for path in goes_with(name, optimizers) for g in optimizers[path].param_groups for p in g["params"]]
        owned = [p for path in goes_with(name, models) for p in weights_of(models[path])]
        parameters = unique([p for p in held or owned if p.requires_grad])
        if not parameters:
            parameters = list(self.model("model").parameters())
        total = scalar_of(parameters[0])
        for parameter in parameters[1:]:
            total = total + scalar_of(parameter)
        return total


def add_weights(optimizer: torch.optim.Optimizer, parameters: Sequence[torch.Tensor]) -> None:
    """Have an optimizer step these, too."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    new = [p for p in parameters if id(p) not in held and p.requires_grad]
    if new:
        optimizer.add_param_group({"params": new})


def unique(parameters: Sequence[torch.Tensor]) -> List[torch.Tensor]:
    """Each tensor once, in order."""
    return list({id(p): p for p in parameters}.values())
