"""Remedies that are applied to a run instead of to the text, where no edit of the text can be written.

``clip-at-step``: the watched clip is passed over, and what it would have clipped is clipped ahead of each step.
``clear-after-step``: the watched clearing (if one is watched) is passed over, and each step's gradients are cleared
behind it. They are what a person would write; nothing of them can be applied by ``--fix``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, List, Mapping, Optional, Sequence

import torch

if TYPE_CHECKING:
    from step_record import Event, Recorder

CLIP, CLEAR = "clip-at-step", "clear-after-step"


@dataclass
class Remedy:
    """A remedy for the call on one line: ``module`` is empty for the module the run starts in."""

    kind: str
    line: int
    module: str

    @property
    def place(self) -> str:
        """The line as clips are remembered by it."""
        return f"{self.module}:{self.line}" if self.module else str(self.line)

    def passes_over(self, event: "Event") -> bool:
        """Whether this is the call that is not to be made."""
        kind = "clip" if self.kind == CLIP else "zero_grad"
        return event["kind"] == kind and int(event["line"]) == self.line and event.get("module", "") == self.module

    def clears_at(self, line: int, module: str) -> bool:
        """Whether a gradient that is set to None on a line is to be kept."""
        return self.kind == CLEAR and (line, module) == (self.line, self.module)


def read(body: Optional[Mapping[str, Any]]) -> Optional[Remedy]:
    """The remedy that a request asks for."""
    return Remedy(str(body["kind"]), int(body["line"]), str(body.get("module", ""))) if body else None


def drop(recorder: "Recorder", event: "Event") -> bool:
    """Take back an event whose call is passed over; whether it is."""
    remedy = recorder.remedy
    if remedy is None or not remedy.passes_over(event):
        return False
    if recorder.events and recorder.events[-1] is event:
        recorder.events.pop()
    return True


def before_step(recorder: "Recorder", params: Sequence[torch.Tensor]) -> None:
    """Clip what the step is about to use, as the clip that is passed over would."""
    remedy = recorder.remedy
    if remedy is None or remedy.kind != CLIP:
        return
    for clip in (*recorder.seen, *recorder.grads.met):
        common = [p for p in params if recorder.grads.key(p) in clip.keys] if remedy.place in clip.places else []
        if common:
            _clip(recorder, remedy, common, clip.max_norm, clip.norm_type)
            return


def _clip(recorder: "Recorder", remedy: Remedy, params: List[torch.Tensor], limit: float, norm_type: float) -> None:
    from step_grads import norm
    from step_patch import describe

    saw = norm(params, norm_type)
    event = recorder.add("clip", saw=saw, saw_unscaled=saw / recorder.grads.scale_of(params), returned=saw)
    event.update(max_norm=limit, norm_type=norm_type, value_clip=False, fresh=recorder.grads.fresh(params))
    event["line"] = remedy.line
    if remedy.module:
        event["module"] = remedy.module
    else:
        event.pop("module", None)
    describe(recorder, event, params)
    if saw > limit > 0.0:
        with torch.no_grad():
            for parameter in params:
                if parameter.grad is not None:
                    if math.isinf(norm_type):
                        parameter.grad.clamp_(-limit, limit)
                    else:
                        parameter.grad.mul_(limit / saw)


def after_step(recorder: "Recorder", clear: Callable[[], Any]) -> None:
    """Clear the gradients that the step has used."""
    if recorder.remedy is not None and recorder.remedy.kind == CLEAR:
        clear()
