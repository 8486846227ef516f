"""One batch again and again: what every iteration of a training loop gets where the request says ``same_batch``.

Only data is repeated. Counters count, and models, optimizers and parameters that a loop goes through stay what
they are.
"""

from __future__ import annotations

import builtins
import random
import sys
from typing import Any, Dict, Hashable, Optional

import torch

ACCUMULATED = 4
"""Micro-batches of an accumulation window of unknown length, so that what a window loses shows."""
_MISSING = object()


def seed(number: int = 0) -> None:
    """The same random numbers from here on."""
    random.seed(number)
    torch.manual_seed(number)
    numpy: Optional[Any] = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(number)


class SameBatch:
    """Remembers the first data seen at each place of the program."""

    def __init__(self) -> None:
        self._first: Dict[Hashable, Any] = {}

    def item(self, place: Hashable, item: Any) -> Any:
        """``item`` with the data of the first one at this place."""
        if place not in self._first:
            self._first[place] = _copy(item)
            return item
        return _merged(self._first[place], item)

    def next(self, place: Hashable, iterator: Any, default: Any = _MISSING) -> Any:
        """The builtin ``next``, with the data of the first item taken at this place."""
        value = builtins.next(iterator) if default is _MISSING else builtins.next(iterator, default)
        return self.item(place, value)


def _is_data(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return not value.requires_grad and not isinstance(value, torch.nn.Parameter)
    numpy: Optional[Any] = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray) and value.dtype != object


def _copy(value: Any, depth: int = 0) -> Any:
    """Data is copied, since the program may write to it."""
    if _is_data(value):
        return value.clone() if isinstance(value, torch.Tensor) else value.copy()
    if depth < 4 and type(value) in (list, tuple):
        return type(value)(_copy(v, depth + 1) for v in value)
    if depth < 4 and isinstance(value, dict):
        return {k: _copy(v, depth + 1) for k, v in value.items()}
    return value


def _merged(first: Any, now: Any, depth: int = 0) -> Any:
    if _is_data(first) and _is_data(now):
        return _copy(first)
    if depth < 4 and type(now) in (list, tuple) and type(first) is type(now) and len(first) == len(now):
        return type(now)(_merged(a, b, depth + 1) for a, b in zip(first, now))
    if depth < 4 and type(now) is dict and isinstance(first, dict):
        return {k: _merged(first[k], v, depth + 1) if k in first else v for k, v in now.items()}
    return now
