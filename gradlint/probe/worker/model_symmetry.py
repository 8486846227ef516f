"""Weights that start all equal: whether the units behind them are still the same after a few optimizer steps."""

from __future__ import annotations

from trace import Tracer
from typing import Any, Dict, List, Mapping, Optional, Tuple

import build
import torch
from model_inputs import seed_all
from model_meter import ADAM_RATE, ADAM_STEPS, cotangent_loss
from torch import Tensor, nn

BATCH = 16
"""Samples in the batch, where the model takes so many: of a few, a unit with ReLU may see none that it lets through."""


def symmetry(recipe: build.Recipe, batch: Any, controls: Mapping[str, Any]) -> List[Dict[str, Any]]:
    """Each constant weight of more than one unit, with its gradient after :data:`ADAM_STEPS` steps of Adam on a batch.

    ``spread`` is how far the gradients of the units lie apart, over the largest; 0 for units that stay the same. None
    where no gradient reaches the weight at all, as in a layer that is not used.
    """
    if batch is not None:
        try:
            return _symmetry(recipe, max(BATCH, batch), controls)
        except RuntimeError:
            pass  # the model insists on the batch that the search found
    return _symmetry(recipe, batch, controls)


def _symmetry(recipe: build.Recipe, batch: Any, controls: Mapping[str, Any]) -> List[Dict[str, Any]]:
    model = recipe.build(0)
    constant = {name: p for name, p in model.named_parameters() if _is_constant(p)}
    if not constant:
        return []
    values = {name: float(p.detach().reshape(-1)[0]) for name, p in constant.items()}
    args, kwargs = recipe.inputs.make(batch, 0)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=ADAM_RATE)
    for _ in range(ADAM_STEPS):
        optimizer.zero_grad()
        _loss(model, args, kwargs).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    found: Tuple[Optional[Tensor], ...] = torch.autograd.grad(
        _loss(model, args, kwargs), list(constant.values()), allow_unused=True
    )
    if controls.get("stub") == "backward":
        found = tuple(None for _ in found)
    owners = dict(model.named_modules())
    return [_described(name, values[name], g, owners) for name, g in zip(constant, found)]


def _loss(model: nn.Module, args: List[Any], kwargs: Dict[str, Any]) -> Tensor:
    seed_all(2000)
    _, outputs = Tracer(model, {}).trace(args, kwargs)
    return cotangent_loss(outputs, 0)


def _is_constant(p: Tensor) -> bool:
    if nn.parameter.is_lazy(p) or not p.requires_grad or p.dim() < 2 or p.shape[0] < 2 or not p.numel():
        return False
    return bool(p.detach().min() == p.detach().max())


def _described(name: str, value: float, gradient: Optional[Tensor], owners: Mapping[str, nn.Module]) -> Dict[str, Any]:
    path, _, leaf = name.rpartition(".")
    owner = owners.get(path)
    answer: Dict[str, Any] = {"path": path if leaf == "weight" else name, "value": value, "after_steps": ADAM_STEPS}
    if gradient is None:
        return {**answer, "gradient": None, "spread": None}
    largest = float(gradient.abs().max())
    dims = [0]
    if isinstance(owner, nn.modules.conv._ConvTransposeNd):
        dims = [1]
    elif gradient.dim() == 2 and not type(owner).__module__.startswith("torch.nn"):
        dims = [0, 1]  # a matrix made by hand may stand on either side of a product
    spread = min(_spread(gradient.transpose(0, d)) for d in dims)
    return {**answer, "gradient": largest, "spread": spread / largest if largest else 0.0}


def _spread(gradient: Tensor) -> float:
    """How far the rows of a gradient lie apart."""
    rows = gradient.reshape(gradient.shape[0], -1)
    return float((rows - rows[:1]).abs().max())
