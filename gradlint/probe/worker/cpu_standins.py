"""Make CUDA and multi-GPU idioms harmless on a CPU, before the user's code is loaded.

``.cuda()`` and ``.to("cuda")`` do nothing, ``device=`` arguments that name an accelerator mean the CPU. A CUDA
``GradScaler`` would disable itself on a CPU and so hide a fault: it becomes the CPU's, with the user's arguments.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any, Callable, Iterator, List, Tuple

import torch
from torch import nn

_ACCELERATORS = ("cuda", "mps", "xpu", "npu", "hpu", "tpu", "xla", "mlu", "musa", "hip")
_FACTORIES = (
    "tensor as_tensor zeros ones empty full rand randn randint arange linspace logspace eye zeros_like ones_like "
    "empty_like full_like rand_like randn_like randint_like randperm normal tril_indices triu_indices scalar_tensor "
    "asarray empty_strided hann_window hamming_window complex"
)
_NEW = "new_zeros new_ones new_empty new_full new_tensor"


def on_cpu(value: Any) -> Any:
    """``value``, or the CPU where it names an accelerator."""
    if isinstance(value, torch.device) and value.type in _ACCELERATORS:
        return torch.device("cpu")
    if isinstance(value, str) and value.split(":")[0] in _ACCELERATORS:
        return "cpu" if type(value) is str else value
    return value


class StandIns:
    """The patches, and how to undo them."""

    def __init__(self) -> None:
        self._undo: List[Tuple[Any, str, Any]] = []

    def put(self, owner: Any, name: str, value: Any) -> None:
        """Replace ``owner.name`` where it exists."""
        if hasattr(owner, name):
            self._undo.append((owner, name, owner.__dict__.get(name, getattr(owner, name))))
            setattr(owner, name, value)

    def remove(self) -> None:
        """Put everything back."""
        while self._undo:
            owner, name, value = self._undo.pop()
            setattr(owner, name, value)


@contextlib.contextmanager
def on_a_cpu() -> Iterator[StandIns]:
    """Install all stand-ins for the length of a block."""
    patches = install()
    try:
        yield patches
    finally:
        patches.remove()


def install() -> StandIns:
    """Install all stand-ins. Returns what undoes them."""
    patches = StandIns()
    _moves(patches)
    _factories(patches)
    _queries(patches)
    _amp(patches)
    _wrappers(patches)
    return patches


def _first(value: Any, *args: Any, **kwargs: Any) -> Any:
    return value


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _without_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with accelerators replaced among its arguments."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        device = kwargs.get("device")
        if device is not None:
            kwargs["device"] = "cpu" if isinstance(device, int) else on_cpu(device)
        return function(*args, **kwargs)

    return call


def _moved(function: Callable[..., Any]) -> Callable[..., Any]:
    """``.to``: the device may be an argument by place; a bare number is a GPU's."""

    @functools.wraps(function)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        args = tuple(torch.device("cpu") if type(a) is int and i == 0 else on_cpu(a) for i, a in enumerate(args))
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu") if isinstance(kwargs["device"], int) else on_cpu(kwargs["device"])
        return function(self, *args, **kwargs)

    return call


def _moves(patches: StandIns) -> None:
    for owner in (nn.Module, torch.Tensor):
        for name in ("cuda", "xpu"):
            patches.put(owner, name, _first)
        patches.put(owner, "to", _moved(owner.to))
    patches.put(torch.Tensor, "pin_memory", _first)


def _factories(patches: StandIns) -> None:
    for name in _FACTORIES.split():
        if hasattr(torch, name):
            patches.put(torch, name, _without_device(getattr(torch, name)))
    for name in _NEW.split():
        patches.put(torch.Tensor, name, _without_device(getattr(torch.Tensor, name)))
    patches.put(torch, "set_default_device", _nothing)


def _queries(patches: StandIns) -> None:
    cuda = torch.cuda
    for name in ("synchronize", "empty_cache", "set_device", "manual_seed", "manual_seed_all", "init"):
        patches.put(cuda, name, _nothing)
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "current_device"):
        patches.put(cuda, name, lambda *args, **kwargs: 0)
    patches.put(cuda, "reset_peak_memory_stats", _nothing)


def _amp(patches: StandIns) -> None:
    scaler, autocast = torch.amp.GradScaler, torch.autocast

    class CpuGradScaler(scaler):  # type: ignore[misc, valid-type]
        """Any ``GradScaler``, on the CPU."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("device", None)
            if args and isinstance(args[0], (str, torch.device)):
                args = args[1:]
            super().__init__("cpu", *args, **kwargs)

    class CpuAutocast(autocast):  # type: ignore[misc, valid-type]
        """Any autocast region: on the CPU, where float32 stays float32."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__("cpu", enabled=False)

    patches.put(torch.amp, "GradScaler", CpuGradScaler)
    patches.put(torch.cuda.amp, "GradScaler", CpuGradScaler)
    patches.put(torch.cuda.amp.grad_scaler, "GradScaler", CpuGradScaler)
    for owner in (torch, torch.amp):
        patches.put(owner, "autocast", CpuAutocast)
    patches.put(torch.cuda.amp, "autocast", CpuAutocast)


def _wrappers(patches: StandIns) -> None:
    """One process, one device, no scripting, no recomputation: each gives back what it was given."""
    import torch.utils.checkpoint as checkpoint

    patches.put(torch, "compile", _identity_decorator)
    patches.put(torch.jit, "script", _identity_decorator)
    patches.put(torch.jit, "script_if_tracing", _identity_decorator)
    for owner, name in ((nn, "DataParallel"), (nn.parallel, "DataParallel"), (nn.parallel, "DistributedDataParallel")):
        patches.put(owner, name, _Unwrapped)
    patches.put(checkpoint, "checkpoint", _run)
    patches.put(checkpoint, "checkpoint_sequential", lambda functions, segments, x, **_: _in_turn(functions, x))
    patches.put(nn.SyncBatchNorm, "forward", nn.BatchNorm2d.forward)


class _Unwrapped:
    """A wrapper that is not there: still a class, for ``isinstance``."""

    def __new__(cls, module: Any, *args: Any, **kwargs: Any) -> Any:
        return module


def _identity_decorator(function: Any = None, *args: Any, **kwargs: Any) -> Any:
    return function if function is not None else lambda f: f


def _run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    for name in ("use_reentrant", "preserve_rng_state", "context_fn", "determinism_check", "debug", "early_stop"):
        kwargs.pop(name, None)
    return function(*args, **kwargs)


def _in_turn(functions: Any, value: Any) -> Any:
    for function in functions.children() if isinstance(functions, nn.Module) else functions:
        value = function(value)
    return value
