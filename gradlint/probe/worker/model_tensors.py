"""Tensors inside other values: found, replaced, sorted by their part in a call."""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Mapping, Sequence, Tuple

import torch
from layergraph import ACTIVATION, UNKNOWN
from torch import Tensor, nn


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


def output_tensors(value: Any, depth: int = 4) -> Iterator[Tensor]:
    """Every tensor in what a model returned: also in objects (dataclasses, distributions, simple classes)."""
    if isinstance(value, Tensor):
        yield value
    elif depth == 0 or isinstance(value, (str, bytes, int, float, nn.Module, type)) or value is None:
        return
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from output_tensors(item, depth - 1)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from output_tensors(item, depth - 1)
    else:
        for item in list(getattr(value, "__dict__", {}).values()):
            yield from output_tensors(item, depth - 1)


def carries(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def operands(op: str, args: Sequence[Any], kwargs: Dict[str, Any]) -> Tuple[List[Tensor], List[Tensor]]:
    """The two factors of a product in order, and what is added to it."""
    if op == "einsum":
        return list(tensors_in([list(args[1:]), kwargs])), []
    named = {k: v for k, v in kwargs.items() if isinstance(v, Tensor)}
    tensors = [a for a in args if isinstance(a, Tensor)]
    if op in ("addmm", "baddbmm"):
        every = tensors + list(named.values())
        return every[1:3], every[:1]
    bias = [named.pop("bias")] if "bias" in named else []
    first = [named.pop("input")] if "input" in named else []
    every = [*tensors, *first, *named.values()]
    if op == "rmatmul":
        every = every[1::-1]
    return every[:2], bias + every[2:3]


def swapped(value: Any, swap: Mapping[int, Tensor]) -> Any:
    """``value`` with tensors replaced by identity, in nested tuples, lists and dicts."""
    if not swap:
        return value
    if isinstance(value, Tensor):
        return swap.get(id(value), value)
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        items = [swapped(v, swap) for v in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, dict):
        return {k: swapped(v, swap) for k, v in value.items()}
    return value


def clamp_kind(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tuple[str, str]:
    low = kwargs.get("min", args[1] if len(args) > 1 else None)
    high = kwargs.get("max", args[2] if len(args) > 2 else None)
    if isinstance(low, (int, float)) and low == 0 and high is None:
        return ACTIVATION, "relu"
    return (ACTIVATION, "hardtanh") if low is not None and high is not None else (UNKNOWN, "clamp")


def divides_by(before: List[Tuple[Tensor, int]], op: str, args: Sequence[Any]) -> bool:
    """Whether the only live operand of a division is the divisor."""
    return op == "div" and bool(args) and args[0] is not before[0][0]
