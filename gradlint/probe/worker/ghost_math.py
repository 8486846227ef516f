"""What comes of ghosts in expressions: their gradients, and operators of Python and PyTorch on them."""

from __future__ import annotations

import math
import zlib
from typing import Any, Dict, List, Optional, Tuple

import torch
from ghost import CUTS, Ghost, GhostTensor, short, words
from ghost_world import world

_SAME = words("to cuda cpu float double half bfloat16 type type_as contiguous requires_grad_ pin_memory clone")
"""With a real tensor first, these return it: only the device, type or layout was unknown."""


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
    if last in CUTS or not torch.is_grad_enabled():
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
    counted = _counted(symbol, left, right)
    if counted is not None:
        return counted
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


def _counted(symbol: str, left: Any, right: Any) -> Optional[int]:
    """``length - 1``, where the length of an accumulation window was assumed."""
    if symbol not in ("+", "-") or not ((type(left) is Ghost) ^ (type(right) is Ghost)):
        return None
    unknown, known = (left, right) if type(left) is Ghost else (right, left)
    count: Optional[int] = world().count(unknown) if type(known) is int else None
    if count is None:
        return None
    if symbol == "+":
        return count + int(known)
    return count - int(known) if unknown is left else int(known) - count


def _unary(value: Ghost) -> Any:
    if isinstance(value, GhostTensor):
        return GhostTensor(f"-{value.gl_name}", -value.gl_value)
    return Ghost(f"-{value.gl_name}")


def _modulo(self: Ghost, other: Any) -> Any:
    return binary("%", self, other)


def _reversed_modulo(self: Ghost, other: Any) -> Any:
    if isinstance(other, int):
        return other % max(1, world().modulus(self))
    if isinstance(other, str):
        return other
    return binary("%", other, self)


def _torch_function(
    cls: type, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
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
    methods: Any = Ghost
    methods.__mod__, methods.__rmod__ = _modulo, _reversed_modulo
    methods.__torch_function__ = classmethod(_torch_function)


_add_operators()
