"""Makes the functions that create tensors, and derivatives, put up with unknowns and with what is far too large."""

from __future__ import annotations

import functools
import math
import sys
import types
from typing import Any, Callable

import torch
from ghost import Ghost
from ghost_math import combine, gradients_in, holds_ghost
from step_patch import Hooks, parameter_list

MAX_ENTRIES = 32_000_000
"""Entries of one tensor that a program may make; a larger one is unknown."""
_SIZED = "zeros ones empty full rand randn"


def install() -> None:
    """Replace the functions. Call once."""
    _tolerant_grad()
    _tolerant_factories()
    _gpu()
    for name in _SIZED.split():
        setattr(torch, name, _bounded(getattr(torch, name), name))


def _gpu() -> None:
    """Whether there is a GPU is unknown to the program, and only to it; types of its tensors are those of a CPU's."""
    cuda: Any = torch.cuda
    available, count = cuda.is_available, cuda.device_count

    def is_available() -> Any:
        return Ghost("torch.cuda.is_available()") if _asked_by_program() else available()

    def device_count() -> Any:
        return 1 if _asked_by_program() else count()

    cuda.is_available, cuda.device_count = is_available, device_count
    for name in ["Float", "Double", "Half", "Long", "Int", "Short", "Byte", "Bool"]:
        setattr(cuda, f"{name}Tensor", getattr(torch, f"{name}Tensor"))


def _asked_by_program() -> bool:
    recorder = Hooks.recorder
    return recorder is not None and sys._getframe(2).f_code.co_filename in recorder.files


def _bounded(real: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(real)
    def make(*args: Any, **kwargs: Any) -> Any:
        sizes = args[0] if args and isinstance(args[0], (tuple, list)) else args
        numbers = [s for s in (kwargs.get("size", sizes) if not args else sizes) if type(s) is int]
        if math.prod(numbers) > MAX_ENTRIES:
            return Ghost(f"{name}()")
        return real(*args, **kwargs)

    return make


def _tolerant_factories() -> None:
    """A tensor of data that holds unknowns is unknown; PyTorch would look for a sequence in them."""
    library: Any = torch
    for owner, name in ((library, "tensor"), (library, "as_tensor"), (library, "asarray"), (library, "from_numpy")):
        setattr(owner, name, _unknown_of_unknown(getattr(owner, name), name))
    tensor: Any = torch.Tensor
    tensor.new_tensor = _unknown_of_unknown(tensor.new_tensor, "new_tensor")
    parameter: Any = torch.nn.Parameter
    real = parameter.__new__

    def new(cls: Any, data: Any = None, *args: Any, **kwargs: Any) -> Any:
        if isinstance(data, Ghost):
            data = torch.full((1,), 0.1)
        return real(cls, data, *args, **{k: v for k, v in kwargs.items() if not isinstance(v, Ghost)})

    parameter.__new__ = staticmethod(new)


def _unknown_of_unknown(real: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(real)
    def make(*args: Any, **kwargs: Any) -> Any:
        if holds_ghost(args):
            return combine(name, args, {})
        return real(*args, **{k: v for k, v in kwargs.items() if not isinstance(v, Ghost)})

    return make


def _tolerant_grad() -> None:
    real = torch.autograd.grad

    @functools.wraps(real)
    def grad(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if Hooks.recorder is None or not (holds_ghost(outputs) or holds_ghost(inputs)):
            return real(outputs, inputs, *args, **kwargs)
        single = isinstance(inputs, torch.Tensor) or not isinstance(inputs, (list, tuple, types.GeneratorType, Ghost))
        wanted = parameter_list(inputs)[0] if isinstance(inputs, Ghost) else [inputs] if single else list(inputs)
        parts = gradients_in(outputs)
        if not parts or any(not isinstance(w, torch.Tensor) for w in wanted):
            # a derivative by an unknown: still something that depends on all that the output does
            return combine("grad", (outputs,), {})
        create = bool(kwargs.get("create_graph"))
        found = real(parts, wanted, retain_graph=True, create_graph=create, allow_unused=True)
        return tuple(torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found))

    torch.autograd.grad = grad
