"""Makes PyTorch's own classes put up with ghosts among their arguments, and keeps them off files and processes.

Installed once per process. Without ghosts among the arguments everything is as it was.
"""

from __future__ import annotations

import functools
import inspect
import time
from argparse import ArgumentParser, Namespace
from typing import Any, Callable, List, Sequence, Tuple

import step_tensors
import torch
import torch.multiprocessing
from ghost import Ghost, words
from ghost_math import combine, gradients_in, holds_ghost, is_tensor, weights_of
from ghost_modules import GhostModule, attribute_of
from ghost_world import world
from step_consume import Watched
from step_optim import ASSUMED_LR
from step_patch import Hooks, consuming, parameter_list, thaw
from step_same import seed as seed_all


class _State:
    installed = False
    user_modules: Callable[[str], bool] = staticmethod(lambda name: False)
    depth = 0


def install(is_user_module: Callable[[str], bool]) -> None:
    """Replace what has to be replaced; ``is_user_module`` tells names of sliced modules."""
    _State.user_modules = is_user_module
    if _State.installed:
        return
    _State.installed = True
    _tolerant_modules()
    _tolerant_optimizers()
    _tolerant_schedulers()
    _tolerant_loader()
    _tolerant_arguments()
    _tolerant_scaler()
    step_tensors.install()
    _harmless()


# modules


def _tolerant_modules() -> None:
    module: Any = torch.nn.Module
    real_call = module.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if Hooks.recorder is None:
            return real_call(self, *args, **kwargs)
        own = _State.user_modules(type(self).__module__)
        unknown = holds_ghost(args) or holds_ghost(kwargs)
        trained = _State.depth == 0 and bool(weights_of(self))
        if unknown and trained and not hasattr(self, "gl_name"):
            Hooks.recorder.unknown_inputs = True
        if unknown and not own and not _runs_on_ghosts(self):
            return combine(type(self).__name__, (self, *args), kwargs)
        if trained:
            Hooks.recorder.add("forward", object=Hooks.recorder.name(self, "module"))
        _State.depth += 1
        try:
            result = real_call(self, *args, **kwargs)
        finally:
            _State.depth -= 1
        if own and _State.depth == 0 and isinstance(result, Ghost) and not gradients_in(result):
            return combine(type(self).__name__, (self, *args), kwargs)
        return result

    module.__call__ = call
    for name in ("to", "load_state_dict", "type", "to_empty"):
        setattr(module, name, _unless_ghost(getattr(module, name)))
    for name in ("to", "type", "cuda", "view_as", "type_as", "expand_as"):
        setattr(torch.Tensor, name, _unless_ghost(getattr(torch.Tensor, name)))


def _runs_on_ghosts(module: torch.nn.Module) -> bool:
    """Containers run their children one by one; stand-ins know ghosts."""
    return isinstance(module, torch.nn.Sequential) or hasattr(module, "gl_name")


def _unless_ghost(real: Callable[..., Any]) -> Callable[..., Any]:
    """The method, or ``self`` as it is when an argument is unknown."""

    @functools.wraps(real)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if holds_ghost(args) or holds_ghost(kwargs):
            return self
        return real(self, *args, **kwargs)

    return method


# optimizers


_OF_WRAPPERS = words(
    "backward clip_master_grads clip_grad_norm clip_grads first_step second_step step_and_update_lr pc_backward "
    "synchronize skip_synchronize update_master_grads update_lr set_lr get_lr multiply_grads"
)
"""Methods of optimizers that wrap others (apex, fairseq, Horovod, SAM): an optimizer may stand for one."""


def _tolerant_optimizers() -> None:
    def __getattr__(self: Any, name: str) -> Any:
        if name not in _OF_WRAPPERS or Hooks.recorder is None:
            raise AttributeError(name)
        ghost = Ghost(f"optimizer.{name}")
        object.__setattr__(ghost, "gl_extra", self)
        return ghost

    torch.optim.Optimizer.__getattr__ = __getattr__  # type: ignore[attr-defined]
    for kind in _subclasses(torch.optim.Optimizer):
        if "__init__" in vars(kind) and kind.__module__.startswith("torch."):
            kind.__init__ = _with_real_arguments(kind.__init__)


def _subclasses(kind: Any) -> List[Any]:
    found = list(kind.__subclasses__())
    return found + [s for k in found for s in _subclasses(k)]


def _with_real_arguments(real: Callable[..., Any]) -> Callable[..., Any]:
    names = list(inspect.signature(real).parameters)[1:]

    @functools.wraps(real)
    def init(self: Any, params: Any = (), *args: Any, **kwargs: Any) -> None:
        kwargs.update({names[1 + i]: value for i, value in enumerate(args)})
        unknown = {k: v for k, v in kwargs.items() if holds_ghost(v)}
        for name, value in unknown.items():
            del kwargs[name]
            if name == "lr":
                kwargs["lr"] = Hooks.number(value, ASSUMED_LR)
        try:
            if Hooks.recorder is not None:
                thaw()
            with consuming(Hooks.recorder, "optimizer"):
                real(self, _real_groups(params), **kwargs)
        except Exception as error:
            if isinstance(params, Watched) and params.last is not None:
                params.last["error"] = f"{type(error).__name__}: {error}"[:200]
            raise

    return init


_DEFAULTED = words(
    "lr weight_decay momentum dampening nesterov betas alpha eps amsgrad centered maximize foreach fused "
    "differentiable capturable lr_decay initial_accumulator_value"
)
"""Options of PyTorch's optimizers: one that is not known has its default."""


def _real_groups(params: Any) -> Any:
    if not isinstance(params, (list, tuple)) and not isinstance(params, (Ghost, torch.nn.Module)):
        if isinstance(params, torch.Tensor):
            return params
        params = list(params)
    if isinstance(params, (list, tuple)) and any(isinstance(p, dict) for p in params):
        groups = []
        for group in params:
            if isinstance(group, dict):
                plain = {k: v for k, v in group.items() if k not in _DEFAULTED or not isinstance(v, Ghost)}
                plain = {k: float(v) if isinstance(v, Ghost) and k != "params" else v for k, v in plain.items()}
                groups.append({**plain, "params": parameter_list(group.get("params", ()))[0]})
        return groups
    if not holds_ghost(params) and not isinstance(params, torch.nn.Module):
        return params
    tensors = {id(p): p for p in parameter_list(params)[0]}
    return [p for p in tensors.values() if p.requires_grad or not p.is_leaf]


def _tolerant_schedulers() -> None:
    base = getattr(torch.optim.lr_scheduler, "LRScheduler", None)
    kinds = [base, *_subclasses(base)] if base is not None else []
    for kind in [*kinds, torch.optim.lr_scheduler.ReduceLROnPlateau]:
        if "__init__" in vars(kind):
            kind.__init__ = _refusing_ghosts(kind.__init__)


def _refusing_ghosts(real: Callable[..., Any]) -> Callable[..., Any]:
    """A schedule of unknown numbers is unknown itself: the statement that makes it binds a ghost."""

    @functools.wraps(real)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if holds_ghost(args) or holds_ghost(kwargs):
            raise TypeError("unknown arguments")
        real(self, *args, **kwargs)

    return init


# data


def _tolerant_loader() -> None:
    loader = torch.utils.data.DataLoader
    real = loader.__init__
    names = list(inspect.signature(real).parameters)[2:]

    @functools.wraps(real)
    def init(self: Any, dataset: Any, *args: Any, **kwargs: Any) -> None:
        kwargs.update({names[i]: value for i, value in enumerate(args)})
        if isinstance(dataset, Ghost):
            raise TypeError("unknown data set")
        for name in ("num_workers", "pin_memory", "prefetch_factor", "persistent_workers", "multiprocessing_context"):
            kwargs.pop(name, None)
        kwargs.pop("worker_init_fn", None)
        unknown = [k for k, v in kwargs.items() if isinstance(v, Ghost)]
        for name in unknown:
            kwargs.pop(name)
        if "batch_size" in unknown:
            kwargs["batch_size"] = 4
        real(self, dataset, **kwargs)

    loader.__init__ = init  # type: ignore[method-assign]


# arguments of the program


class _OpenNamespace(Namespace):
    """Parsed arguments; one whose declaration is not in the slice is a ghost."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = attribute_of(self, name)
        if isinstance(value, Ghost) and value.gl_name.startswith("self."):
            object.__setattr__(value, "gl_name", "args" + value.gl_name[4:])
            object.__setattr__(value, "gl_key", "args" + value.gl_key[4:])
        return value


def _tolerant_arguments() -> None:
    def parse(self: Any, args: Any = None, namespace: Any = None) -> Any:
        result = _OpenNamespace()
        for action in self._actions:
            if action.dest in ("help", "==SUPPRESS=="):
                continue
            value = action.default
            if isinstance(value, str) and action.type is not None:
                try:
                    value = self._get_value(action, value)
                except Exception:
                    # the program's own converter, on a default it may refuse
                    value = action.default
            if not value or isinstance(value, bool):
                # switched off by default, or a switch: a call of the program may say otherwise
                value = Ghost(f"args.{action.dest}", hint=value)
            setattr(result, action.dest, value)
        return result

    def parse_known(self: Any, args: Any = None, namespace: Any = None) -> Tuple[Any, List[str]]:
        return parse(self, args, namespace), []

    parser: Any = ArgumentParser
    parser.parse_args = parse
    parser.parse_known_args = parse_known


# loss scaling


def _tolerant_scaler() -> None:
    kind = torch.amp.GradScaler
    real = kind.__init__

    @functools.wraps(real)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        enabled = kwargs.get("enabled", True)
        if isinstance(enabled, Ghost):
            kwargs["enabled"] = world().asked(enabled)
        plain = {k: v for k, v in kwargs.items() if not isinstance(v, Ghost)}
        real(self, *[a for a in args if not isinstance(a, Ghost)], **plain)

    kind.__init__ = init  # type: ignore[method-assign]


# the rest


def _identity(value: Any = None, *args: Any, **kwargs: Any) -> Any:
    return value if value is not None else _identity


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _harmless() -> None:
    library: Any = torch
    clock: Any = time
    clock.sleep = _nothing
    library.is_tensor = is_tensor
    library.save = _nothing
    library.load = lambda *_, **__: Ghost("torch.load()")
    library.jit.script = library.jit.trace = _identity
    library.quantization.quantize_dynamic = library.ao.quantization.quantize_dynamic = _identity
    library.autograd.set_detect_anomaly = lambda *_, **__: Ghost("anomaly")
    library.nn.parallel.DistributedDataParallel = _Wrapped
    library.nn.parallel.DataParallel = library.nn.DataParallel = _Wrapped
    library.nn.SyncBatchNorm.convert_sync_batchnorm = staticmethod(_identity)
    library.utils.tensorboard = GhostModule("torch.utils.tensorboard")
    distributed = library.distributed
    for name in ("init_process_group", "barrier", "all_reduce", "broadcast", "destroy_process_group"):
        setattr(distributed, name, _nothing)
    distributed.get_rank = lambda *_, **__: 0
    distributed.get_world_size = lambda *_, **__: 1
    distributed.is_initialized = lambda: False
    library.multiprocessing.spawn = _spawn


def _spawn(fn: Callable[..., Any], args: Sequence[Any] = (), *rest: Any, **kwargs: Any) -> Any:
    """One process, this one."""
    return fn(0, *args)


class _Wrapped(torch.nn.Module):
    """A data parallel wrapper that is just a wrapper."""

    def __new__(cls, module: Any, *args: Any, **kwargs: Any) -> Any:
        """An unknown module stays what it is."""
        return module if isinstance(module, Ghost) else super().__new__(cls)

    def __init__(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.gl_name = "parallel"
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """That of the module."""
        return self.module(*args, **kwargs)

    def no_sync(self) -> Any:
        """Nothing to synchronise."""
        return Ghost("no_sync()")


def start(seed: int = 0) -> None:
    """Bring the process back to a known state before a path."""
    seed_all(seed)
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    _State.depth = 0
