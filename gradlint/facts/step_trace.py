"""Reading the trace of a replayed training step: what one clip saw, and what reached the step beside it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gradlint.rule import Candidate, Judgement, Measurement, StepExperiment

TOLERANCE = 1.01
"""The norm at the step may exceed the limit by this factor: ``clip_grad_norm_`` divides by the norm plus 1e-6, in
float32 (PyTorch documentation, torch.nn.utils.clip_grad_norm_)."""
CURE_FLOOR = 0.1
"""A clip that leaves less than this share of its limit, where there was more, has compared it with something else."""
CURE_SHARE = 0.5
"""A clip of scaled gradients leaves less than this share of its limit (FAULTS O5)."""

Event = Mapping[str, Any]
Path = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class ClipRun:
    """What one iteration of a replay showed of one clip."""

    saw: float
    true_saw: float
    """As ``saw``, without the loss scale."""
    returned: float | None
    at_step: float
    """Norm, over the clipped parameters and without the loss scale, that the optimizer met; infinite if the clip
    raised instead."""
    limit: float
    norm_type: float
    fault: bool
    """Whether the iteration shows what the rule claims."""
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
        return self.fault, math.inf if self.error else self.at_step / self.limit if self.limit else math.inf


@dataclasses.dataclass(frozen=True)
class Spot:
    """A line of the sliced program; ``module`` is empty for the one that the experiment starts in."""

    line: int
    module: str = ""
    through: int = 0
    """The line of the call that leads there, where only that one counts."""

    @property
    def key(self) -> str:
        """As the trace names it among its norms."""
        return f"{self.module}:{self.line}" if self.module else str(self.line)

    def holds(self, event: Event) -> bool:
        """Whether an event happened here."""
        here = int(event["line"]) == self.line and str(event.get("module", "")) == self.module
        return here and (not self.through or self.through in event.get("lines", ()))


def spot_of(told: Mapping[str, Any]) -> Spot:
    """The spot that a candidate's facts tell."""
    return Spot(int(told["line"]), str(told.get("module", "")), int(told.get("through", 0)))


def edited_spots(candidate: Candidate) -> list[Spot]:
    """Where the watched call is after the edit."""
    module = str(candidate.facts.get("module", ""))
    return [Spot(int(line), module) for line in candidate.facts["edited_lines"]]


Runner = Callable[[Sequence[Path], Spot], "ClipRun | None"]


# -- one iteration


def turns(path: Path) -> Iterator[list[Event]]:
    """The events of each iteration of a path."""
    found: dict[tuple[Any, Any], list[Event]] = {}
    for event in path.get("events", ()):
        found.setdefault((event.get("call"), event["iteration"]), []).append(event)
    yield from found.values()


def early_run(paths: Sequence[Path], spot: Spot) -> ClipRun | None:
    """GL101. The worst run of a clip ahead of a step; at fault if the backward comes only between the two."""

    def runs(path: Path) -> Iterator[ClipRun]:
        for events in turns(path):
            for at in _clips(events, spot):
                clip, rest = events[at], events[at + 1 :]
                step = next((e for e in rest if _steps(e, spot)), None)
                error = clip.get("error")
                if step is None and error is None:
                    continue
                earlier = [e["kind"] for e in events[:at] if e["kind"] in {"backward", "step"}]
                ahead = bool(earlier) and earlier[-1] == "backward" and bool(clip.get("fresh", True))
                until = rest[: rest.index(step)] if step else rest
                follows = any(e["kind"] == "backward" for e in until) or (error is not None and step is None)
                run = _run(path, clip, step, spot)
                yield dataclasses.replace(run, fault=follows and not ahead and run.missed)
                break

    return _worst(paths, runs)


def late_run(paths: Sequence[Path], spot: Spot) -> ClipRun | None:
    """GL102. The worst run of a clip behind a step; at fault if that step met more than the limit."""

    def runs(path: Path) -> Iterator[ClipRun]:
        for events in turns(path):
            for at in _clips(events, spot):
                clip, before, rest = events[at], events[:at], events[at + 1 :]
                step = next((e for e in reversed(before) if _steps(e, spot)), None)
                if step is None:
                    continue
                between = before[before.index(step) + 1 :]
                again = next((e["kind"] for e in rest if e["kind"] == "backward" or _steps(e, spot)), None)
                run = _run(path, clip, step, spot)
                late = not any(e["kind"] == "backward" for e in between) and again != "step"
                yield dataclasses.replace(run, fault=late and bool(step.get("fresh")) and run.missed, error=None)
                break

    return _worst(paths, runs)


def scaled_run(paths: Sequence[Path], spot: Spot) -> ClipRun | None:
    """GL103. The worst run of a clip ahead of a step; at fault if it shrank scaled gradients too far."""

    def runs(path: Path) -> Iterator[ClipRun]:
        for events in turns(path):
            for at in _clips(events, spot):
                clip, rest = events[at], events[at + 1 :]
                step = next((e for e in rest if _steps(e, spot)), None)
                if step is None or "error" in clip:
                    continue
                run = _run(path, clip, step, spot)
                scaled = run.saw > 2.0 * run.true_saw
                shrunk = run.at_step < CURE_SHARE * run.limit < run.true_saw
                yield dataclasses.replace(run, fault=scaled and shrunk)
                break

    found = [run for path in paths for run in runs(path)]
    return max(found, key=lambda run: (run.fault, -run.at_step), default=None)


def _clips(events: Sequence[Event], spot: Spot) -> Iterator[int]:
    return (k for k, e in enumerate(events) if e["kind"] == "clip" and spot.holds(e))


def _steps(event: Event, spot: Spot) -> bool:
    return event["kind"] == "step" and spot.key in event.get("norms", {}) and not event.get("fenced")


def _run(path: Path, clip: Event, step: Event | None, spot: Spot) -> ClipRun:
    norms = (step.get("norms_unscaled") or step["norms"]) if step else {}
    return ClipRun(
        saw=float(clip["saw"]),
        true_saw=float(clip.get("saw_unscaled", clip["saw"])),
        returned=None if clip.get("returned") is None else float(clip["returned"]),
        at_step=float(norms[spot.key]) if step else math.inf,
        limit=math.inf if clip.get("max_norm") is None else float(clip["max_norm"]),
        norm_type=float(clip.get("norm_type", 2.0)),
        fault=False,
        error=clip.get("error"),
        iterations=1,
        guards=path.get("guards", {}),
    )


def _worst(paths: Sequence[Path], runs: Callable[[Path], Iterator[ClipRun]]) -> ClipRun | None:
    """The worst run over all paths; of iterations 2 and 3 where there are any."""
    found = [run for path in paths for run in _settled(list(runs(path)))]
    return max(found, key=lambda run: run.excess, default=None)


def _settled(runs: list[ClipRun]) -> list[ClipRun]:
    """Without the first iteration, in which no earlier gradient exists, if others follow; an error ends the program."""
    counted = [dataclasses.replace(run, iterations=len(runs)) for run in runs]
    if counted and counted[0].error is not None:
        return counted[:1]
    return counted[1:] or counted


def ran_without_step(paths: Sequence[Path], spot: Spot) -> bool:
    """Whether the clip at ``spot`` ran, and no step of its iteration followed although the path has steps."""
    return any(
        any(e["kind"] == "clip" and spot.holds(e) for e in path.get("events", ()))
        and any(e["kind"] == "step" for e in path.get("events", ()))
        for path in paths
    )


# -- judgements


NO_EDIT = "the fault was measured, but gradlint could not write the remedy itself"


def kind_of(data: Mapping[str, Any]) -> Any:
    """The kind of evidence a replay is."""
    return "replica" if data.get("kind") == "replica" else "replay"


def assumed(candidate: Candidate, data: Mapping[str, Any]) -> dict[str, Any]:
    """What a replay had to assume; and that its remedy was made in the run, where none could be written as an edit."""
    found = dict(data.get("assumed", {}))
    experiment = candidate.experiment
    if isinstance(experiment, StepExperiment) and experiment.remedy:
        found["remedy"] = f"{experiment.remedy}, made in the run"
    return found


def not_run(measurement: Measurement) -> Judgement:
    """The judgement where the experiment gave no data."""
    return Judgement("unverified", reason=measurement.reason, kind="replay", detail=measurement.detail)


def clip_judgement(
    candidate: Candidate, measurement: Measurement, runner: Runner, floor: float = CURE_FLOOR
) -> Judgement:
    """The verdict on a clip: at fault as written, and acting on the step's gradients after the edit.

    After the edit more than ``floor`` of the limit has to be left: less means that the clip compares its limit with
    gradients of another scale.
    """
    if measurement.data is None:
        return not_run(measurement)
    data = measurement.data
    kind = kind_of(data)
    spot = spot_of(candidate.facts)
    written = runner(data.get("paths", ()), spot)
    common: dict[str, Any] = {"kind": kind, "assumed": assumed(candidate, data)}
    if written is None and kind == "replica" and ran_without_step(data.get("paths", ()), spot):
        return Judgement("refuted", detail="no step of its iteration uses what it clips", **common)
    if written is None:
        detail = "in the replay no step was made on the parameters that it clips"
        return Judgement("unverified", reason="not-sliced", detail=detail, **common)
    ran = any(e["kind"] == "backward" for path in data.get("paths", ()) for e in path.get("events", ()))
    if not ran and not written.fault:
        return Judgement("unverified", reason="not-sliced", detail="in the replay no backward was made", **common)
    if kind == "replay" and written.at_step == 0.0 and not written.fault:
        # The backward that was seen is that of other parameters: the clip's own may be in code that was not.
        detail = "no backward that was seen reaches the parameters that it clips"
        return Judgement("refuted", detail=detail, **common)
    threshold = {"norm_at_step": _short((TOLERANCE if floor == CURE_FLOOR else floor) * written.limit)}
    common |= {"measured": _measured(written), "threshold": threshold}
    if not written.fault:
        return Judgement("refuted", detail="the gradients were clipped when they reached the step", **common)
    if not candidate.facts["edited_lines"]:
        return Judgement("unverified", reason="not-sliced", detail=NO_EDIT, **common)
    return _cured(candidate, data, written, common, floor)


def _cured(
    candidate: Candidate, data: Mapping[str, Any], written: ClipRun, common: Mapping[str, Any], floor: float
) -> Judgement:
    spots = edited_spots(candidate)
    after = [run for spot in spots if (run := early_run(data.get("edited_paths", ()), spot)) is not None]
    if not after:
        return Judgement("unverified", reason="not-sliced", detail="the moved clip did not run in the replay", **common)
    worst = max(after, key=lambda run: run.at_step)
    after_remedy = {"norm_at_step": _short(worst.at_step)}
    if worst.missed:
        detail = "the remedy did not help: something else keeps the clip from acting"
        return Judgement("refuted", after_remedy=after_remedy, detail=detail, **common)
    if written.error is None and min(r.at_step for r in after) < floor * min(
        written.limit, written.true_saw or math.inf
    ):
        detail = "after the edit the clip acts on gradients of another scale: their scaler has to unscale them first"
        return Judgement("unverified", reason="not-sliced", after_remedy=after_remedy, detail=detail, **common)
    return Judgement("confirmed", after_remedy=after_remedy, message=story(candidate, written), **common)


def _measured(run: ClipRun) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "clip_saw": _short(run.saw),
        "clip_returned": None if run.returned is None else _short(run.returned),
        "norm_at_step": None if run.error and math.isinf(run.at_step) else _short(run.at_step),
        "max_norm": run.limit,
        "norm_type": run.norm_type,
        "iterations": run.iterations,
    }
    return numbers | ({"error": run.error} if run.error else {})


def _short(number: float) -> float:
    """Six digits: the rest is float32 noise."""
    return float(f"{number:.6g}")


def story(candidate: Candidate, run: ClipRun) -> str:
    """The candidate's message, with the branch on which the fault was seen."""
    if run.error:
        return f"{candidate.message}; the call raises {run.error}"
    return f"{candidate.message}{on_branch(run.guards)}"


def on_branch(guards: Mapping[str, bool]) -> str:
    """The conditions that a replay answered itself, for a message."""
    if not guards:
        return ""
    branches = ", ".join(f"{line} {'true' if taken else 'false'}" for line, taken in guards.items())
    return f" (seen with the conditions on lines: {branches})"
