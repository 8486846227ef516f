"""apex's ``amp``: a loss is scaled within ``scale_loss``, and the gradients are unscaled on the way out of it.

After apex/amp/handle.py: gradients that were there before the block are kept apart, so that a window of several
blocks adds up; ``delay_unscale=True`` leaves them scaled.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Optional

import torch
from ghost import Ghost, GhostTensor
from ghost_math import binary
from step_patch import Hooks, own_parameters

SCALE = 2.0**16
"""Where dynamic loss scaling begins (apex documentation)."""


class Amp:
    """The module ``apex.amp``."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Ghost(f"amp.{name}")

    def initialize(self, models: Any, optimizers: Any = None, *args: Any, **kwargs: Any) -> Any:
        """What it was given."""
        return models if optimizers is None else (models, optimizers)

    def scale_loss(self, loss: Any, optimizers: Any, *args: Any, delay_unscale: Any = False, **kwargs: Any) -> Any:
        """A block in which ``loss`` is scaled."""
        return ScaledLoss(loss, optimizers, bool(delay_unscale) and not isinstance(delay_unscale, Ghost))

    def master_params(self, optimizer: Any) -> Iterator[Any]:
        """The parameters that an optimizer steps."""
        yield from own_parameters(optimizer)


class ScaledLoss:
    """``with amp.scale_loss(loss, optimizer) as scaled_loss``."""

    def __init__(self, loss: Any, optimizers: Any, delayed: bool) -> None:
        self.loss = loss
        self.delayed = delayed
        several = optimizers if isinstance(optimizers, (list, tuple)) else [optimizers]
        self.optimizers = [o for o in several if isinstance(o, torch.optim.Optimizer)]
        self._before: Dict[int, Optional[torch.Tensor]] = {}

    def _parameters(self) -> List[torch.Tensor]:
        return [p for o in self.optimizers for p in own_parameters(o)]

    def __enter__(self) -> Any:
        self._before = {id(p): None if p.grad is None else p.grad.detach().clone() for p in self._parameters()}
        recorder = Hooks.recorder
        if recorder is not None and self.optimizers:
            recorder.pending_scales.append(SCALE)
            recorder.add("scale", object="apex", scale=SCALE)
        if not self.optimizers:
            return self.loss
        return binary("*", self.loss, SCALE) if isinstance(self.loss, (Ghost, GhostTensor)) else self.loss * SCALE

    def __exit__(self, *details: object) -> None:
        recorder = Hooks.recorder
        if recorder is None or self.delayed or not self.optimizers:
            return
        recorder.pending_scales.clear()
        recorder.add("unscale", object="apex", optimizer=recorder.name(self.optimizers[0], "optimizer"), internal=True)
        with torch.no_grad():
            for parameter in self._parameters():
                old, grad = self._before.get(id(parameter)), parameter.grad
                if grad is not None and (old is None or not torch.equal(old, grad)):
                    grad.copy_(grad / SCALE if old is None else old + (grad - old) / SCALE)
        recorder.grads.unscaled(self._parameters())
