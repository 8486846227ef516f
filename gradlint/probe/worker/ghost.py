"""Ghosts: absorbing stand-ins for everything a slice does not hold.

A :class:`Ghost` answers every question a training program asks of a value it does not understand: it can be
called, indexed, iterated, added, compared, formatted. A :class:`GhostTensor` is a ghost that carries a
gradient: a hidden scalar that depends, linearly, on every tensor that went into it. So a loss made of unknown
pieces still has a graph, and ``backward`` on it is a real backward.

Truth values are not invented here. Ghosts ask ``world`` (one per run), which may try both.
"""

from __future__ import annotations

import math
import opcode
import sys
import zlib
from types import FrameType
from typing import Any, Dict, FrozenSet, Iterator, List, Optional, Tuple

import torch

UNKNOWN_DEVICE = torch.device("cuda")
"""Programs are written for a GPU: that decides whether they scale their losses. Nothing is ever put on it."""

MISSING = object()
"""Nothing is known about a name (``None`` is a value)."""

ASSUMED_LENGTH = 3
"""``len`` of an unknown collection, and the number of items an unknown iterable yields where nothing trains."""

MAX_ITEMS = 256
"""Items an unknown iterable yields at most."""

MAX_NESTED = 4
"""Levels of unknown items of unknown items: a function that takes nests apart must come to an end."""
_ITEM = "[*]"
_NAME_LIMIT, _NAME_KEPT = 120, 58
_UNPACK = opcode.opmap["UNPACK_SEQUENCE"]
_UNPACK_EX = opcode.opmap["UNPACK_EX"]


def words(text: str) -> FrozenSet[str]:
    """The words of a text as a set."""
    return frozenset(text.split())


_CUTS = words(
    "size dim ndim ndimension shape numel nelement item tolist detach data argmax argmin argsort eq ne lt le gt ge "
    "equal isnan isinf isfinite bool long int byte numpy stride is_floating_point nonzero any all grad_fn "
    "detach_ __eq__ __ne__ __lt__ __le__ __gt__ __ge__ __len__ __bool__ allclose sign round floor ceil "
    "__get__"
)
"""Results of these carry no gradient."""

_SAME = words("to cuda cpu float double half bfloat16 type type_as contiguous requires_grad_ pin_memory clone")
"""With a real tensor first, these return it: only the device, type or layout was unknown."""


class Gate:
    """Whether a framework lets the optimizers of a process step: Accelerate's gradient state."""

    def __init__(self) -> None:
        self.open = True


class World:
    """What ghosts ask of the run they are part of. The default knows nothing."""

    def __init__(self) -> None:
        self.gate = Gate()

    def truth(self, ghost: Ghost, frame: FrameType) -> bool:
        """The truth value of ``ghost``, asked by ``frame``."""
        return True

    def modulus(self, ghost: Ghost) -> int:
        """The number an unknown ``k`` stands for in ``i % k``."""
        return 1

    def number(self, ghost: Ghost) -> float:
        """The number an unknown stands for where real arithmetic needs one."""
        return 1.0

    def value_of(self, name: str) -> Any:
        """What the project says about the expression ``name``, or :data:`MISSING`."""
        return MISSING

    def call(self, ghost: Ghost, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
        """The result of calling ``ghost``."""
        return combine(ghost.gl_name, args, kwargs)

    def progress(self) -> int:
        """How many training events were recorded so far."""
        return 0

    def bases(self, name: str) -> Tuple[type, ...]:
        """The real classes that stand for the unknown base class ``name``."""
        return (object,)

    def site(self) -> str:
        """The call in the program's text that is being made: the same in every iteration."""
        return ""

    def backward(self, tensor: torch.Tensor) -> None:
        """Run the backward pass of a ghost's hidden scalar."""
        tensor.backward(retain_graph=True)  # type: ignore[no-untyped-call]

    def run_backward(self, loss: Any, divisor: int = 1, scaler: Optional[torch.amp.GradScaler] = None) -> None:
        """Run the backward pass of whatever carries the gradient, divided and scaled as a framework does it."""

    def layer(self, ghost: Ghost, name: str, surely: bool) -> Any:
        """What a module holds under ``name`` that was given an unknown."""
        return ghost

    def asked(self, value: Any) -> bool:
        """The truth of a value that a framework asks for."""
        return bool(value)

    def first_backward(self) -> None:
        """A backward begins."""

    def stand_in_loss(self, name: str = "") -> torch.Tensor:
        """A loss that depends on what is trained."""
        return torch.zeros((), requires_grad=True)

    def window(self, ghost: Ghost) -> int:
        """The micro-batches of a step, where a framework was given an unknown number of them."""
        return 1

    def prepared(self, ghost: Ghost) -> Any:
        """The model or optimizer that an unknown is, if it is one."""
        return ghost


class _Current:
    """Holds the world of the run in progress."""

    world: World = World()


def enter(world: World) -> None:
    """Make ``world`` the one that ghosts ask."""
    _Current.world = world


def world() -> World:
    """The world of the run in progress."""
    return _Current.world


def short(value: Any, numbers: bool = True) -> str:
    """A short, deterministic text for a value inside a ghost's name."""
    if isinstance(value, Ghost):
        return value.gl_name
    if value is None or isinstance(value, (bool, str)):
        return repr(value)[:40]
    if isinstance(value, (int, float)):
        return repr(value) if numbers else "#"
    return type(value).__name__


def _shortened(name: str) -> str:
    """A name of bounded length; what it ends with says what a call of it does."""
    return name if len(name) <= _NAME_LIMIT else f"{name[:_NAME_KEPT]}...{name[-_NAME_KEPT:]}"


class Ghost:
    """An unknown value. ``gl_name`` is the expression it came from, as far as that is known."""

    gl_name: str
    gl_owner: Optional[Ghost]
    gl_items: Dict[str, Any]
    gl_key: str
    gl_negated: bool
    gl_hint: Any
    gl_extra: Any
    gl_cell: Dict[str, Any]
    """Shared by all names of this unknown: ``"is"``, what it turned out to be; ``"made"``, the call it came from."""

    def __init__(
        self,
        name: str,
        owner: Optional[Ghost] = None,
        key: Optional[str] = None,
        negated: bool = False,
        hint: Any = MISSING,
    ) -> None:
        put = object.__setattr__
        put(self, "gl_name", _shortened(name))
        put(self, "gl_owner", owner)
        put(self, "gl_items", {})
        put(self, "gl_key", _shortened(key if key is not None else name))
        put(self, "gl_negated", negated)
        put(self, "gl_hint", hint)
        put(self, "gl_extra", None)
        put(self, "gl_cell", {})

    # attributes, items, calls

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            if name in ("__version__", "__file__", "__doc__", "__qualname__"):
                return "0.0"
            raise AttributeError(name)
        items = self.gl_items
        if name not in items:
            items[name] = self._gl_child(name)
        return items[name]

    def _gl_child(self, name: str) -> Any:
        path = f"{self.gl_name}.{name}"
        known = world().value_of(path)
        if known is not MISSING:
            return known
        if name == "device":
            return UNKNOWN_DEVICE
        return Ghost(path, owner=self)

    def __setattr__(self, name: str, value: Any) -> None:
        self.gl_items[name] = value

    def __delattr__(self, name: str) -> None:
        self.gl_items.pop(name, None)

    def __getitem__(self, index: Any) -> Any:
        key = f"[{short(index)}]"
        items = self.gl_items
        if key not in items:
            path = self.gl_name + key
            known = world().value_of(path)
            items[key] = Ghost(path, owner=self) if known is MISSING else known
        return items[key]

    def __setitem__(self, index: Any, value: Any) -> None:
        self.gl_items[f"[{short(index)}]"] = value

    def __delitem__(self, index: Any) -> None:
        self.gl_items.pop(f"[{short(index)}]", None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return world().call(self, args, kwargs)

    def __mro_entries__(self, bases: Tuple[Any, ...]) -> Tuple[type, ...]:
        return world().bases(self.gl_name)

    # iteration and context

    def __iter__(self) -> Iterator[Any]:
        width = _unpack_width(sys._getframe(1))
        if width is not None:
            return iter([self[i] for i in range(width)])
        return GhostIterator(self)

    def __next__(self) -> Any:
        return Ghost(f"next({self.gl_name})", owner=self)

    def __len__(self) -> int:
        return ASSUMED_LENGTH

    def __contains__(self, item: Any) -> bool:
        return world().truth(Ghost(f"{short(item)} in {self.gl_name}"), sys._getframe(1))

    def __reversed__(self) -> Iterator[Any]:
        return GhostIterator(self)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *details: object) -> None:
        """It never swallows what the body raised."""

    # truth and comparison

    def __bool__(self) -> bool:
        return world().truth(self, sys._getframe(1))

    def _gl_compare(self, other: Any, op: str, key_op: str, negated: bool) -> Any:
        numbers = op in ("==", "!=")
        key = f"{self.gl_key} {key_op} {short(other, numbers)}"
        return Ghost(f"{self.gl_name} {op} {short(other)}", owner=self, key=key, negated=negated)

    def __eq__(self, other: object) -> Any:
        if isinstance(other, Ghost) and other.gl_name == self.gl_name:
            return True
        return self._gl_compare(other, "==", "==", False)

    def __ne__(self, other: object) -> Any:
        if isinstance(other, Ghost) and other.gl_name == self.gl_name:
            return False
        return self._gl_compare(other, "!=", "==", True)

    def __gt__(self, other: Any) -> Any:
        return self._gl_compare(other, ">", ">", False)

    def __le__(self, other: Any) -> Any:
        return self._gl_compare(other, "<=", ">", True)

    def __ge__(self, other: Any) -> Any:
        return self._gl_compare(other, ">=", ">=", False)

    def __lt__(self, other: Any) -> Any:
        return self._gl_compare(other, "<", ">=", True)

    def __hash__(self) -> int:
        return hash(self.gl_name)  # one key of a dict for one expression

    # conversions

    def __int__(self) -> int:
        return int(world().number(self))

    def __index__(self) -> int:
        return int(world().number(self))

    def __float__(self) -> float:
        return float(world().number(self))

    def __complex__(self) -> complex:
        return complex(world().number(self))

    def __round__(self, digits: Any = None) -> Any:
        return int(world().number(self))

    def __trunc__(self) -> int:
        return int(world().number(self))

    def __floor__(self) -> int:
        return math.floor(world().number(self))

    def __ceil__(self) -> int:
        return math.ceil(world().number(self))

    def __str__(self) -> str:
        return self.gl_name

    def __repr__(self) -> str:
        return f"<{self.gl_name}>"

    def __format__(self, spec: str) -> str:
        return self.gl_name

    def __fspath__(self) -> str:
        return "/nonexistent"

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        import numpy

        return numpy.ones((), dtype=dtype)

    def __copy__(self) -> Ghost:
        return self

    def __deepcopy__(self, memo: Dict[int, Any]) -> Ghost:
        return self

    # arithmetic

    def __mod__(self, other: Any) -> Any:
        return binary("%", self, other)

    def __rmod__(self, other: Any) -> Any:
        if isinstance(other, int):
            return other % max(1, world().modulus(self))
        if isinstance(other, str):
            return other
        return binary("%", other, self)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        name = str(getattr(func, "__name__", func))
        if name in _SAME and args and isinstance(args[0], torch.Tensor) and not isinstance(args[0], Ghost):
            return args[0]
        if name in ("mul", "__mul__", "__rmul__", "div", "__truediv__", "true_divide", "__div__") and len(args) == 2:
            return binary("*" if "mul" in name else "/", args[0], args[1])
        return combine(name, args, kwargs or {})


def _add_operators() -> None:
    """Give :class:`Ghost` the operators that all behave alike."""

    def forward(symbol: str) -> Any:
        return lambda self, other: binary(symbol, self, other)

    def backward(symbol: str) -> Any:
        return lambda self, other: binary(symbol, other, self)

    table = {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "pow": "**", "matmul": "@"}
    table.update({"and": "&", "or": "|", "xor": "^", "lshift": "<<", "rshift": ">>", "divmod": "divmod"})
    for name, symbol in table.items():
        setattr(Ghost, f"__{name}__", forward(symbol))
        setattr(Ghost, f"__r{name}__", backward(symbol))
    for name in ("neg", "pos", "abs", "invert"):
        setattr(Ghost, f"__{name}__", lambda self: _unary(self))


class GhostTensor(Ghost):
    """A ghost with a gradient: ``gl_value`` is a scalar that depends on every tensor that went into it.

    It does not pretend to be a ``torch.Tensor`` (``__class__``): C++ code would believe it and crash. Sliced code
    gets an ``isinstance`` that says so.
    """

    gl_value: torch.Tensor
    gl_module: Any

    def __init__(self, name: str, value: torch.Tensor, owner: Optional[Ghost] = None) -> None:
        super().__init__(name, owner)
        if isinstance(value, Ghost):
            raise TypeError("a gradient that is itself unknown")
        object.__setattr__(self, "gl_value", value)
        object.__setattr__(self, "gl_module", None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        fixed: Dict[str, Any] = {"requires_grad": True, "is_leaf": False, "is_cuda": False, "is_sparse": False}
        fixed.update({"dtype": torch.float32, "grad": None, "layout": torch.strided})
        if name in fixed and name not in self.gl_items:
            return fixed[name]
        return super().__getattr__(name)

    def _gl_child(self, name: str) -> Any:
        if name == "device":
            return UNKNOWN_DEVICE
        path = f"{self.gl_name}.{name}"
        if name in _CUTS:
            return Ghost(path, owner=self)
        return GhostTensor(path, self.gl_value, owner=self)

    def __getitem__(self, index: Any) -> Any:
        key = f"[{short(index)}]"
        return self.gl_items.get(key, GhostTensor(self.gl_name + key, self.gl_value, owner=self))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # a method of the tensor: model(x).view(-1), loss.mean()
        return world().call(self, args, kwargs)

    def __bool__(self) -> bool:
        return world().truth(self, sys._getframe(1))

    def __float__(self) -> float:
        return float(self.gl_value.detach())

    def backward(self, *args: Any, **kwargs: Any) -> None:
        """A real backward pass of the hidden scalar."""
        world().backward(self.gl_value)

    def item(self) -> float:
        """A plain number, so that a finiteness check passes by itself."""
        return 1.0

    def detach(self) -> Ghost:
        """The same unknown without its gradient."""
        return Ghost(f"{self.gl_name}.detach()")


class GhostIterator:
    """Yields a few ghosts; goes on as long as the loop over it trains something."""

    def __init__(self, source: Ghost) -> None:
        self.source = source
        self.count = 0
        self.seen = world().progress()
        self.idle = 0

    def __iter__(self) -> GhostIterator:
        return self

    def __next__(self) -> Any:
        now = world().progress()
        self.idle = 0 if now != self.seen else self.idle + 1
        self.seen = now
        if self.idle > ASSUMED_LENGTH or self.count >= MAX_ITEMS or self.source.gl_name.count(_ITEM) >= MAX_NESTED:
            raise StopIteration
        self.count += 1
        return self.source[self.count - 1] if isinstance(self.source, GhostTensor) else self._item()

    def _item(self) -> Ghost:
        return Ghost(self.source.gl_name + _ITEM, owner=self.source)


def cotangent(tensor: torch.Tensor) -> torch.Tensor:
    """A fixed vector of the tensor's shape, the same in every run, of norm about 1."""
    generator = torch.Generator().manual_seed(tensor.numel() % 9973)
    flat = torch.randn(max(1, tensor.numel()), generator=generator) / math.sqrt(max(1, tensor.numel()))
    return flat[: tensor.numel()].reshape(tensor.shape).to(tensor.dtype)


def scalar_of(tensor: torch.Tensor) -> torch.Tensor:
    """A scalar that depends linearly on all entries of ``tensor``; a scalar stays what it is."""
    if tensor.dim() == 0:
        return tensor
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return (real * cotangent(real.detach())).sum()


def weights_of(module: torch.nn.Module) -> List[torch.Tensor]:
    """The parameters of a module, whatever its class makes of ``parameters``."""
    return list(torch.nn.Module.parameters(module))


def gradients_in(value: Any, depth: int = 0) -> List[torch.Tensor]:
    """Scalars for everything in ``value`` that carries a gradient: tensors, ghosts, parameters of modules."""
    if isinstance(value, GhostTensor):
        return [value.gl_value]
    if isinstance(value, Ghost):
        return []
    if isinstance(value, torch.nn.Module):
        return [scalar_of(p) for p in weights_of(value) if p.requires_grad]
    if isinstance(value, torch.Tensor):
        return [scalar_of(value)] if value.requires_grad and value.numel() else []
    if depth < 4 and isinstance(value, (list, tuple, set)):
        return [g for item in list(value)[:200] for g in gradients_in(item, depth + 1)]
    if depth < 4 and isinstance(value, dict):
        return [g for item in list(value.values())[:200] for g in gradients_in(item, depth + 1)]
    return []


def combine(name: str, args: Tuple[Any, ...], kwargs: Dict[str, Any], owner: Optional[Ghost] = None) -> Any:
    """What an unknown function of ``args`` returns: a ghost tensor if any of them carries a gradient."""
    last = name.rsplit(".", 1)[-1]
    text = f"{name}({', '.join(short(a) for a in args[:4])})"
    if last in _CUTS or not torch.is_grad_enabled():
        return Ghost(text, owner=owner)
    parts = gradients_in(args) + gradients_in(kwargs) + gradients_in(owner)
    if not parts:
        return _made_of(Ghost(text, owner=owner), args, kwargs)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    # every call in the text its own slope: D(real) - D(fake) of unknown functions must not cancel
    slope = 0.5 + zlib.crc32(f"{last} {world().site()}".encode()) / 2**32
    result = GhostTensor(text, total * slope, owner=owner)
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.nn.Module):
            object.__setattr__(result, "gl_module", value)
            break
    return _made_of(result, args, kwargs)


def _made_of(ghost: Ghost, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Ghost:
    """Remember the parameters among the arguments that an unknown was made of: it may be an optimizer of them."""
    weights: List[torch.Tensor] = []
    for value in (*args, *kwargs.values()):
        for item in value[:200] if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, torch.nn.Module):
                weights.extend(weights_of(item))
            elif isinstance(item, torch.nn.Parameter):
                weights.append(item)
            elif isinstance(item, dict) and isinstance(item.get("params"), list):
                weights.extend(p for p in item["params"] if isinstance(p, torch.nn.Parameter))
    if weights:
        ghost.gl_cell["weights"] = weights
    return ghost


def is_instance(value: Any, kind: Any) -> bool:
    """``isinstance`` for sliced code: an unknown may be a tensor, a watched iterator is what it is inside."""
    value = getattr(value, "gl_inside", value) if type(value).__name__ == "Watched" else value
    if isinstance(value, Ghost):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        return any(k is torch.Tensor for k in kinds)
    if isinstance(kind, Ghost) or (isinstance(kind, tuple) and any(isinstance(k, Ghost) for k in kind)):
        kinds = tuple(k for k in (kind if isinstance(kind, tuple) else ()) if not isinstance(k, Ghost))
        return isinstance(value, kinds)
    return isinstance(value, kind)


def is_tensor(value: Any) -> bool:
    """``torch.is_tensor`` for sliced code."""
    return isinstance(value, (torch.Tensor, GhostTensor))


def holds_ghost(values: Any, depth: int = 0) -> bool:
    """Whether a nest of lists, tuples and dicts holds a ghost."""
    if isinstance(values, Ghost):
        return True
    if depth < 4 and isinstance(values, (list, tuple)):
        return any(holds_ghost(v, depth + 1) for v in values)
    if depth < 4 and isinstance(values, dict):
        return any(holds_ghost(v, depth + 1) for v in values.values())
    return False


def _number(value: Any) -> Optional[Any]:
    """``value`` as a plain factor: a number, or a scalar tensor without a gradient."""
    if isinstance(value, Ghost):
        return None
    if isinstance(value, (int, float)):
        return value
    if isinstance(value, torch.Tensor) and value.dim() == 0 and not value.requires_grad:
        return value
    return None


def binary(symbol: str, left: Any, right: Any) -> Any:
    """Arithmetic with a ghost on at least one side. Scaling by a known number is exact."""
    name = f"({short(left, False)} {symbol} {short(right, False)})"
    factor: Any = _number(right)
    if isinstance(left, GhostTensor) and factor is not None and symbol in ("*", "/"):
        return GhostTensor(name, left.gl_value * factor if symbol == "*" else left.gl_value / factor)
    factor = _number(left)
    if isinstance(right, GhostTensor) and factor is not None and symbol == "*":
        return GhostTensor(name, right.gl_value * factor)
    if not torch.is_grad_enabled():
        return Ghost(name)
    parts = gradients_in(left) + gradients_in(right)
    if not parts:
        return Ghost(name)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return GhostTensor(name, total)


def _unary(value: Ghost) -> Any:
    if isinstance(value, GhostTensor):
        return GhostTensor(f"-{value.gl_name}", -value.gl_value)
    return Ghost(f"-{value.gl_name}")


def _unpack_width(frame: FrameType) -> Optional[int]:
    """How many values the caller unpacks (``a, b = ghost``), from the instruction it is at."""
    code, at = frame.f_code.co_code, frame.f_lasti
    if not 0 <= at < len(code) - 1:
        return None
    if code[at] == _UNPACK:
        return code[at + 1]
    if code[at] == _UNPACK_EX:
        return code[at + 1] + 1
    return None


_add_operators()
