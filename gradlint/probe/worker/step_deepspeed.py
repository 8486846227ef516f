"""DeepSpeed's engine in one process: ``backward``, and a ``step`` that also clears.

After deepspeed/runtime/engine.py: at the end of a window the engine clips by its own configuration, steps and
clears. The configuration is not in the program; windows of one micro-batch are assumed.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from ghost import Ghost
from ghost_math import weights_of
from ghost_world import world
from step_optim import ASSUMED_LR
from step_patch import parameter_list
from step_wrapped import WrappedOptimizer


class Engine(torch.nn.Module):
    """A model with an optimizer inside."""

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        super().__init__()
        self.gl_name = "engine"
        self.module = model
        self.optimizer = optimizer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """That of the model."""
        return self.module(*args, **kwargs)

    def backward(self, loss: Any, *args: Any, **kwargs: Any) -> Any:
        """Goes back; scaling is the engine's own affair."""
        world().run_backward(loss)
        return loss

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Steps and clears."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or name == "module":
                raise
        return Ghost(f"engine.{name}")


def initialize(
    args: Any = None,
    model: Any = None,
    optimizer: Any = None,
    model_parameters: Any = None,
    training_data: Any = None,
    lr_scheduler: Any = None,
    **kwargs: Any,
) -> Any:
    """Engine, optimizer, loader, schedule."""
    if isinstance(model, Ghost):
        model = world().prepared(model)
    made: Optional[torch.optim.Optimizer] = optimizer if isinstance(optimizer, torch.optim.Optimizer) else None
    if made is None:
        given = [] if model_parameters is None else parameter_list(model_parameters)[0]
        chosen = [p for p in given if isinstance(p, torch.Tensor)] or weights_of(model)
        made = torch.optim.SGD([p for p in chosen if p.requires_grad], lr=ASSUMED_LR)
    return Engine(model, made), WrappedOptimizer(made), Ghost("loader"), Ghost("lr_scheduler")
