"""What the rewritten code calls: the functions behind ``_gl_failed``, ``_gl_test`` and the others."""

from __future__ import annotations

import operator
import sys
from types import FrameType
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch
from ghost import Ghost, GhostRange, GhostTensor
from ghost_math import combine, cotangent, is_instance
from step_consume import watch
from step_loops import limited, rounds
from step_patch import Hooks
from step_record import Loop
from step_roles import MODEL, SCALER
from step_same import SameBatch
from step_unpack import Star, call_with, init_base, item, unpacked
from step_world import RunWorld, is_count


class Helpers:
    """The helpers of one path; :meth:`names` puts them under the names the rewritten code uses."""

    def __init__(self, world: RunWorld) -> None:
        self.world = world
        self.recorder = world.recorder

    def names(self) -> Dict[str, Any]:
        """Names the rewritten code calls, and harmless versions of builtins."""
        return {
            "_gl_Exception": Exception,
            "_gl_failed": self._failed,
            "_gl_loop": self._loop,
            "_gl_while": self._while,
            "_gl_test": self._test,
            "_gl_not": self._not,
            "_gl_is_none": self._is_none,
            "_gl_is_bool": self._is_bool,
            "_gl_trains": lambda value: True if Hooks.thawing else value,
            "_gl_item": item,
            "_gl_call": call_with,
            "_gl_star": Star,
            "_gl_init": init_base,
            "_gl_unpack": unpacked,
            "_gl_compare": self._compare,
            "_gl_clamp": _clamp,
            "_gl_loss": self._loss,
            "_gl_same": self._is,
            "_gl_cast": self._cast,
            "_gl_named": _named,
            "_gl_counter": _counter,
            "_gl_gradient": self._gradient,
            "_gl_defined": self._defined,
            "_gl_manager": _Manager,
            "_gl_grads_changed": self._grads_changed,
            "_gl_iterator": self._iterator,
            "next": self._next,
            "vars": lambda *a: a[0] if a and isinstance(a[0], Ghost) else vars(*a),
            "isinstance": is_instance,
            "range": self._range,
            "print": _nothing,
            "input": lambda *_: "",
            "getattr": self._getattr,
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

    def _loss(self, value: Any) -> Any:
        """What backward runs on: a function that is to return a loss, and returned None, is left to a subclass."""
        return GhostTensor("loss", self.world.stand_in_loss()) if value is None else value

    def _defined(self, function: Any) -> None:
        self.world.captured = function

    def _getattr(self, owner: Any, name: Any, *default: Any) -> Any:
        """``getattr(torch.optim, args.optimizer)`` of an unknown name is some optimizer."""
        if owner is torch.optim and isinstance(name, Ghost):
            self.world.assumed.setdefault(name.gl_name, "SGD")
            return torch.optim.SGD
        return getattr(owner, name, *default)

    def _module_of(self, frame: FrameType) -> str:
        return self.recorder.files.get(frame.f_code.co_filename, self.recorder.entry)

    def _loop(self, items: Any, line: int) -> Iterator[Any]:
        module = self._module_of(sys._getframe(1))
        flow, place = self.world.flow, (module, line)
        brief = flow.steps and place not in flow.stepping
        forced = self.world.forced is not None and place in flow.training
        return limited(self.recorder, items, module, line, self._same(module, line), brief, forced)

    def _while(self, line: int) -> Iterator[Loop]:
        module = self._module_of(sys._getframe(1))
        return rounds(self.recorder, module, line, self._same(module, line))

    def _same(self, module: str, line: int) -> Optional[SameBatch]:
        """What makes the iterations of a loop alike, where it trains and they are to be."""
        return self.recorder.same if (module, line) in self.world.flow.training else None

    def _next(self, iterator: Any, *default: Any) -> Any:
        same = self.recorder.same
        return next(iterator, *default) if same is None else same.next(self.world.site(), iterator, *default)

    def _iterator(self, value: Any, name: str) -> Any:
        """A value the request asked about: watched, where it is an iterator."""
        return watch(self.recorder, value, name)

    def _test(self, value: Any) -> bool:
        frame = sys._getframe(1)
        if id(value) in self.world.standins.maybe_none:
            value = self._presence(value)
        if isinstance(value, Ghost):
            for loop in self.recorder.loops[-1:]:
                if loop.line == frame.f_lineno:
                    loop.unknown = True
            return self.world.truth(value, frame)
        return self.world.steered(bool(value), frame)

    def _presence(self, value: Any) -> Ghost:
        return Ghost(self.world.standins.maybe_none[id(value)], hint=True)

    def _not(self, value: Any) -> Any:
        if id(value) in self.world.standins.maybe_none:
            value = self._presence(value)
        if isinstance(value, Ghost):
            return _renamed(value, f"not {value.gl_name}", not value.gl_negated)
        return not value

    def _is_none(self, value: Any, path: str, negated: bool) -> Any:
        """``x is None`` of an unknown is as unknown as ``not x``."""
        if isinstance(value, GhostTensor):
            return negated
        if id(value) in self.world.standins.maybe_none:
            value = self._presence(value)
        if isinstance(value, Ghost):
            turned = value.gl_negated if negated else not value.gl_negated
            return _renamed(value, f"{value.gl_name} is {'not ' if negated else ''}None", turned)
        return (value is not None) if negated else (value is None)

    def _is_bool(self, value: Any, wanted: bool, negated: bool) -> Any:
        """``x is True`` of an unknown is as unknown as ``x``."""
        if isinstance(value, Ghost) and not isinstance(value, GhostTensor):
            opposite = wanted is negated
            name = f"{value.gl_name} is {'not ' if negated else ''}{wanted}"
            return _renamed(value, name, value.gl_negated is not opposite)
        return (value is not wanted) if negated else (value is wanted)

    def _gradient(self, owner: Any, value: Any) -> Any:
        """What a program may assign to ``owner.grad``: of an unknown value a tensor that is as large as the owner."""
        if not isinstance(owner, torch.Tensor):
            return value
        if isinstance(value, Ghost):
            return cotangent(owner.detach())
        frame, remedy = sys._getframe(1), self.recorder.remedy
        module = self._module_of(frame)
        here = "" if module == self.recorder.entry else module
        if value is None and remedy is not None and remedy.clears_at(frame.f_lineno, here):
            return owner.grad  # the assignment is passed over
        return value

    def _is(self, left: Any, right: Any, negated: bool) -> Any:
        """``x is y``: of two unknowns, or of two stand-ins (``policy is value``), not known either."""
        made = {id(m) for m in self.world.standins.made}
        if left is not right and all(isinstance(v, Ghost) or id(v) in made for v in (left, right)):
            name = f"{_title(left)} is {_title(right)}"
            return Ghost(name, key=name, negated=negated, hint=False)
        return (left is not right) if negated else (left is right)

    def _compare(self, name: str, left: Any, right: Any, counts: bool = False) -> Any:
        """A comparison; of a counter with an accumulation count that is not known, with the one that is assumed.

        ``counts``: whether the program shows that ``left`` counts micro-batches.
        """
        if type(left) is int and type(right) is Ghost and (counts or is_count(right)):
            right = self.world.modulus(right)
        elif type(right) is int and isinstance(left, Ghost) and is_count(left):
            left = self.world.modulus(left)
        return getattr(operator, name)(left, right)

    def _cast(self, value: Any, path: str) -> Any:
        """A value for a path with a role: what the program made, else its stand-in."""
        if value is None and path in self.world.roles.late and self.world.roles.of(path) == SCALER:
            return self.world.standins.value(path)
        if not isinstance(value, Ghost):
            self.world.standins.bind(path, value)
            return value
        role = self.world.roles.of(path)
        if role is None or (role == MODEL and isinstance(value.gl_extra, torch.nn.Module)):
            return value
        if isinstance(value, GhostTensor) and role == MODEL and isinstance(value.gl_module, torch.nn.Module):
            self.world.standins.bind(path, value.gl_module)
            return value.gl_module
        return self.world.behind(value, path)

    def _grads_changed(self) -> None:
        """After a statement that writes ``.grad``: record a clearing where gradients vanished."""
        recorder = self.recorder
        made, cleared = recorder.grads.written()
        if made:
            recorder.backwards += 1
        if not cleared:
            return
        last = recorder.events[-1] if recorder.events else None
        _, line, _ = recorder.where()
        if last is not None and last.get("object") == "assignment" and last["line"] == line:
            last["cleared"] += cleared
            return
        recorder.add("zero_grad", object="assignment", cleared=cleared)

    def _range(self, *args: Any) -> Any:
        if len(args) == 1 and isinstance(args[0], Ghost) and is_count(args[0]):
            return range(self.world.modulus(args[0]))
        if any(isinstance(a, Ghost) for a in args):
            start = args[0] if len(args) > 1 and isinstance(args[0], int) else 0
            return GhostRange(start)
        return range(*args)


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


def _clamp(parameters: List[Any], limit: Any) -> None:
    """Gradients that the program clamps one by one."""
    known = [p for p in parameters if isinstance(p, torch.Tensor)]
    torch.nn.utils.clip_grad_value_(known if known or not parameters else Ghost("parameters"), limit)


def _nothing(*args: Any, **kwargs: Any) -> None:
    """``print`` and its like."""


def _title(value: Any) -> str:
    return str(getattr(value, "gl_name", type(value).__name__))


def _named(value: Any, name: str) -> Any:
    """An unknown result of a call is known by the name it was given: ``args = get_args()``."""
    if type(value) is Ghost and value.gl_extra is None:
        named = Ghost(name, hint=value.gl_hint)
        object.__setattr__(named, "gl_cell", value.gl_cell)
        value.gl_cell.setdefault("made", value.gl_name)
        return named
    return value


def _counter(value: Any) -> Any:
    """What a counter begins with: 0 where that is not known."""
    return 0 if type(value) is Ghost else value


def _lookup(path: str, frame: FrameType) -> Any:
    """The value of a name or attribute path in the caller's scope; None where there is none."""
    first, *rest = path.split(".")
    value = frame.f_locals.get(first, frame.f_globals.get(first))
    for name in rest:
        value = getattr(value, name, None)
    return value


def _renamed(ghost: Ghost, name: str, negated: bool) -> Ghost:
    return Ghost(name, key=ghost.gl_key, negated=negated, hint=ghost.gl_hint)
