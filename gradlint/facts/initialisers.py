"""What an initialiser makes of a layer's weights: ``nn.init.name(w)``, ``w.data.name()``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradlint.facts import torch_ops as ops
from gradlint.facts.values import (
    UNKNOWN,
    Value,
    Weight,
)

if TYPE_CHECKING:
    pass


def initialise(name: str, args: list[Value], kwargs: dict[str, Value]) -> None:
    """``nn.init.name(weight, ...)`` or ``weight.data.name(...)``."""
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
    numbers = [v for v in args[1:] if isinstance(v, (int, float))]
    if family == "normal":
        std = kwargs.get("std", numbers[1] if len(numbers) > 1 else 1.0)
        layer.init = f"normal:{std}" if isinstance(std, (int, float)) else "unknown"
    elif family == "uniform":
        low: Value = kwargs.get("a", args[1] if len(args) > 1 else 0.0)
        high: Value = kwargs.get("b", args[2] if len(args) > 2 else 1.0)
        if isinstance(low, (int, float)) and isinstance(high, (int, float)):
            layer.init = f"normal:{(high - low) / math.sqrt(12.0)}"
        else:
            layer.init = "unknown"
    elif family in ("he", "xavier"):
        layer.init = _scaled(family, args, kwargs)
    else:
        layer.init = family


def _scaled(family: str, args: Sequence[Value], kwargs: dict[str, Value]) -> str:
    if family == "he":
        kind = kwargs.get("nonlinearity", "leaky_relu")
        slope = kwargs.get("a", args[1] if len(args) > 1 else 0)
        if kind in ("linear", "sigmoid"):
            return "lecun"
        if kind == "leaky_relu" and isinstance(slope, float) and abs(slope - math.sqrt(5)) < 0.01:
            return "default"
        return "he" if kind in ("relu", "leaky_relu") else "unknown"
    gain = kwargs.get("gain", args[1] if len(args) > 1 else 1.0)
    if gain is UNKNOWN:
        return "xavier"
    if not isinstance(gain, (int, float)):
        return "unknown"
    return "xavier" if abs(gain - 1.0) < 0.01 else "he" if abs(gain - math.sqrt(2)) < 0.02 else "unknown"
