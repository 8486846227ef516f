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
import re
import sys
from types import FrameType
from typing import Any, Dict, FrozenSet, Iterator, Optional, Tuple

import torch
from ghost_world import MISSING, world

UNKNOWN_DEVICE = torch.device("cuda")
"""Programs are written for a GPU: that decides whether they scale their losses. Nothing is ever put on it."""

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


_CLASSES = re.compile(r"(action|act)_(space|dim|size)|(n|num)_?(actions?|class(es)?|labels?)|\.n$|vocab", re.IGNORECASE)


def unknown_size(ghost: Ghost) -> int:
    """The size an unknown stands for: 1, which fits everywhere; 3 classes or actions, since a softmax over one has no
    gradient."""
    return 3 if _CLASSES.search(ghost.gl_name) else 1


def words(text: str) -> FrozenSet[str]:
    """The words of a text as a set."""
    return frozenset(text.split())


CUTS = words(
    "size dim ndim ndimension shape numel nelement item tolist detach data argmax argmin argsort eq ne lt le gt ge "
    "equal isnan isinf isfinite bool long int byte numpy stride is_floating_point nonzero any all grad_fn "
    "detach_ __eq__ __ne__ __lt__ __le__ __gt__ __ge__ __len__ __bool__ allclose sign round floor ceil "
    "__get__"
)
"""Results of these carry no gradient."""


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
        if name == "module":
            return self  # what a model is wrapped in, or not
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
        return "/proc/nonexistent"  # it cannot be made either

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        import numpy

        return numpy.ones((), dtype=dtype)

    def __copy__(self) -> Ghost:
        return self

    def __deepcopy__(self, memo: Dict[int, Any]) -> Ghost:
        return self


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
        if name in CUTS:
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


class GhostRange:
    """``range`` with an unknown end: as long as a ghost's items."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __len__(self) -> int:
        return ASSUMED_LENGTH

    def __iter__(self) -> Iterator[int]:
        for number, _ in enumerate(Ghost("range()")):
            yield self.start + number

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return Ghost(f"range().{name}")

    def __reversed__(self) -> Iterator[int]:
        return reversed(range(self.start, self.start + ASSUMED_LENGTH))


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
