"""What an initialiser makes of a layer's weights: ``nn.init.name(w)``, ``w.data.name()``, ``torch.randn(...)``."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Sequence

from gradlint.facts import torch_ops as ops
from gradlint.facts.values import (
    UNKNOWN,
    Place,
    Value,
    Weight,
)


def initialise(name: str, args: list[Value], kwargs: dict[str, Value], at: Place) -> None:
    """``nn.init.name(weight, ...)`` or ``weight.data.name(...)``, written at ``at``."""
    if not args or not isinstance(args[0], Weight) or args[0].name != "weight":
        return
    layer = args[0].layer
    family = ops.INITIALISERS.get(name)
    if name in ("fill_", "zero_"):
        family = "zeros" if name == "zero_" or (len(args) > 1 and args[1] == 0) else "constant"
    elif name in ("mul_", "div_", "copy_", "add_", "clamp_"):
        family = "unknown"
    if family is None:
        return
    layer.init_at = at
    if family == "constant" and (args[1] if len(args) > 1 else kwargs.get("val")) == 0:
        family = "zeros"
    if family == "normal":
        std = kwargs.get("std", args[2] if len(args) > 2 else 1.0)
        layer.init = f"normal:{std}" if isinstance(std, (int, float)) else "unknown"
    elif family == "uniform":
        low: Value = kwargs.get("a", args[1] if len(args) > 1 else 0.0)
        high: Value = kwargs.get("b", args[2] if len(args) > 2 else 1.0)
        if isinstance(low, (int, float)) and isinstance(high, (int, float)):
            layer.init = f"normal:{(high - low) / math.sqrt(12.0)}"
        else:
            layer.init = "unknown"
    elif family in ("he", "xavier", "orthogonal"):
        layer.init = _scaled(family, args, kwargs)
    else:
        layer.init = family


def _scaled(family: str, args: Sequence[Value], kwargs: dict[str, Value]) -> str:
    if family == "he":
        kind = kwargs.get("nonlinearity", args[3] if len(args) > 3 else "leaky_relu")
        slope = kwargs.get("a", args[1] if len(args) > 1 else 0)
        if kind in ("linear", "sigmoid", "conv1d", "conv2d", "conv3d"):
            return "lecun"
        if kind == "leaky_relu" and isinstance(slope, (int, float)):
            if abs(slope - math.sqrt(5)) < 0.01:
                return "default"
            return "he" if abs(slope) < 0.3 else f"gain:{2 / (1 + slope**2):.6g}"
        return _OF_KAIMING.get(kind, "unknown") if isinstance(kind, str) else "unknown"
    gain = kwargs.get("gain", args[1] if len(args) > 1 else 1.0)
    if gain is UNKNOWN:
        return family
    if not isinstance(gain, (int, float)):
        return "unknown"
    return family if abs(gain - 1.0) < 0.01 else "he" if abs(gain - math.sqrt(2)) < 0.02 else f"gain:{gain**2:.6g}"


_OF_KAIMING = {"relu": "he", "tanh": f"gain:{25 / 9:.6g}", "selu": f"gain:{9 / 16:.6g}"}


_DRAWN = {"randn": 1.0, "rand": 1 / math.sqrt(12), "zeros": 0.0, "ones": None, "full": None}
"""Functions that make a tensor: the standard deviation of what they give, None for a constant."""


def drawn(made: ast.expr, value_of: Callable[[ast.expr], Value]) -> str:
    """How ``nn.Parameter(made)`` is initialised, as :class:`Node.init` names it: ``torch.randn(a, b) * 0.02``."""
    factor = 1.0
    while isinstance(made, ast.BinOp) and isinstance(made.op, (ast.Mult, ast.Div)):
        number, inner = value_of(made.right), made.left
        if not isinstance(number, (int, float)) and isinstance(made.op, ast.Mult):
            number, inner = value_of(made.left), made.right
        if not isinstance(number, (int, float)) or number == 0:
            return "unknown"
        factor *= number if isinstance(made.op, ast.Mult) else 1 / number
        made = inner
    if not isinstance(made, ast.Call):
        return "unknown"
    name = made.func.attr if isinstance(made.func, ast.Attribute) else getattr(made.func, "id", "")
    if name not in _DRAWN:
        return "unknown"
    spread = _DRAWN[name]
    if spread is None:
        return "constant"
    return f"normal:{abs(spread * factor)}" if spread else "zeros"
