"""Lightning's automatic optimisation: what the trainer does round ``training_step``, on real gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Iterator

import torch
from ghost_math import weights_of

if TYPE_CHECKING:
    from step_world import RunWorld

_MODULE = "LightningModule"


def is_automatic(instance: Any, region: str) -> bool:
    """Whether ``region`` is the training step of a module that leaves its optimisation to the trainer."""
    if region != "training_step" or not isinstance(instance, torch.nn.Module):
        return False
    named = any(base.__name__ == _MODULE for base in type(instance).__mro__)
    return named and vars(instance).get("automatic_optimization", True) is not False


class Automatic:
    """The part of the trainer that follows ``training_step``."""

    def __init__(self, instance: Any, world: RunWorld) -> None:
        self.instance = instance
        self.world = world
        self.optimizer = self._configured()

    def _configured(self) -> torch.optim.Optimizer:
        try:
            made = list(_optimizers_in(self.instance.configure_optimizers()))
        except Exception as error:
            self.world.recorder.note(f"configure_optimizers(): {type(error).__name__}: {error}")
            made = []
        return made[0] if made else self.world.standins.optimizer("optimizer", weights_of(self.instance))

    def before(self, batch: Any, number: int) -> None:
        """The start of a batch."""
        self._hook("on_train_batch_start", batch, number)

    def after(self, loss: Any, batch: Any, number: int) -> None:
        """Clear, backward and step, with the hooks that the module has."""
        loss = loss.get("loss") if isinstance(loss, dict) else loss
        self._hook("on_before_zero_grad", self.optimizer)
        self.optimizer.zero_grad()
        self._hook("on_before_backward", loss)
        self.world.run_backward(loss)
        self._hook("on_after_backward")
        self._hook("on_before_optimizer_step", self.optimizer)
        self._hook("configure_gradient_clipping", self.optimizer)
        self.optimizer.step()
        self._hook("on_train_batch_end", loss, batch, number)

    def _hook(self, name: str, *args: Any) -> None:
        method = getattr(type(self.instance), name, None)
        if callable(method):
            method(self.instance, *args)


def _optimizers_in(value: Any, depth: int = 0) -> Iterator[torch.optim.Optimizer]:
    if isinstance(value, torch.optim.Optimizer):
        yield value
    elif depth < 3 and isinstance(value, (list, tuple)):
        for item in value:
            yield from _optimizers_in(item, depth + 1)
    elif depth < 3 and isinstance(value, dict):
        yield from _optimizers_in(value.get("optimizer"), depth + 1)
