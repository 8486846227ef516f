"""The world of one path: answers guards, calls ghosts, hands out stand-ins, and helps the rewritten code."""

from __future__ import annotations

import ast
import re
import sys
from types import FrameType
from typing import Any, Dict, Iterator, List, Mapping, Optional, Set, Tuple

import step_calls
import torch
from ghost import (
    ASSUMED_LENGTH,
    MISSING,
    Ghost,
    GhostTensor,
    World,
    combine,
    gradients_in,
    is_instance,
)
from step_flow import Flow
from step_loops import limited, rounds
from step_record import Loop, Recorder
from step_roles import _OPTIMIZER_NAME, MODEL, OPTIMIZER, SCALER, Roles
from step_standins import StandIns

_FALSE_NAMES = re.compile(r"isnan|isinf|overflow|found_inf|early_stop|should_stop|\.done$", re.IGNORECASE)
_TRUE_NAMES = re.compile(r"isfinite")
_OFF_NAMES = re.compile(r"resume|eval_only|evaluate|debug|dry_run|sanity|profil|test_only|distributed", re.IGNORECASE)
_TELLING = re.compile(r"clip|norm|grad|thresh|lr$|accum|scale", re.IGNORECASE)
"""Unknown numbers worth listing among the assumptions."""


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
        self.recorder = recorder
        self.roles = roles
        self.flow = flow
        self.assumed = assumed
        self.standins = StandIns(roles, assumed)
        self.answers: Dict[str, bool] = {}
        self.flippable: Dict[str, bool] = {}
        """Relevant guards in the order in which they were first asked, with their answer."""
        self.guards: Dict[str, bool] = {}
        self._assigned = dict(assigned)
        self._values = {name[5:] if name.startswith("self.") else name: _literal(v) for name, v in values.items()}
        self._hidden: Dict[int, Any] = {}
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

    def _first_answer(self, ghost: Ghost, place: Tuple[str, int]) -> bool:
        if ghost.gl_key in self._assigned:
            return self._assigned[ghost.gl_key]
        wanted = self.flow.direction.get(place)
        if wanted is not None:
            return wanted ^ ghost.gl_negated
        if ghost.gl_hint is not MISSING:
            return bool(ghost.gl_hint)
        return not _OFF_NAMES.search(ghost.gl_key)

    def modulus(self, ghost: Ghost) -> int:
        """An unknown accumulation count: 1, and 2 on the path that flips it."""
        key = f"% {ghost.gl_key}"
        module, line, _ = self.recorder.where()
        single = self._assigned.get(key, True)
        if (module, line) in self.flow.relevant:
            self.flippable.setdefault(key, single)
        self.assumed.setdefault(ghost.gl_name, 1)
        return 1 if single else 2

    def number(self, ghost: Ghost) -> float:
        """1, and the assumption is listed."""
        if _TELLING.search(ghost.gl_name):
            self.assumed.setdefault(ghost.gl_name, 1)
        return 1.0

    def limit(self, value: Any, default: float) -> float:
        """A number a recorded function was given; an unknown one is ``default``."""
        if isinstance(value, Ghost):
            self.assumed[value.gl_name] = default
            return default
        return float(value)

    def value_of(self, name: str) -> Any:
        """What the project says about an expression, with or without a leading ``self.``."""
        plain = name[5:] if name.startswith("self.") else name
        return self._values.get(plain, MISSING)

    def progress(self) -> int:
        """Events so far."""
        return self.recorder.progress

    # ghosts that turn out to be something

    def path(self, ghost: Ghost) -> str:
        """A ghost's name as a path: items are kept apart."""
        return ghost.gl_name

    def role(self, ghost: Ghost) -> Optional[str]:
        """The role of a ghost by its name."""
        return self.roles.of(ghost.gl_name)

    def is_model(self, ghost: Ghost) -> bool:
        """Whether this ghost is, or was used as, a model."""
        return self.role(ghost) == MODEL or ghost.gl_name in self.standins.bound

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
        return _module(self.standins.value(owner.gl_name))

    def _submodule(self, owner: Ghost) -> Optional[torch.nn.Module]:
        """``model.encoder`` of a stand-in model: registered in it from now on."""
        parent, name = owner.gl_extra, owner.gl_name.rsplit(".", 1)[-1]
        if name not in parent._modules and hasattr(parent, "gl_name"):
            parent._modules[name] = self.standins.model(owner.gl_name)
        return _module(parent._modules.get(name)) or _module(parent)

    def optimizer_behind(self, method: Ghost) -> Optional[torch.optim.Optimizer]:
        """The optimizer whose ``step`` or ``zero_grad`` this is, if the owner is one by role or name."""
        owner = method.gl_owner
        if isinstance(method.gl_extra, torch.nn.Module):
            return self._engine_optimizer(method.gl_extra) if method.gl_name.endswith(".step") else None
        if owner is None or isinstance(owner, GhostTensor):
            return None
        role = self.role(owner)
        last = owner.gl_name.rsplit(".", 1)[-1]
        if role == OPTIMIZER or (role is None and _OPTIMIZER_NAME.search(last)):
            self.roles.by_path.setdefault(re.sub(r"\[[^\]]*\]", "[]", owner.gl_name), OPTIMIZER)
            value = self.standins.value(owner.gl_name)
            return value if isinstance(value, torch.optim.Optimizer) else None
        return None

    def _engine_optimizer(self, module: torch.nn.Module) -> torch.optim.Optimizer:
        if id(module) not in self._hidden:
            self._hidden[id(module)] = self.standins.optimizer("engine", module)
        optimizer: torch.optim.Optimizer = self._hidden[id(module)]
        return optimizer

    def engine(self, module: Any) -> Any:
        """DeepSpeed's engine: the model, with ``backward`` and ``step``."""
        return module

    def scaler_behind(self, method: Ghost) -> Optional[torch.amp.GradScaler]:
        """The scaler whose method this is, if the owner is one by role or name."""
        owner = method.gl_owner
        if owner is None or not (self.role(owner) == SCALER or "scaler" in owner.gl_name.lower()):
            return None
        self.roles.by_path.setdefault(re.sub(r"\[[^\]]*\]", "[]", owner.gl_name), SCALER)
        value = self.standins.value(owner.gl_name)
        return value if isinstance(value, torch.amp.GradScaler) else None

    def unknown_parameters(self) -> List[torch.Tensor]:
        """What an unknown collection of parameters stands for: all there are."""
        known = self.recorder.known
        if not known:
            known = [p for m in self.standins.models().values() for p in m.parameters()]
        return known or list(self.standins.model("model").parameters())

    def run_backward(self, loss: Any) -> None:
        """A recorded backward of whatever carries the gradient; of a stand-in loss where nothing does."""
        parts = gradients_in(loss) if loss is not None else []
        if not isinstance(loss, torch.Tensor):
            ids = {id(p) for p in self.recorder.known}
            if not any(_reaches(part, ids) for part in parts):
                # the expression that yields the loss is all a stand-in may replace: it reaches what is trained
                self.assumed.setdefault("loss", "stand-in loss")
                name = loss.gl_name if isinstance(loss, Ghost) else ""
                parts.append(self.standins.loss(name))
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        total.backward(retain_graph=True)  # type: ignore[no-untyped-call]

    def backward(self, tensor: torch.Tensor) -> None:
        """``loss.backward()`` of a ghost."""
        self.run_backward(GhostTensor("", tensor))

    # helpers of the rewritten code

    def helpers(self) -> Dict[str, Any]:
        """Names the rewritten code calls, and harmless versions of builtins."""
        return {
            "_gl_Exception": Exception,
            "_gl_failed": self._failed,
            "_gl_loop": self._loop,
            "_gl_while": self._while,
            "_gl_test": self._test,
            "_gl_not": self._not,
            "_gl_is_none": self._is_none,
            "_gl_item": _item,
            "_gl_same": self._same,
            "_gl_cast": self._cast,
            "_gl_named": _named,
            "_gl_defined": self._defined,
            "_gl_manager": _Manager,
            "_gl_grads_changed": self._grads_changed,
            "isinstance": is_instance,
            "range": self._range,
            "print": _nothing,
            "input": lambda *_: "",
            "open": lambda *_, **__: Ghost("file"),
            "exit": sys.exit,
            "quit": sys.exit,
        }

    def _failed(self, text: str, names: Tuple[str, ...], seen: Tuple[str, ...]) -> Any:
        """The value of what could not be computed; passes on what the user's own handler waits for."""
        error = sys.exc_info()[1]
        if error is not None and any(kind.__name__ in seen for kind in type(error).__mro__):
            raise error
        frame = sys._getframe(1)
        if error is not None:
            self.recorder.note(f"{type(error).__name__}: {error}", frame.f_lineno)
        # of self only a model has gradients to offer, not what else an object holds
        values = [v for n in names for v in [_lookup(n, frame)] if n != "self" or isinstance(v, torch.nn.Module)]
        result = combine(text, tuple(values), {})
        object.__setattr__(result, "gl_name", text)
        object.__setattr__(result, "gl_key", text)
        return result

    def _defined(self, function: Any) -> None:
        self.captured = function

    def _module_of(self, frame: FrameType) -> str:
        return self.recorder.files.get(frame.f_code.co_filename, self.recorder.entry)

    def _loop(self, items: Any, line: int) -> Iterator[Any]:
        return limited(self.recorder, items, self._module_of(sys._getframe(1)), line)

    def _while(self, line: int) -> Iterator[Loop]:
        return rounds(self.recorder, self._module_of(sys._getframe(1)), line)

    def _test(self, value: Any) -> bool:
        frame = sys._getframe(1)
        if id(value) in self.standins.maybe_none:
            value = self._presence(value)
        if isinstance(value, Ghost):
            for loop in self.recorder.loops[-1:]:
                if loop.line == frame.f_lineno:
                    loop.unknown = True
            return self.truth(value, frame)
        return bool(value)

    def _presence(self, value: Any) -> Ghost:
        return Ghost(self.standins.maybe_none[id(value)], hint=True)

    def _not(self, value: Any) -> Any:
        if id(value) in self.standins.maybe_none:
            value = self._presence(value)
        if isinstance(value, Ghost):
            return _renamed(value, f"not {value.gl_name}", not value.gl_negated)
        return not value

    def _is_none(self, value: Any, path: str, negated: bool) -> Any:
        """``x is None`` of an unknown is as unknown as ``not x``."""
        if isinstance(value, GhostTensor):
            return negated
        if id(value) in self.standins.maybe_none:
            value = self._presence(value)
        if isinstance(value, Ghost):
            turned = value.gl_negated if negated else not value.gl_negated
            return _renamed(value, f"{value.gl_name} is {'not ' if negated else ''}None", turned)
        return (value is not None) if negated else (value is None)

    def _same(self, left: Any, right: Any, negated: bool) -> Any:
        """``x is y``: of two unknowns, or of two stand-ins (``policy is value``), not known either."""
        made = {id(m) for m in self.standins.made}
        if left is not right and all(isinstance(v, Ghost) or id(v) in made for v in (left, right)):
            name = f"{_title(left)} is {_title(right)}"
            return Ghost(name, key=name, negated=negated, hint=False)
        return (left is not right) if negated else (left is right)

    def _cast(self, value: Any, path: str) -> Any:
        """A value for a path with a role: what the program made, else its stand-in."""
        if not isinstance(value, Ghost):
            self.standins.bind(path, value)
            return value
        role = self.roles.of(path)
        if role is None or (role == MODEL and isinstance(value.gl_extra, torch.nn.Module)):
            return value
        if isinstance(value, GhostTensor) and role == MODEL and value.gl_module is not None:
            self.standins.bind(path, value.gl_module)
            return value.gl_module
        return self.standins.value(path)

    def _grads_changed(self) -> None:
        """After a statement that writes ``.grad``: record a clearing where gradients vanished."""
        recorder = self.recorder
        cleared = recorder.cleared_since()
        if not cleared:
            return
        last = recorder.events[-1] if recorder.events else None
        _, line, _ = recorder.where()
        if last is not None and last.get("object") == "assignment" and last["line"] == line:
            last["cleared"] += cleared
            return
        recorder.add("zero_grad", object="assignment", cleared=cleared)

    def _range(self, *args: Any) -> Any:
        if any(isinstance(a, Ghost) for a in args):
            start = args[0] if len(args) > 1 and isinstance(args[0], int) else 0
            return _GhostRange(start)
        return range(*args)


class _GhostRange:
    """``range`` with an unknown end: as long as a ghost's items."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __len__(self) -> int:
        return ASSUMED_LENGTH

    def __iter__(self) -> Iterator[int]:
        for number, _ in enumerate(Ghost("range()")):
            yield self.start + number

    def __reversed__(self) -> Iterator[int]:
        return reversed(range(self.start, self.start + ASSUMED_LENGTH))


class _Manager:
    """A context manager that cannot fail on the way in or out; what is none becomes a ghost."""

    def __init__(self, manager: Any) -> None:
        self.manager = manager
        self.entered = False

    def __enter__(self) -> Any:
        try:
            value = type(self.manager).__enter__(self.manager)
            self.entered = True
            return value
        except Exception:
            # a device, a profiler, a file that is not there: the body runs all the same
            return self.manager if isinstance(self.manager, Ghost) else Ghost("with")

    def __exit__(self, *details: Any) -> bool:
        if not self.entered:
            return False
        try:
            return bool(type(self.manager).__exit__(self.manager, *details))
        except Exception:
            # leaving may fail for the reasons entering may; what the body raised stays raised
            return False


def _nothing(*args: Any, **kwargs: Any) -> None:
    """``print`` and its like."""


def _item(holder: Any, key: Any) -> Any:
    """``holder[key]``; an unknown key of a known collection picks any of its items."""
    if not isinstance(key, Ghost) or not isinstance(holder, (dict, list, tuple)) or not holder:
        return holder[key]
    if isinstance(holder, dict):
        return holder[key] if key in holder else next(iter(holder.values()))
    return holder[0]


def _title(value: Any) -> str:
    return str(getattr(value, "gl_name", type(value).__name__))


def _module(value: Any) -> Optional[torch.nn.Module]:
    return value if isinstance(value, torch.nn.Module) else None


def _named(value: Any, name: str) -> Any:
    """An unknown result of a call is known by the name it was given: ``args = get_args()``."""
    if type(value) is Ghost and value.gl_extra is None:
        return Ghost(name, hint=value.gl_hint)
    return value


def _lookup(path: str, frame: FrameType) -> Any:
    """The value of a name or attribute path in the caller's scope; None where there is none."""
    first, *rest = path.split(".")
    value = frame.f_locals.get(first, frame.f_globals.get(first))
    for name in rest:
        value = getattr(value, name, None)
    return value


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


def _renamed(ghost: Ghost, name: str, negated: bool) -> Ghost:
    return Ghost(name, key=ghost.gl_key, negated=negated, hint=ghost.gl_hint)


def _library_answer(ghost: Ghost) -> bool:
    """PyTorch's own checks of its arguments (``if lr < 0: raise``) pass."""
    name = ghost.gl_name
    return not re.search(r" (<|<=|>|>=|!=) ", name)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return Ghost(text)
