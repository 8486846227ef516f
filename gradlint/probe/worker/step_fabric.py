"""Lightning Fabric in one process: set up, backward, clipping; and the optimizers of Lightning's manual optimisation.

After lightning/fabric/fabric.py and wrappers.py (2.6): nothing is fenced and nothing divided; ``clip_gradients``
clips the parameters of the optimizer, unscaled before it where the precision is 16-mixed.
"""

from __future__ import annotations

import contextlib
from typing import Any, Dict, Iterator, List, Optional

import torch
from ghost import Ghost
from ghost_math import weights_of
from ghost_world import world
from step_patch import own_parameters
from step_wrapped import WrappedOptimizer, unwrapped


class Fabric:
    """As it is in one process."""

    def __init__(self, *args: Any, precision: Any = None, **kwargs: Any) -> None:
        self.scaler: Optional[torch.amp.GradScaler] = None
        if not isinstance(precision, Ghost) and precision in (16, "16", "16-mixed"):
            self.scaler = torch.amp.GradScaler("cpu")
        self.device = torch.device("cpu")
        self.world_size = 1
        self.global_rank = self.local_rank = self.node_rank = 0
        self.is_global_zero = True
        self._ghosts: Dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_ghosts":
            raise AttributeError(name)
        if name not in self._ghosts:
            self._ghosts[name] = Ghost(f"fabric.{name}")
        return self._ghosts[name]

    def launch(self, function: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Here and now; a function gets the fabric first."""
        return function(self, *args, **kwargs) if callable(function) and not isinstance(function, Ghost) else None

    def setup(self, *objects: Any, **kwargs: Any) -> Any:
        """The objects, optimizers wrapped."""
        made = tuple(self._wrapped(o) for o in objects)
        return made[0] if len(made) == 1 else made

    setup_module = setup_optimizers = setup_dataloaders = setup

    def _wrapped(self, thing: Any) -> Any:
        if isinstance(thing, Ghost):
            thing = world().prepared(thing)
        if not isinstance(thing, torch.optim.Optimizer) or isinstance(thing, WrappedOptimizer):
            return thing
        return WrappedOptimizer(thing, scaler=lambda: self.scaler)

    def backward(self, tensor: Any, *args: Any, **kwargs: Any) -> None:
        """Scales where the precision asks for it, and goes back."""
        world().run_backward(tensor, 1, self.scaler)

    def clip_gradients(
        self,
        module: Any,
        optimizer: Any,
        clip_val: Any = None,
        max_norm: Any = None,
        norm_type: Any = 2.0,
        error_if_nonfinite: Any = True,
    ) -> Any:
        """A clip of the optimizer's parameters."""
        inside = unwrapped(optimizer)
        if self.scaler is not None and isinstance(inside, torch.optim.Optimizer):
            self.scaler.unscale_(inside)
        holder = inside if isinstance(inside, torch.optim.Optimizer) else module
        return clip_optimizer(holder, clip_val, max_norm, norm_type)

    @contextlib.contextmanager
    def no_backward_sync(self, module: Any = None, enabled: Any = True) -> Iterator[None]:
        """Nothing in one process."""
        yield

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Single precision stays what it is."""
        yield

    init_module = init_tensor = sharded_model = rank_zero_first = autocast

    def to_device(self, thing: Any) -> Any:
        """It is there already."""
        return thing

    all_gather = all_reduce = broadcast = to_device

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is printed."""

    barrier = log = log_dict = save = call = print


def clip_optimizer(holder: Any, value: Any, max_norm: Any, norm_type: Any = 2.0) -> Any:
    """The clip of all parameters of an optimizer (or model), by value or by norm."""
    parameters: Any = holder
    if isinstance(holder, torch.optim.Optimizer):
        parameters = own_parameters(holder)
    elif isinstance(holder, torch.nn.Module):
        parameters = weights_of(holder)
    if value is not None:
        return torch.nn.utils.clip_grad_value_(parameters, value)
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)


class Toggled:
    """Which parameters Lightning's ``toggle_optimizer`` switched off."""

    def __init__(self, optimizers: List[torch.optim.Optimizer]) -> None:
        self.optimizers = [unwrapped(o) for o in optimizers]
        self._before: Dict[int, bool] = {}

    def on(self, optimizer: Any) -> None:
        """Only this optimizer's parameters get gradients."""
        parameters = [p for o in self.optimizers for p in own_parameters(o)]
        self._before = {id(p): p.requires_grad for p in parameters}
        mine = {id(p) for p in own_parameters(optimizer)}
        for parameter in parameters:
            parameter.requires_grad_(self._before[id(parameter)] and id(parameter) in mine)

    def __enter__(self) -> Toggled:
        return self

    def __exit__(self, *details: object) -> None:
        self.off()

    def off(self) -> None:
        """All get them again."""
        for parameter in (p for o in self.optimizers for p in own_parameters(o)):
            parameter.requires_grad_(self._before.get(id(parameter), parameter.requires_grad))
