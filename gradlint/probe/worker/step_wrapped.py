"""An optimizer as a training framework hands it back: the same one behind a fence, with the framework's scaler."""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Dict, Iterator, List, Optional

import torch
from step_grads import norm
from step_patch import Hooks, describe, own_parameters

DELEGATED = (
    "state_dict load_state_dict add_param_group register_step_pre_hook register_step_post_hook "
    "register_state_dict_pre_hook register_load_state_dict_post_hook"
)


def _open() -> bool:
    return True


def _no_scaler() -> Optional[torch.amp.GradScaler]:
    return None


class WrappedOptimizer(torch.optim.Optimizer):
    """Steps and clears the optimizer inside where ``is_open`` says so; else the call is recorded as fenced."""

    gl_wraps = True

    def __init__(  # not that of the base: it would make parameter groups of its own
        self,
        inside: torch.optim.Optimizer,
        is_open: Callable[[], bool] = _open,
        scaler: Callable[[], Optional[torch.amp.GradScaler]] = _no_scaler,
    ) -> None:
        put = object.__setattr__
        put(self, "gl_inside", inside)
        put(self, "gl_is_open", is_open)
        put(self, "gl_scaler", scaler)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """What Accelerate, Lightning and Fabric call the optimizer inside."""
        inside: torch.optim.Optimizer = self.__dict__["gl_inside"]
        return inside

    def __getattribute__(self, name: str) -> Any:
        if name in _DELEGATED_NAMES or name in ("param_groups", "state", "defaults"):
            return getattr(object.__getattribute__(self, "gl_inside"), name)
        return object.__getattribute__(self, name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["gl_inside"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("param_groups", "state", "defaults"):
            setattr(self.__dict__["gl_inside"], name, value)
        else:
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return repr(self.optimizer)

    def step(self, closure: Any = None, **kwargs: Any) -> Any:
        """That of the optimizer inside, through the framework's scaler."""
        if not self.gl_is_open():
            fenced("step", self.optimizer)
            return None
        arguments = () if closure is None else (closure,)
        scaler = self.gl_scaler()
        if scaler is None:
            return self.optimizer.step(*arguments)
        scaler.step(self.optimizer, *arguments)
        scaler.update()
        return None

    def zero_grad(self, set_to_none: Any = True) -> None:
        """That of the optimizer inside."""
        if self.gl_is_open():
            self.optimizer.zero_grad()
        else:
            fenced("zero_grad", self.optimizer)

    def train(self) -> None:
        """A mode of optimizers without a schedule."""

    eval = train

    @contextlib.contextmanager
    def toggle_model(self, sync_grad: bool = True) -> Iterator[None]:
        """Lightning's: other optimizers' parameters are none of this step's."""
        yield


_DELEGATED_NAMES = frozenset(DELEGATED.split())


def fenced(kind: str, optimizer: torch.optim.Optimizer) -> None:
    """Record a call that the framework makes nothing of."""
    recorder = Hooks.recorder
    if recorder is None:
        return
    params = own_parameters(optimizer)
    extra: Dict[str, Any] = {"norms": {}, "norms_unscaled": {}} if kind == "step" else {"cleared": 0}
    event = recorder.add(kind, object=recorder.name(optimizer, "optimizer"), fenced=True, **extra)
    size = norm(params)
    event["fresh"] = recorder.grads.fresh(params)
    if kind == "step":
        event.update(
            optimizer=type(optimizer).__name__, norm=size, norm_unscaled=size / recorder.grads.scale_of(params)
        )
    else:
        event["saw"] = size
    describe(recorder, event, params)


def unwrapped(optimizer: Any) -> Any:
    """The optimizer behind all wrappers."""
    while isinstance(optimizer, WrappedOptimizer):
        optimizer = optimizer.optimizer
    return optimizer


def optimizers_in(value: Any, depth: int = 0) -> List[torch.optim.Optimizer]:
    """The optimizers in what ``configure_optimizers`` may return, in order."""
    if isinstance(value, torch.optim.Optimizer):
        return [value]
    if isinstance(value, dict):
        return optimizers_in(value.get("optimizer"), depth + 1)
    if isinstance(value, (list, tuple)) and depth < 4:
        return [o for item in value for o in optimizers_in(item, depth + 1)]
    return []
