"""Puts recorders round PyTorch's own functions: clip, backward, optimizer step, clearing, loss scaling.

The functions are replaced once per process, before any user code is imported, in the modules where they are
defined and in those that re-export them; every alias a program makes is then the recorded one. With no
recorder set they behave as they always did.
"""

from __future__ import annotations

import functools
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import torch
from ghost import Ghost, GhostTensor, gradients_in, holds_ghost
from step_record import DELTA_LIMIT, KEYS_SHOWN, Event, Recorder, norm
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

ASSUMED_LR = 1e-3


class Hooks:
    """The recorder in charge, and what to do with parameters that are unknown."""

    recorder: Optional[Recorder] = None
    unknown_parameters: Callable[[], List[torch.Tensor]] = staticmethod(list)
    number: Callable[[Any, float], float] = staticmethod(lambda value, default: float(value))
    installed = False


def install() -> None:
    """Replace the functions. Calling it again does nothing."""
    if Hooks.installed:
        return
    Hooks.installed = True
    _patch_clips()
    _patch_backward()
    _patch_zero_grad()
    _patch_optimizer()


def parameter_list(value: Any) -> Tuple[List[torch.Tensor], bool]:
    """The tensors of a clip's or optimizer's first argument, and whether they are known."""
    if isinstance(value, Ghost):
        return Hooks.unknown_parameters(), False
    if isinstance(value, torch.Tensor):
        return [value], True
    if isinstance(value, torch.nn.Module):
        return list(value.parameters()), True
    tensors: List[torch.Tensor] = []
    known = True
    for item in value:
        if isinstance(item, Ghost):
            known = False
        elif isinstance(item, dict):
            inner, inner_known = parameter_list(item.get("params", ()))
            tensors.extend(inner)
            known = known and inner_known
        elif isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], torch.Tensor):
            tensors.append(item[1])
        else:
            tensors.append(item)
    return (tensors, known) if known or tensors else (Hooks.unknown_parameters(), False)


def own_parameters(optimizer: Optimizer) -> List[torch.Tensor]:
    """All parameters an optimizer steps."""
    return [p for group in optimizer.param_groups for p in group["params"]]


# clips


def _patch_clips() -> None:
    module = torch.nn.utils.clip_grad
    for name, by_value in (("clip_grad_norm_", False), ("clip_grad_norm", False), ("clip_grad_value_", True)):
        real = getattr(module, name, None)
        if real is None:
            continue
        wrapped = _recorded_clip(real, by_value)
        setattr(module, name, wrapped)
        if hasattr(torch.nn.utils, name):
            setattr(torch.nn.utils, name, wrapped)
    real = getattr(module, "clip_grads_with_norm_", None)
    if real is not None:
        wrapped = _recorded_clip(real, False, with_norm=True)
        for holder in (module, torch.nn.utils):
            setattr(holder, "clip_grads_with_norm_", wrapped)  # noqa: B010  (absent before torch 2.6)


def _recorded_clip(real: Callable[..., Any], by_value: bool, with_norm: bool = False) -> Callable[..., Any]:
    @functools.wraps(real)
    def clip(parameters: Any, *args: Any, **kwargs: Any) -> Any:
        recorder = Hooks.recorder
        if recorder is None or recorder.depth:
            return real(parameters, *args, **kwargs)
        recorder.depth += 1
        try:
            return _clip(recorder, real, by_value, with_norm, parameters, list(args), kwargs)
        finally:
            recorder.depth -= 1

    return clip


def _clip(
    recorder: Recorder,
    real: Callable[..., Any],
    by_value: bool,
    with_norm: bool,
    parameters: Any,
    args: List[Any],
    kwargs: Dict[str, Any],
) -> Any:
    iterator = isinstance(parameters, Iterator)
    params, known = parameter_list(parameters)
    name = "clip_value" if by_value else "max_norm"
    limit = _argument(args, kwargs, 0, name, 1.0)
    norm_type = float("inf") if by_value else 2.0
    if not by_value and not with_norm:
        norm_type = _argument(args, kwargs, 1, "norm_type", 2.0)
    for key in ("error_if_nonfinite", "foreach"):
        if isinstance(kwargs.get(key), Ghost):
            kwargs.pop(key)
    args = [a for a in args if not isinstance(a, Ghost)]
    saw = norm(params, norm_type)
    event = recorder.add("clip", saw=saw, returned=None, max_norm=limit, norm_type=norm_type, value_clip=by_value)
    event["saw_unscaled"] = saw / recorder.scale_of(params)
    event["no_gradients"] = all(p.grad is None for p in params)
    event["fresh"] = recorder.fresh(params)
    event["parameters_known"] = known
    event["exhausted"] = iterator and not params
    _describe(recorder, event, params)
    places = [str(line) for line in event["lines"]]
    if "module" in event:
        places.append(f"{event['module']}:{event['line']}")
    recorder.clip_at(places, params, limit if limit is not None else float("inf"), norm_type)
    if "clip" in recorder.stubs:
        event["returned"] = None if by_value else saw
        return None if by_value else torch.tensor(saw)
    try:
        result = real(params, *args, **kwargs)
    except Exception as error:
        # clip_grad_value_ raises where no gradient exists: that is evidence, and the program's affair
        event["error"] = f"{type(error).__name__}: {error}"[:200]
        raise
    event["returned"] = float(result) if isinstance(result, torch.Tensor) else None
    event["after"] = norm(params, norm_type)
    return result


def _argument(args: List[Any], kwargs: Dict[str, Any], place: int, name: str, default: float) -> Any:
    """A number among the arguments, made real where it is a ghost; put back where it came from."""
    if len(args) > place:
        args[place] = value = Hooks.number(args[place], default) if args[place] is not None else None
        return value
    if name in kwargs and kwargs[name] is not None:
        kwargs[name] = Hooks.number(kwargs[name], default)
        return kwargs[name]
    return None if name in ("max_norm", "clip_value") else default


def _describe(recorder: Recorder, event: Event, params: List[torch.Tensor]) -> None:
    recorder.know(params)
    event["parameters"] = [recorder.key(p) for p in params[:KEYS_SHOWN]]
    event["parameter_count"] = len(params)


# backward


def _patch_backward() -> None:
    real_tensor = torch.Tensor.backward
    real_autograd = torch.autograd.backward

    @functools.wraps(real_tensor)
    def tensor_backward(self: Any, *args: Any, **kwargs: Any) -> Any:
        recorder = Hooks.recorder
        if recorder is None or recorder.depth:
            return real_tensor(self, *args, **kwargs)  # type: ignore[no-untyped-call]
        return recorded_backward(recorder, lambda: real_tensor(self, *args, **kwargs))  # type: ignore[no-untyped-call]

    @functools.wraps(real_autograd)
    def autograd_backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        recorder = Hooks.recorder
        if recorder is None or recorder.depth:
            return real_autograd(tensors, *args, **kwargs)
        if isinstance(tensors, (GhostTensor, list, tuple)):
            tensors = gradients_in(tensors) if _has_ghost(tensors) else tensors
        return recorded_backward(recorder, lambda: real_autograd(tensors, *args, **kwargs))

    torch.Tensor.backward = tensor_backward  # type: ignore[method-assign]
    torch.autograd.backward = autograd_backward


def _has_ghost(tensors: Any) -> bool:
    return isinstance(tensors, Ghost) or any(isinstance(t, Ghost) for t in tensors)


def recorded_backward(recorder: Recorder, run: Callable[[], Any]) -> Any:
    """Run a backward pass and record it."""
    recorder.depth += 1
    try:
        scale = recorder.pending_scales.pop(0) if recorder.pending_scales else None
        event = recorder.add("backward", scaled=scale is not None, scale=scale)
        before = recorder.snapshot()
        if "backward" in recorder.stubs:
            event.update(reached=0, factor=1.0, stubbed=True)
            return None
        try:
            result = run()
        except Exception as error:
            event["error"] = f"{type(error).__name__}: {error}"[:200]
            raise
        reached, event["factor"] = recorder.after_backward(before, scale)
        event["reached"] = len(reached)
        _describe(recorder, event, reached)
        recorder.backwards += 1
        return result
    finally:
        recorder.depth -= 1


# clearing


def _patch_zero_grad() -> None:
    for owner, kind in ((Optimizer, "optimizer"), (torch.nn.Module, "module")):
        setattr(owner, "zero_grad", _recorded_clear(owner.zero_grad, kind))  # noqa: B010


def _recorded_clear(real: Callable[..., Any], kind: str) -> Callable[..., Any]:
    @functools.wraps(real)
    def zero_grad(self: Any, *args: Any, **kwargs: Any) -> Any:
        recorder = Hooks.recorder
        if recorder is None or recorder.depth:
            return real(self, *args, **kwargs)
        recorder.depth += 1
        try:
            params = own_parameters(self) if kind == "optimizer" else list(self.parameters())
            recorder.note_gradients()
            event = recorder.add("zero_grad", object=recorder.name(self, kind), saw=norm(params))
            event["fresh"] = recorder.fresh(params)
            _describe(recorder, event, params)
            real(self, *[a for a in args if not isinstance(a, Ghost)], **_plain(kwargs))
            event["cleared"] = recorder.cleared_since()
            return None
        finally:
            recorder.depth -= 1

    return zero_grad


def _plain(kwargs: Dict[str, Any]) -> Dict[str, Any]:
    return {k: v for k, v in kwargs.items() if not isinstance(v, Ghost)}


# steps


def _patch_optimizer() -> None:
    real_add = Optimizer.add_param_group

    @functools.wraps(real_add)
    def add_param_group(self: Any, param_group: Dict[str, Any]) -> None:
        real_add(self, param_group)
        if Hooks.recorder is not None:
            Hooks.recorder.know([p for p in self.param_groups[-1]["params"] if isinstance(p, torch.Tensor)])

    Optimizer.add_param_group = add_param_group  # type: ignore[method-assign]
    for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        kind([torch.nn.Parameter(torch.zeros(1))])  # the first instance of a class wraps its step: not the user's doing
    register_optimizer_step_pre_hook(_before_step)
    register_optimizer_step_post_hook(_after_step)


def make_groups_real(optimizer: Optimizer) -> None:
    """A learning rate that a schedule or the program set to an unknown becomes a number again."""
    for group in optimizer.param_groups:
        for name, value in list(group.items()):
            if name != "params" and holds_ghost(value):
                default = optimizer.defaults.get(name)
                group[name] = ASSUMED_LR if default is None or holds_ghost(default) else default


_OPEN_STEPS: List[Tuple[Any, Event, Dict[int, torch.Tensor]]] = []
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
    if isinstance(closure, Ghost) or closure is None:
        event = step_event(recorder, optimizer, params)
        _OPEN_STEPS.append((optimizer, event, weights))
        return (args[:1], {k: v for k, v in kwargs.items() if k != "closure"})
    event = {}
    _OPEN_STEPS.append((optimizer, event, weights))
    counted = _counted(recorder, optimizer, params, event, closure)
    if len(args) > 1:
        return ((args[0], counted, *args[2:]), kwargs)
    return (args, {**kwargs, "closure": counted})


def _counted(
    recorder: Recorder, optimizer: Any, params: List[torch.Tensor], event: Event, closure: Callable[[], Any]
) -> Callable[[], Any]:
    """The closure, followed by a step event: what it leaves in the gradients is what the optimizer uses."""
    count = [0]

    def evaluate() -> Any:
        loss = closure()
        new = step_event(recorder, optimizer, params, evaluation=count[0])
        if not count[0]:
            event.update(new)
        count[0] += 1
        if isinstance(loss, Ghost):
            return loss.gl_value.detach() if isinstance(loss, GhostTensor) else torch.zeros(())
        return torch.zeros(()) if loss is None else loss

    return evaluate


def step_event(recorder: Recorder, optimizer: Any, params: List[torch.Tensor], **extra: Any) -> Event:
    raw, plain = recorder.norms(params)
    event = recorder.add("step", object=recorder.name(optimizer, "optimizer"), norms=raw, norms_unscaled=plain, **extra)
    event["optimizer"] = type(optimizer).__name__
    event["norm"] = norm(params)
    event["norm_unscaled"] = event["norm"] / recorder.scale_of(params)
    event["scaled"] = recorder.scale_of(params) != 1.0
    event["fresh"] = recorder.fresh(params)
    event["no_gradients"] = all(p.grad is None for p in params)
    _describe(recorder, event, params)
    if recorder.pending_step is not None:
        event["via"] = recorder.pending_step
    recorder.steps += 1
    recorder.pending_scales.clear()
    recorder.used(params)
    return event


def _after_step(optimizer: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
    if Hooks.recorder is None or not _OPEN_STEPS or _OPEN_STEPS[-1][0] is not optimizer:
        return
    _, event, weights = _OPEN_STEPS.pop()
    with torch.no_grad():
        moved = [float((p - weights[id(p)]).abs().max()) for p in own_parameters(optimizer) if id(p) in weights]
    event["delta"] = max(moved, default=None)
