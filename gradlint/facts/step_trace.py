"""Reading the trace of a replayed training step: what one clip saw, and what reached the step behind it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

TOLERANCE = 1.01
"""The norm at the step may exceed the limit by this factor: ``clip_grad_norm_`` divides by the norm plus 1e-6, in
float32 (PyTorch documentation, torch.nn.utils.clip_grad_norm_)."""


@dataclasses.dataclass(frozen=True)
class ClipRun:
    """What one iteration of a replay showed of one clip."""

    saw: float
    returned: float | None
    at_step: float
    """Norm, over the clipped parameters, that the optimizer met; infinite if the clip raised instead."""
    limit: float
    norm_type: float
    early: bool
    """Whether a backward came between the clip and the step (or the clip raised), and none ahead of the clip, since
    the iteration began or another step was made in it."""
    error: str | None
    iterations: int
    guards: Mapping[str, bool]

    @property
    def missed(self) -> bool:
        """Whether the gradients that the step met were not clipped."""
        return self.error is not None or self.at_step > TOLERANCE * self.limit

    @property
    def excess(self) -> tuple[bool, float]:
        """How bad it is, for comparison."""
        return self.early, math.inf if self.error else self.at_step / self.limit if self.limit else math.inf


def worst_run(paths: Sequence[Mapping[str, Any]], line: int) -> ClipRun | None:
    """The worst run of the clip on ``line`` over all paths; of iterations 2 and 3 where there are any."""
    runs = [run for path in paths for run in _settled(list(_runs(path, line)))]
    return max(runs, key=lambda run: run.excess, default=None)


def ran_without_step(paths: Sequence[Mapping[str, Any]], line: int) -> bool:
    """Whether the clip on ``line`` ran, and no step of its iteration followed although the path has steps."""
    return any(
        any(e["kind"] == "clip" and _is_at(e, line) for e in path.get("events", ()))
        and any(e["kind"] == "step" for e in path.get("events", ()))
        for path in paths
    )


def _settled(runs: list[ClipRun]) -> list[ClipRun]:
    """Without the first iteration, in which no earlier gradient exists, if others follow; an error ends the program."""
    counted = [dataclasses.replace(run, iterations=len(runs)) for run in runs]
    if counted and counted[0].error is not None:
        return counted[:1]
    return counted[1:] or counted


def _runs(path: Mapping[str, Any], line: int) -> Iterator[ClipRun]:
    """One run for each iteration of a path in which the clip on ``line`` ran and a step, or an error, came after."""
    turns: dict[tuple[Any, Any], list[Mapping[str, Any]]] = {}
    for event in path.get("events", ()):
        turns.setdefault((event.get("call"), event["iteration"]), []).append(event)
    for events in turns.values():
        at = next((k for k, e in enumerate(events) if e["kind"] == "clip" and _is_at(e, line)), None)
        if at is None:
            continue
        clip, rest = events[at], events[at + 1 :]
        step = next((e for e in rest if e["kind"] == "step" and str(line) in e.get("norms", {})), None)
        error = clip.get("error")
        if step is None and error is None:
            continue
        earlier = [e["kind"] for e in events[:at] if e["kind"] in {"backward", "step"}]
        ahead = bool(earlier) and earlier[-1] == "backward"
        until = rest[: rest.index(step)] if step else rest
        follows = any(e["kind"] == "backward" for e in until) or (error is not None and step is None)
        norms = (step.get("norms_unscaled") or step["norms"]) if step else {}
        yield ClipRun(
            saw=float(clip["saw"]),
            returned=None if clip.get("returned") is None else float(clip["returned"]),
            at_step=float(norms[str(line)]) if step else math.inf,
            limit=math.inf if clip.get("max_norm") is None else float(clip["max_norm"]),
            norm_type=float(clip.get("norm_type", 2.0)),
            early=follows and not ahead,
            error=error,
            iterations=1,
            guards=path.get("guards", {}),
        )


def _is_at(event: Mapping[str, Any], line: int) -> bool:
    return int(event["line"]) == line and "module" not in event
