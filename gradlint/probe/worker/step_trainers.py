"""What a framework's trainer does round ``training_step``, on real gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Iterator, Mapping, Optional, Union

import torch
from ghost_math import weights_of

if TYPE_CHECKING:
    from step_world import RunWorld

_STEP = "training_step"


def trainer_of(instance: Any, region: str, world: RunWorld) -> Optional[Union[Automatic, Transformers]]:
    """The trainer that takes the step after ``region``; None if the region takes its own."""
    if region != _STEP:
        return None
    names = {base.__name__ for base in type(instance).__mro__[1:]}
    if isinstance(instance, torch.nn.Module) and "LightningModule" in names:
        by_hand = vars(instance).get("automatic_optimization", True) is False
        return None if by_hand else Automatic(instance, world)
    if any(name.endswith("Trainer") for name in names) and not world.flow.steps:
        return Transformers(instance, world)
    return None


class Transformers:
    """The Trainer of transformers: its step has run the backward, the optimizer follows."""

    def __init__(self, instance: Any, world: RunWorld) -> None:
        self.instance = instance
        self.world = world
        self.optimizer: Optional[torch.optim.Optimizer] = None

    def before(self, given: Mapping[str, Any], number: int) -> None:
        """The start of a batch."""

    def after(self, loss: Any, given: Mapping[str, Any], number: int) -> None:
        """Step and clear."""
        if self.optimizer is None:
            models = [value for value in given.values() if isinstance(value, torch.nn.Module)]
            weights = [p for model in models for p in weights_of(model)] or self.world.unknown_parameters()
            self.optimizer = self.world.standins.optimizer("self.optimizer", weights)
        self.optimizer.step()
        self.optimizer.zero_grad()


class Automatic:
    """Lightning's automatic optimisation: the trainer runs backward too."""

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

    def before(self, given: Mapping[str, Any], number: int) -> None:
        """The start of a batch."""
        self._hook("on_train_batch_start", next(iter(given.values()), None), number)

    def after(self, loss: Any, given: Mapping[str, Any], number: int) -> None:
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
        self._hook("on_train_batch_end", loss, next(iter(given.values()), None), number)

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
