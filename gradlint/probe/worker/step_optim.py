"""Records optimizer steps, by hooks that PyTorch calls for every optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Tuple

import step_remedy
import torch
from ghost import Ghost, GhostTensor
from ghost_math import holds_ghost
from step_grads import norm
from step_patch import Hooks, describe, own_parameters
from step_record import DELTA_LIMIT, Event, Recorder
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

ASSUMED_LR = 1e-3


def install() -> None:
    """Register the hooks. Call once."""
    for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        kind([torch.nn.Parameter(torch.zeros(1))])  # the first instance of a class wraps its step: not the user's doing
    register_optimizer_step_pre_hook(_before_step)
    register_optimizer_step_post_hook(_after_step)


def start() -> None:
    """Forget steps that never ended."""
    _OPEN_STEPS.clear()


MAX_EVALUATIONS = {"max_iter": 3, "max_eval": 4}
"""What one step of LBFGS may do: a few evaluations of the closure show what it does."""


def make_groups_real(optimizer: Optimizer) -> None:
    """A learning rate that a schedule or the program set to an unknown becomes a number again; long steps get short."""
    for group in optimizer.param_groups:
        for name, value in list(group.items()):
            if name != "params" and holds_ghost(value):
                default = optimizer.defaults.get(name)
                group[name] = ASSUMED_LR if default is None or holds_ghost(default) else default
        for name, most in MAX_EVALUATIONS.items():
            if type(group.get(name)) is int:
                group[name] = min(group[name], most)


@dataclass
class _OpenStep:
    """A step under way."""

    optimizer: Any
    event: Event
    weights: Dict[int, torch.Tensor]
    rates: List[Any]
    """Learning rates that were replaced by 0."""


_OPEN_STEPS: List[_OpenStep] = []
"""Steps under way, innermost last: an optimizer may wrap another."""


def _before_step(optimizer: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
    recorder = Hooks.recorder
    if recorder is None:
        return None
    make_groups_real(optimizer)
    params = own_parameters(optimizer)
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    weights: Dict[int, torch.Tensor] = {}
    if sum(p.numel() for p in params) <= DELTA_LIMIT:
        weights = {id(p): p.detach().clone() for p in params}
    rates = _stand_still(optimizer) if recorder.same is not None else []
    if isinstance(closure, Ghost) or closure is None:
        step_remedy.before_step(recorder, params)
        event = step_event(recorder, optimizer, params)
        _OPEN_STEPS.append(_OpenStep(optimizer, event, weights, rates))
        return (args[:1], {k: v for k, v in kwargs.items() if k != "closure"})
    event = {}
    _OPEN_STEPS.append(_OpenStep(optimizer, event, weights, rates))
    counted = _counted(recorder, optimizer, params, event, closure)
    if len(args) > 1:
        return ((args[0], counted, *args[2:]), kwargs)
    return (args, {**kwargs, "closure": counted})


def _stand_still(optimizer: Any) -> List[Any]:
    """Set the learning rates to 0; what they were."""
    rates = [group.get("lr") for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        if "lr" in group:
            group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], torch.Tensor) else 0.0
    return rates


def _counted(
    recorder: Recorder, optimizer: Any, params: List[torch.Tensor], event: Event, closure: Callable[[], Any]
) -> Callable[[], Any]:
    """The closure, followed by a step event: what it leaves in the gradients is what the optimizer uses."""
    count = [0]

    def evaluate() -> Any:
        loss = closure()
        step_remedy.before_step(recorder, params)
        new = step_event(recorder, optimizer, params, evaluation=count[0])
        if not count[0]:
            event.update(new)
        count[0] += 1
        if isinstance(loss, Ghost):
            return loss.gl_value.detach() if isinstance(loss, GhostTensor) else torch.zeros(())
        return torch.zeros(()) if loss is None else loss

    return evaluate


def step_event(recorder: Recorder, optimizer: Any, params: List[torch.Tensor], **extra: Any) -> Event:
    """Record a step with the gradients as they are now: they are used from here on."""
    grads = recorder.grads
    name = recorder.name(optimizer, "optimizer")
    raw, plain = grads.norms(params)
    event = recorder.add("step", object=name, norms=raw, norms_unscaled=plain, **extra)
    event["optimizer"] = type(optimizer).__name__
    event["norm"] = norm(params)
    event["norm_unscaled"] = event["norm"] / grads.scale_of(params)
    event["scaled"] = grads.scale_of(params) != 1.0
    event["fresh"] = grads.fresh(params)
    event["no_gradients"] = all(p.grad is None for p in params)
    event.update(grads.at_step(name, params))
    describe(recorder, event, params)
    if recorder.pending_step is not None:
        event["via"] = recorder.pending_step
    recorder.steps += 1
    recorder.pending_scales.clear()
    grads.used(name, params)
    return event


def _after_step(optimizer: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
    if Hooks.recorder is None or not _OPEN_STEPS or _OPEN_STEPS[-1].optimizer is not optimizer:
        return
    done = _OPEN_STEPS.pop()
    for group, rate in zip(optimizer.param_groups, done.rates):
        if rate is not None:
            group["lr"] = rate
    largest: Optional[float] = None
    with torch.no_grad():
        for parameter in own_parameters(optimizer):
            old = done.weights.get(id(parameter))
            if old is not None and old.shape == parameter.shape:
                moved = float((parameter - old).abs().max()) if old.numel() else 0.0
                if moved and Hooks.recorder.same is not None:
                    parameter.copy_(old)  # some move without a learning rate
                    moved = 0.0
                largest = max(largest or 0.0, moved)
    done.event["delta"] = largest
    step_remedy.after_step(Hooks.recorder, optimizer.zero_grad)
