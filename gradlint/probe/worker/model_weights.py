"""What a weight tensor tells: its fans, whose it is, how it was initialised."""

from __future__ import annotations

import math
from typing import Any, Mapping, Optional, Sequence, Tuple

from torch import Tensor, nn

Names = Tuple[str, ...]
"""Names of the parameters that a tensor was computed from; ``""`` for one that no module has registered."""

SAMPLE = 1 << 16
"""Numbers of a large weight that are looked at."""
STD_TOLERANCE = 0.05
"""How far the spread of weights may be from PyTorch's default, on top of what their number lets one see."""


def fans(op: str, weight: Tensor, is_second: bool, args: Sequence[Any]) -> Optional[Tuple[int, int]]:
    """``(fan_in, fan_out)`` of a weight, as ``torch.nn.init`` counts them; None where it only scales.

    Args:
        op: ``linear``, a convolution, a matrix product or ``einsum``.
        is_second: whether the weight is the second factor.
        args: the arguments of the call; for ``einsum`` the first is the equation.
    """
    shape = tuple(weight.shape)
    if op == "einsum":
        return _einsum_fans(args, shape, is_second)
    if op == "linear":
        return (shape[-1], shape[0] if len(shape) > 1 else 1)
    if op.startswith("conv"):
        size = math.prod(shape[2:])
        return (shape[1] * size, shape[0] * size)
    if op in ("tensordot", "inner") or not shape:
        return None
    if len(shape) == 1:
        return (shape[0], 1)
    return (shape[-2], shape[-1]) if is_second else (shape[-1], shape[-2])


def _einsum_fans(args: Sequence[Any], shape: Tuple[int, ...], is_second: bool) -> Optional[Tuple[int, int]]:
    equation = args[0] if args else None
    if not isinstance(equation, str) or "->" not in equation:
        return None
    terms, result = equation.replace(" ", "").split("->")
    letters = terms.split(",")[1 if is_second else 0].replace("...", "")
    other = terms.split(",")[0 if is_second else 1]
    if len(letters) != len(shape):
        return None
    sizes = dict(zip(letters, shape))
    summed = [sizes[c] for c in letters if c not in result and c in other]
    free = [sizes[c] for c in letters if c in result and c not in other]
    return (math.prod(summed), math.prod(free)) if summed else None


def path_of(names: Names, owners: Mapping[str, nn.Module]) -> Tuple[str, Optional[nn.Module]]:
    """The dotted path of the layer that owns a weight, or the parameter's own name where it is no layer's."""
    if not names or not names[0]:
        return "", None
    path, _, leaf = names[0].rpartition(".")
    head, found, _ = f".{path}".partition(".parametrizations.")
    if found:
        path, leaf = head[1:], "weight"
    owner = owners.get(path)
    if leaf.startswith("weight") and _is_layer(owner):
        return path, owner
    return names[0], owner


def _is_layer(module: Optional[nn.Module]) -> bool:
    """Whether one weight is all that the module is about."""
    return module is not None and all(name == "parametrizations" for name, _ in module.named_children())


def default_std_ratio(weight: Tensor) -> float:
    """Spread of a weight over that of PyTorch's default, ``1 / sqrt(3 fan_in)``; nan where it cannot be told."""
    return _spread(weight) * math.sqrt(3.0 * _fan_in(weight)) if weight.numel() > 1 else math.nan


def is_default(weight: Tensor) -> bool:
    """Whether a weight looks like PyTorch's default, uniform within ``1 / sqrt(fan_in)``.

    The sample error of the spread of n uniform numbers is 0.447 / sqrt(n) of it; three of that are allowed.
    """
    ratio = default_std_ratio(weight)
    if math.isnan(ratio):
        return True
    seen = min(weight.numel(), SAMPLE)
    if abs(ratio - 1.0) > STD_TOLERANCE + 3 * 0.447 / math.sqrt(seen):
        return False
    return float(_sample(weight).abs().max()) <= 1.001 / math.sqrt(_fan_in(weight))


def init_of(weight: Tensor) -> str:
    """``default``, or ``normal:<std>``: the built weight tells no more."""
    return "default" if is_default(weight) else f"normal:{_spread(weight):.6g}"


def _fan_in(weight: Tensor) -> int:
    """As ``torch.nn.init`` counts it."""
    return math.prod(weight.shape[1:]) if weight.dim() > 1 else weight.numel()


def _spread(weight: Tensor) -> float:
    return float(_sample(weight).double().square().mean().sqrt())


def _sample(weight: Tensor) -> Tensor:
    """Numbers of a weight, evenly spaced, at most :data:`SAMPLE` or so."""
    flat = weight.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLE)]
