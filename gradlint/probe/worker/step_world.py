"""The world of one path: answers guards, calls ghosts, hands out stand-ins."""

from __future__ import annotations

import ast
import re
import sys
from types import FrameType
from typing import Any, Dict, List, Mapping, Optional, Set, Tuple

import step_calls
import torch
from ghost import Ghost, GhostTensor, unknown_size
from ghost_math import gradients_in, weights_of
from ghost_modules import base_for
from ghost_world import MISSING, World
from step_flow import Flow, Place
from step_record import Recorder
from step_roles import MODEL, OPTIMIZER, OPTIMIZER_NAME, SCALER, Roles
from step_same import ACCUMULATED
from step_standins import StandInModel, StandIns

_FALSE_NAMES = re.compile(r"isnan|isinf|overflow|found_inf|early_stop|should_stop|\.done$", re.IGNORECASE)
_TRUE_NAMES = re.compile(r"isfinite")
_OFF_NAMES = re.compile(
    r"resume|eval_only|evaluate|debug|dry_run|sanity|profil|quantiz|test_only|distributed", re.IGNORECASE
)
_TELLING = re.compile(r"clip|norm|grad|thresh|lr$|accum|scale", re.IGNORECASE)
"""Unknown numbers worth listing among the assumptions."""
_COUNT_NAMES = re.compile(
    r"accum|update_(freq|every|interval)|grad_acc|(n|num)_micro|micro_?batches|iter_size|virtual_batch", re.IGNORECASE
)
"""Unknown numbers that count the micro-batches of a step."""
_NO_LAYER = re.compile(
    r"loss|criterion|metric|accuracy|meter|token|logg|writer|config|cfg|arg|param|sched|data|loader|sampler|transform"
    r"|drop|activ|act$|relu|gelu|optim|partial|path|space|pool|scal|env|buffer|memory|dist|timer|fn$|func",
    re.IGNORECASE,
)
"""Names of what a module may hold that is no layer with parameters."""


MAX_WAITS = 12
"""Times that a guard that asks a counter is answered as it comes, before it is led to the calls of interest."""


def is_count(ghost: Ghost) -> bool:
    """Whether an unknown is, by its name, the length of an accumulation window."""
    return bool(_COUNT_NAMES.search(ghost.gl_name.rsplit(".", 1)[-1]))


class RunWorld(World):
    """One path through the program: which guards were asked, and what was answered."""

    def __init__(
        self,
        recorder: Recorder,
        roles: Roles,
        flow: Flow,
        values: Mapping[str, str],
        assigned: Mapping[str, bool],
        assumed: Dict[str, Any],
    ) -> None:
        super().__init__()
        self.recorder = recorder
        self.roles = roles
        self.flow = flow
        self.assumed = assumed
        self.standins = StandIns(roles, assumed, self.gate, recorder.grads.know_as)
        self.answers: Dict[str, bool] = {}
        self.flippable: Dict[str, bool] = {}
        """Relevant guards in the order in which they were first asked, with their answer."""
        self.guards: Dict[str, bool] = {}
        self._assigned = dict(assigned)
        self._values = {name[5:] if name.startswith("self.") else name: _literal(v) for name, v in values.items()}
        self._hidden: Dict[int, Any] = {}
        self._early = -1
        self._counted: Set[str] = set()
        self._waited: Dict[Place, int] = {}
        self.forced: Optional[Set[Place]] = None
        """Set where known guards, too, are answered towards the calls of interest; but not those in it."""
        self.passed: Set[Place] = set()
        """Known guards that led towards the calls of interest by themselves, now and then."""
        self.captured: Any = None
        """The nested function that is the region, once its ``def`` ran."""

    # guards

    def truth(self, ghost: Ghost, frame: FrameType) -> bool:
        """The answer for a guard: the same for the same expression all along a path."""
        module = self.recorder.files.get(frame.f_code.co_filename)
        if module is None:
            return _library_answer(ghost)
        if _FALSE_NAMES.search(ghost.gl_name) or _TRUE_NAMES.search(ghost.gl_name):
            return bool(_TRUE_NAMES.search(ghost.gl_name)) ^ ghost.gl_negated
        key, place = ghost.gl_key, (module, frame.f_lineno)
        if key not in self.answers:
            self.answers[key] = self._first_answer(ghost, place)
        answer = self.answers[key] ^ ghost.gl_negated
        if place in self.flow.relevant:
            self.flippable.setdefault(key, self.answers[key])
            line = str(place[1]) if module == self.recorder.entry else f"{module}:{place[1]}"
            self.guards.setdefault(line, answer)
        return answer

    def layer(self, ghost: Ghost, name: str, surely: bool) -> Any:
        """A module, where what made the unknown is a class or what it is stored as is called."""
        found = ghost.gl_cell.get("is")
        if isinstance(found, torch.nn.Module):
            return found
        maker = str(ghost.gl_cell.get("made", ghost.gl_name)).partition("(")[0].rsplit(".", 1)[-1]
        called = maker[:1].isupper() or f"self.{name}" in self.roles.called
        if isinstance(ghost, GhostTensor) or not (surely or ("made" in ghost.gl_cell and called)):
            return ghost
        if not surely and (_NO_LAYER.search(maker) or _NO_LAYER.search(name)):
            return ghost
        ghost.gl_cell["is"] = self.standins.layer(name)
        return ghost.gl_cell["is"]

    def slimmed(self, model: StandInModel) -> None:
        """A class of the program made a stand-in, since its own model is too slow."""
        self.standins.made.append(model)
        self.recorder.grads.know_as(f"class {len(self.standins.made)}", weights_of(model))
        self.assumed[model.gl_name] = "stand-in model"

    def asked(self, value: Any) -> bool:
        """The truth of a value that a framework asks for: a guard on the line of the user's call."""
        if not isinstance(value, Ghost):
            return bool(value)
        frame: Optional[FrameType] = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename not in self.recorder.files:
            frame = frame.f_back
        return True if frame is None else self.truth(value, frame)

    def steered(self, answer: bool, frame: FrameType) -> bool:
        """A known guard, answered towards the calls of interest where the program's state is not its real one.

        ``if len(memory) < BATCH_SIZE: return`` is true of a memory that nothing was pushed to.
        """
        module = self.recorder.files.get(frame.f_code.co_filename)
        place = (module or "", frame.f_lineno)
        wanted = self.flow.direction.get(place)
        if wanted is None:
            return answer
        if wanted is answer:
            self.passed.add(place)
        if wanted is answer or self.forced is None or place in self.forced:
            return answer
        self._waited[place] = self._waited.get(place, 0) + 1
        if place in self.flow.counting and self._waited[place] <= MAX_WAITS:
            return answer
        line = str(frame.f_lineno) if module == self.recorder.entry else f"{module}:{frame.f_lineno}"
        self.guards.setdefault(line, wanted)
        return wanted

    def _first_answer(self, ghost: Ghost, place: Tuple[str, int]) -> bool:
        if ghost.gl_key in self._assigned:
            return self._assigned[ghost.gl_key]
        wanted = self.flow.wanted(place)
        if wanted is not None:
            return wanted ^ ghost.gl_negated
        if ghost.gl_hint is not MISSING and (ghost.gl_hint or self.forced is None):
            return bool(ghost.gl_hint)
        return not _OFF_NAMES.search(ghost.gl_key)

    def modulus(self, ghost: Ghost) -> int:
        """An unknown accumulation count: 1, and 2 on the path that flips it; 4 where all batches are alike."""
        module, line, _ = self.recorder.where()
        self._counted.add(ghost.gl_key)
        return self._count(ghost, (module, line) in self.flow.relevant)

    def count(self, ghost: Ghost) -> Optional[int]:
        """See :meth:`modulus`."""
        return self.modulus(ghost) if is_count(ghost) or ghost.gl_key in self._counted else None

    def window(self, ghost: Ghost) -> int:
        """The same where a framework does the counting."""
        return self._count(ghost, True)

    def _count(self, ghost: Ghost, matters: bool) -> int:
        if self.recorder.same is not None:
            self.assumed.setdefault(ghost.gl_name, ACCUMULATED)
            return ACCUMULATED
        key = f"% {ghost.gl_key}"
        single = self._assigned.get(key, True)
        if matters:
            self.flippable.setdefault(key, single)
        self.assumed.setdefault(ghost.gl_name, 1)
        return 1 if single else 2

    def prepared(self, ghost: Ghost) -> Any:
        """The stand-in for an unknown that has a role."""
        return ghost if self.role(ghost) is None and "is" not in ghost.gl_cell else self.behind(ghost)

    def number(self, ghost: Ghost) -> float:
        """Its default, or 1; an assumption that matters is listed."""
        if isinstance(ghost.gl_hint, (int, float)) and not isinstance(ghost.gl_hint, bool):
            return float(ghost.gl_hint)
        if is_count(ghost):
            return float(self.modulus(ghost))
        if _TELLING.search(ghost.gl_name):
            self.assumed.setdefault(ghost.gl_name, 1)
        return float(unknown_size(ghost))

    def limit(self, value: Any, default: float) -> float:
        """A number a recorded function was given; an unknown one is ``default``."""
        if isinstance(value, Ghost):
            self.assumed[value.gl_name] = default
            return default
        return float(value)

    def value_of(self, name: str) -> Any:
        """What the project says about an expression, with or without a leading ``self.``."""
        plain = name[5:] if name.startswith("self.") else name
        value = self._values.get(plain, MISSING)
        if value is None or (value is not MISSING and not value and not isinstance(value, Ghost)):
            return Ghost(name, hint=value)  # an option that is off by default can be turned on
        return value

    def progress(self) -> int:
        """Events so far."""
        return self.recorder.progress

    def bases(self, name: str) -> Tuple[type, ...]:
        """See :func:`ghost_modules.base_for`."""
        return base_for(name)

    def site(self) -> str:
        """The instructions at which the program's own functions are, innermost first."""
        found: List[str] = []
        frame: Optional[FrameType] = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_filename in self.recorder.files:
                found.append(f"{frame.f_code.co_name}:{frame.f_lasti}")
            frame = frame.f_back
        return " ".join(found)

    # ghosts that turn out to be something

    def path(self, ghost: Ghost) -> str:
        """A ghost's name as a path: items are kept apart."""
        return ghost.gl_name

    def role(self, ghost: Ghost) -> Optional[str]:
        """The role of a ghost by its name."""
        return self.roles.of(ghost.gl_name)

    def is_model(self, ghost: Ghost) -> bool:
        """Whether this ghost is, or was used as, a model."""
        if "is" in ghost.gl_cell:
            return isinstance(ghost.gl_cell["is"], torch.nn.Module)
        return self.role(ghost) == MODEL or ghost.gl_name in self.standins.bound

    def behind(self, ghost: Ghost, path: Optional[str] = None) -> Any:
        """What an unknown stands for: one and the same under all the names it is given."""
        path = path or ghost.gl_name
        if "is" in ghost.gl_cell:
            found = ghost.gl_cell["is"]
            if _fits(found, self.roles.of(path)):
                self.standins.bound[path] = found
                return found
        weights = ghost.gl_cell.get("weights")
        if weights and path not in self.standins.bound and self.roles.of(path) == OPTIMIZER:
            self.standins.bound[path] = self.standins.optimizer(path, weights)
        value = self.standins.value(path)
        ghost.gl_cell.setdefault("is", value)
        return value

    def call(self, ghost: Ghost, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
        """See :mod:`step_calls`."""
        return step_calls.call(self, ghost, args, kwargs)

    def module_behind(self, method: Ghost) -> Optional[torch.nn.Module]:
        """The model whose method ``method`` is."""
        if isinstance(method.gl_extra, torch.nn.Module):
            return _module(method.gl_extra)
        owner = method.gl_owner
        if owner is None or (isinstance(owner, GhostTensor) and owner.gl_module is None):
            return None
        if isinstance(owner, GhostTensor):
            return _module(owner.gl_module)
        if isinstance(owner.gl_extra, torch.nn.Module) and owner.gl_name.count(".") > 0:
            return self._submodule(owner)
        return _module(self.behind(owner))

    def _submodule(self, owner: Ghost) -> Optional[torch.nn.Module]:
        """``model.encoder`` of a stand-in model: registered in it from now on."""
        parent, name = owner.gl_extra, owner.gl_name.rsplit(".", 1)[-1]
        if name not in parent._modules and hasattr(parent, "gl_name"):
            parent._modules[name] = self.standins.model(owner.gl_name)
        return _module(parent._modules.get(name)) or _module(parent)

    def optimizer_behind(self, method: Ghost) -> Optional[torch.optim.Optimizer]:
        """The optimizer whose ``step`` or ``zero_grad`` this is, if the owner is one by role or name."""
        owner = method.gl_owner
        if isinstance(method.gl_extra, torch.optim.Optimizer):
            return method.gl_extra
        if isinstance(method.gl_extra, torch.nn.Module):
            return self._engine_optimizer(method.gl_extra) if method.gl_name.endswith(".step") else None
        if owner is None or isinstance(owner, GhostTensor):
            return None
        role = self.role(owner)
        last = owner.gl_name.rsplit(".", 1)[-1]
        if role == OPTIMIZER or (role is None and OPTIMIZER_NAME.search(last)):
            self.roles.by_path.setdefault(re.sub(r"\[[^\]]*\]", "[]", owner.gl_name), OPTIMIZER)
            value = self.behind(owner)
            return value if isinstance(value, torch.optim.Optimizer) else None
        return None

    def _engine_optimizer(self, module: torch.nn.Module) -> torch.optim.Optimizer:
        if id(module) not in self._hidden:
            self._hidden[id(module)] = self.standins.optimizer("engine", weights_of(module))
        optimizer: torch.optim.Optimizer = self._hidden[id(module)]
        return optimizer

    def scaler_behind(self, method: Ghost) -> Optional[torch.amp.GradScaler]:
        """The scaler whose method this is, if the owner is one by role or name."""
        owner = method.gl_owner
        if owner is None or not (self.role(owner) == SCALER or "scaler" in owner.gl_name.lower()):
            return None
        self.roles.by_path.setdefault(re.sub(r"\[[^\]]*\]", "[]", owner.gl_name), SCALER)
        value = self.behind(owner)
        return value if isinstance(value, torch.amp.GradScaler) else None

    def unknown_parameters(self) -> List[torch.Tensor]:
        """What an unknown collection of parameters stands for: all there are."""
        return self.known_parameters() or list(self.standins.model("model").parameters())

    def known_parameters(self) -> List[torch.Tensor]:
        """All parameters met so far."""
        return self.recorder.grads.known or [p for m in self.standins.models().values() for p in weights_of(m)]

    def run_backward(self, loss: Any, divisor: int = 1, scaler: Optional[torch.amp.GradScaler] = None) -> None:
        """A recorded backward of whatever carries the gradient; of a stand-in loss where nothing does."""
        parts = gradients_in(loss) if loss is not None else []
        if isinstance(loss, torch.Tensor) and not parts:
            parts = [self.stand_in_loss()]
        elif not isinstance(loss, torch.Tensor):
            grads = self.recorder.grads
            ids = grads.trained or {id(p) for p in grads.known}
            if not any(_reaches(part, ids) for part in parts):
                parts.append(self.stand_in_loss(loss.gl_name if isinstance(loss, Ghost) else ""))
        with torch.enable_grad():
            total = parts[0]
            for part in parts[1:]:
                total = total + part
            total = total / divisor if divisor != 1 else total
            if scaler is not None:
                total = scaler.scale(total)
        total.backward(retain_graph=True)  # type: ignore[no-untyped-call]

    @property
    def late(self) -> bool:
        """Whether a stand-in was made after the first backward, which could not reach it."""
        return 0 <= self._early < len(self.standins.order)

    def first_backward(self) -> None:
        """A backward begins."""
        if self._early < 0:
            self._early = len(self.standins.order)

    def stand_in_loss(self, name: str = "") -> torch.Tensor:
        """The expression that yields the loss is all a stand-in may replace: it reaches what is trained."""
        self.assumed.setdefault("loss", "stand-in loss")
        with torch.enable_grad():
            return self.standins.loss(name)

    def backward(self, tensor: torch.Tensor) -> None:
        """``loss.backward()`` of a ghost."""
        self.run_backward(GhostTensor("", tensor))


def _fits(value: Any, role: Optional[str]) -> bool:
    """Whether a stand-in can be what a role asks for."""
    kinds: Dict[str, Any] = {MODEL: torch.nn.Module, OPTIMIZER: torch.optim.Optimizer, SCALER: torch.amp.GradScaler}
    return role is None or role not in kinds or isinstance(value, kinds[role])


def _module(value: Any) -> Optional[torch.nn.Module]:
    return value if isinstance(value, torch.nn.Module) else None


def _reaches(tensor: torch.Tensor, ids: Set[int]) -> bool:
    """Whether the graph of ``tensor`` ends in one of the parameters ``ids``."""
    todo: List[Any] = [tensor.grad_fn] if tensor.grad_fn is not None else []
    if id(tensor) in ids:
        return True
    seen: Set[Any] = set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if id(getattr(node, "variable", None)) in ids:
            return True
        todo.extend(parent for parent, _ in node.next_functions)
    return False


def _library_answer(ghost: Ghost) -> bool:
    """PyTorch's own checks of its arguments (``if lr < 0: raise``) pass."""
    name = ghost.gl_name
    return not re.search(r" (<|<=|>|>=|!=) ", name)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return Ghost(text)
