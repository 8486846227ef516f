"""Puts recorders round PyTorch's own functions: clip, backward, clearing. Steps are in ``step_optim``.

The functions are replaced once per process, before any user code is imported, in the modules where they are
defined and in those that re-export them; every alias a program makes is then the recorded one. With no
recorder set they behave as they always did.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import step_remedy
import torch
from ghost import Ghost, GhostTensor
from ghost_math import gradients_in, weights_of
from ghost_world import world
from step_grads import norm
from step_record import KEYS_SHOWN, Event, Recorder
from torch.optim import Optimizer


class Hooks:
    """The recorder in charge, and what to do with parameters that are unknown."""

    recorder: Optional[Recorder] = None
    unknown_parameters: Callable[[], List[torch.Tensor]] = staticmethod(list)
    known_parameters: Callable[[], List[torch.Tensor]] = staticmethod(list)
    number: Callable[[Any, float], float] = staticmethod(lambda value, default: float(value))
    installed = False
    thawing = False
    """Whether nothing can be frozen: an earlier run of the program met an optimizer with nothing left to train."""
    frozen = False
    """Whether this run met one."""


def install() -> None:
    """Replace the functions. Calling it again does nothing."""
    if Hooks.installed:
        return
    Hooks.installed = True
    _patch_clips()
    _patch_backward()
    _patch_zero_grad()
    _patch_groups()
    _patch_freezing()


def parameter_list(value: Any) -> Tuple[List[torch.Tensor], bool]:
    """The tensors of a clip's or optimizer's first argument, and whether they are known."""
    if isinstance(value, Ghost):
        return Hooks.unknown_parameters(), False
    if isinstance(value, torch.Tensor):
        return [value], True
    if isinstance(value, torch.nn.Module):
        return weights_of(value), True
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


@contextlib.contextmanager
def consuming(recorder: Optional[Recorder], who: str) -> Iterator[None]:
    """While ``who`` takes the items of an iterator of parameters."""
    if recorder is None:
        yield
        return
    before, recorder.consumer = recorder.consumer, who
    try:
        yield
    finally:
        recorder.consumer = before


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
    with consuming(recorder, "clip"):
        params, known = parameter_list(parameters)
    name = "clip_value" if by_value else "max_norm"
    limit = _argument(args, kwargs, 0, name, 1.0)
    norm_type = float("inf") if by_value else 2.0
    off = isinstance(limit, (int, float)) and (
        limit <= 0.0 or (limit == float("inf") and recorder.where()[1] in recorder.asked)
    )
    if off:  # an option that is off by default; a literal infinity is not asked about
        limit = Hooks.number(Ghost(name), 1.0)
        args, kwargs = ([limit, *args[1:]], kwargs) if args else (args, {**kwargs, name: limit})
    if limit is None and name not in kwargs and not args:
        kwargs[name] = limit = Hooks.number(Ghost(name), 1.0)  # it came with unknown arguments
    if not by_value and not with_norm:
        norm_type = _argument(args, kwargs, 1, "norm_type", 2.0)
    for key in ("error_if_nonfinite", "foreach"):
        if isinstance(kwargs.get(key), Ghost):
            kwargs.pop(key)
    args = [a for a in args if not isinstance(a, Ghost)]
    saw = norm(params, norm_type)
    event = recorder.add("clip", saw=saw, returned=None, max_norm=limit, norm_type=norm_type, value_clip=by_value)
    event["saw_unscaled"] = saw / recorder.grads.scale_of(params)
    event["no_gradients"] = all(p.grad is None for p in params)
    event["fresh"] = recorder.grads.fresh(params)
    event["parameters_known"] = known
    event["exhausted"] = iterator and not params
    describe(recorder, event, params)
    places = [str(line) for line in event["lines"]]
    if "module" in event:
        places.append(f"{event['module']}:{event['line']}")
    recorder.grads.clip(places, params, limit if limit is not None else float("inf"), norm_type)
    if step_remedy.drop(recorder, event):
        return None if by_value else torch.tensor(saw)
    if recorder.clips_nothing:
        event["returned"] = None if by_value else saw
        return None if by_value else torch.tensor(saw)
    before = recorder.grads.sizes(params)
    try:
        result = real(params, *args, **kwargs)
    except Exception as error:
        # clip_grad_value_ raises where no gradient exists: that is evidence, and the program's affair
        event["error"] = f"{type(error).__name__}: {error}"[:200]
        raise
    event["returned"] = float(result) if isinstance(result, torch.Tensor) else None
    event["after"] = norm(params, norm_type)
    recorder.grads.clipped(params, before)
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


def describe(recorder: Recorder, event: Event, params: List[torch.Tensor]) -> None:
    """Say in an event which parameters it is about."""
    recorder.grads.know(params)
    recorder.grads.touched.update({id(p): p for p in params})
    event["parameters"] = [recorder.grads.key(p) for p in params[:KEYS_SHOWN]]
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
        if not self.requires_grad:
            # the program's state is not its real one: what the loss was computed from is not there
            self = world().stand_in_loss()
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
        world().first_backward()
        before = recorder.grads.snapshot()
        if "backward" in recorder.stubs:
            event.update(reached=0, factor=1.0, stubbed=True)
            return None
        try:
            result = run()
        except Exception as error:
            event["error"] = f"{type(error).__name__}: {error}"[:200]
            raise
        done = recorder.grads.after_backward(before, scale, recorder.place())
        event.update(reached=len(done.reached), factor=done.factor, contributed=done.contributed, stale=done.stale)
        describe(recorder, event, done.reached)
        recorder.backwards += 1
        if recorder.overflow and scale is not None:
            recorder.overflow = False
            _overflow(done.reached)
        return result
    finally:
        recorder.depth -= 1


def _overflow(reached: List[torch.Tensor]) -> None:
    """What half precision does when the loss scale is too large, as it is at the start: a gradient becomes infinite."""
    with torch.no_grad():
        for parameter in reached[:1]:
            if parameter.grad is not None and parameter.grad.numel():
                parameter.grad.view(-1)[0] = float("inf")


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
            params = own_parameters(self) if kind == "optimizer" else weights_of(self)
            event = recorder.add("zero_grad", object=recorder.name(self, kind), saw=norm(params))
            event["fresh"] = recorder.grads.fresh(params)
            describe(recorder, event, params)
            if step_remedy.drop(recorder, event):
                return None
            if "zero_grad" in recorder.stubs:
                event["cleared"] = 0
                return None
            held = recorder.grads.clearable(params)
            real(self, *[a for a in args if not isinstance(a, Ghost)], **_plain(kwargs))
            event["cleared"] = recorder.grads.cleared(held)
            return None
        finally:
            recorder.depth -= 1

    return zero_grad


def _plain(kwargs: Dict[str, Any]) -> Dict[str, Any]:
    return {k: v for k, v in kwargs.items() if not isinstance(v, Ghost)}


def _patch_groups() -> None:
    real_add = Optimizer.add_param_group

    @functools.wraps(real_add)
    def add_param_group(self: Any, param_group: Dict[str, Any]) -> None:
        real_add(self, param_group)
        if Hooks.recorder is not None:
            Hooks.recorder.grads.train([p for p in self.param_groups[-1]["params"] if isinstance(p, torch.Tensor)])

    Optimizer.add_param_group = add_param_group  # type: ignore[method-assign]


def thaw() -> None:
    """Let everything train where all of it is frozen: an optimizer is about to be made.

    What a program freezes by the names of its layers leaves others to train; a stand-in has no such names.
    """
    known = Hooks.known_parameters()
    if known and not any(p.requires_grad for p in known):
        Hooks.frozen = True
        for parameter in known:
            parameter.requires_grad_(True)


def _patch_freezing() -> None:
    real = torch.Tensor.requires_grad_

    @functools.wraps(real)
    def requires_grad_(self: torch.Tensor, requires_grad: Any = True) -> torch.Tensor:
        thawing = Hooks.thawing and Hooks.recorder is not None and isinstance(self, torch.nn.Parameter)
        return real(self, True if thawing or isinstance(requires_grad, Ghost) else requires_grad)

    torch.Tensor.requires_grad_ = requires_grad_  # type: ignore[method-assign, assignment]
