"""Puts recorders round ``torch.amp.GradScaler``: scale, unscale_, step, update."""

from __future__ import annotations

import functools
from typing import Any, Callable, Dict, List, Optional

import torch
from ghost import Ghost, GhostTensor
from step_optim import step_event
from step_patch import Hooks, own_parameters


def install() -> None:
    """Replace the methods. Call once."""
    scaler = torch.amp.GradScaler
    names = ("scale", "unscale_", "step", "update", "load_state_dict")
    real: Dict[str, Callable[..., Any]] = {n: getattr(scaler, n) for n in names}

    def scale(self: Any, outputs: Any) -> Any:
        if type(outputs) is Ghost:
            real["scale"](self, torch.zeros(()))  # the scaler has to know that it was asked
            result: Any = outputs
        elif isinstance(outputs, GhostTensor):
            result = GhostTensor(outputs.gl_name, real["scale"](self, outputs.gl_value))
        else:
            result = real["scale"](self, outputs)
        if Hooks.recorder is not None and self.is_enabled():
            Hooks.recorder.pending_scales.append(float(self.get_scale()))
            Hooks.recorder.add("scale", object=Hooks.recorder.name(self, "scaler"), scale=float(self.get_scale()))
        return result

    def unscale_(self: Any, optimizer: Any) -> None:
        recorder = Hooks.recorder
        if recorder is None or not self.is_enabled():
            real["unscale_"](self, optimizer)
            return
        event = recorder.add("unscale", object=recorder.name(self, "scaler"))
        event["optimizer"] = recorder.name(optimizer, "optimizer")
        event["internal"] = recorder.pending_step is not None
        try:
            real["unscale_"](self, optimizer)
        except Exception as error:
            event["error"] = f"{type(error).__name__}: {error}"[:200]
            raise
        recorder.grads.unscaled(own_parameters(optimizer))

    def step(self: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        recorder = Hooks.recorder
        if recorder is None:
            return real["step"](self, optimizer, *args, **kwargs)
        outer, before = recorder.pending_step, recorder.steps
        recorder.pending_step = recorder.name(self, "scaler") if self.is_enabled() else None
        error_text: Optional[str] = None
        try:
            return real["step"](self, optimizer, *args, **kwargs)
        except Exception as error:
            error_text = f"{type(error).__name__}: {error}"[:200]
            raise
        finally:
            recorder.pending_step = outer
            if recorder.steps == before:
                event = step_event(recorder, optimizer, own_parameters(optimizer), skipped=True)
                event["error"] = error_text

    def update(self: Any, new_scale: Any = None) -> None:
        if Hooks.recorder is not None:
            Hooks.recorder.add("scaler_update", object=Hooks.recorder.name(self, "scaler"))
        real["update"](self, None if isinstance(new_scale, Ghost) else new_scale)

    def load_state_dict(self: Any, state_dict: Any) -> None:
        if not isinstance(state_dict, Ghost):  # an unknown state is that of the beginning
            real["load_state_dict"](self, state_dict)

    patched: List[Callable[..., Any]] = [scale, unscale_, step, update, load_state_dict]
    for name, function in zip(names, patched):
        setattr(scaler, name, functools.wraps(real[name])(function))
