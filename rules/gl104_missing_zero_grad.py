"""# missing-zero-grad

## What it does
Finds a training loop that makes backward passes and steps and never clears the gradients, and the same in a closure
that LBFGS evaluates several times in one step.

## Why it matters
`backward()` adds to the gradients that are there. Without `zero_grad()` every step uses the sum of all gradients so
far: the effective step grows from iteration to iteration, old batches count as much as the new one, and the training
oscillates or diverges. Nothing raises an error. Clearing once per epoch, outside of the loop that steps, is the same
fault for all but the first batch.

## Example
```python
import torch
from torch import nn

model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
criterion = nn.MSELoss()
inputs, targets = torch.randn(32, 10), torch.randn(32, 1)

for step in range(20):
    loss = criterion(model(inputs), targets)
    loss.backward()
    optimizer.step()
```

## Use instead
```python
import torch
from torch import nn

model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
criterion = nn.MSELoss()
inputs, targets = torch.randn(32, 10), torch.randn(32, 1)

for step in range(20):
    optimizer.zero_grad()
    loss = criterion(model(inputs), targets)
    loss.backward()
    optimizer.step()
```

## How it is confirmed
The loop runs on real PyTorch with one batch, a learning rate of 0 and clips that do not act, so that every backward
gives the same gradient. The finding is confirmed if the norm at the third step is more than 2.5 times that of one
iteration's own gradient (a sum of three gives 3.0), and within 1.2 times of it once the gradients are cleared ahead of
the backward. Where a loop ends after two steps and what is round it clears, it has to be more than 1.75 times at the
second (a sum of two gives 2.0). Under a gradient scaler the leftovers are divided by the loss scale at the next
`unscale_` and hardly count. What counts there is the overflow that half precision meets now and then: one is made in
the first backward, and the finding is confirmed if the scaler then skips every further step, since the infinite
gradient is never cleared, and steps again after the edit. The same edit is what `--fix --unsafe-fixes` applies. It is
never called safe, since only the author knows whether the gradients were meant to add up over several iterations.

## When to ignore it
When the gradients of all iterations are meant to be summed.

## References
- PyTorch documentation, torch.optim.Optimizer.zero_grad.
- PyTorch tutorials, Zeroing out gradients in PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from gradlint.facts import FileFacts
from gradlint.facts.remedies import insert_clearing
from gradlint.facts.step_trace import NO_EDIT, Spot, assumed, kind_of, not_run, on_branch, spot_of
from gradlint.facts.steps import Event, StepFacts
from gradlint.facts.steps_repeat import never_cleared, repeated_by_itself, repeating
from gradlint.facts.steps_report import candidate, own_events, where
from gradlint.facts.steps_states import Turn, turn_of
from gradlint.rule import Candidate, Judgement, Measurement, Rule, SourceEdit

GROWN = 2.5
"""Norm at the third step, over that of one iteration's own gradient, from which gradients have piled up: three equal
ones give 3 (FAULTS O7)."""
GROWN_TWICE = 1.75
"""The same at the second step, where a loop clears before there is a third: half of the growth."""
STEADY = 1.2
"""The same ratio up to which they have not (FAULTS O7)."""


def check(facts: FileFacts) -> Iterable[Candidate]:
    """Loops that repeat a backward and a step, in which nothing may clear the gradients that the step uses."""
    steps = facts.steps or StepFacts()
    found: dict[tuple[str, int, str], Candidate] = {}
    cleared: set[tuple[str, int, str]] = set()
    for region in steps.regions:
        for index, step in region.of_kind("step"):
            turn = turn_of(region, index)
            backward = _nearest(turn, step) if turn is not None else None
            if turn is None or backward is None:
                continue
            place = (backward.path, backward.line, step.object)
            by_itself = repeated_by_itself(steps, step, backward)
            inside = backward.frames[: len(step.frames) + 1] if turn.loop is None and by_itself else ()
            if not (inside or repeating(steps, turn, index)) or not never_cleared(steps, turn, step, inside):
                cleared.add(place)
            else:
                found.setdefault(place, _candidate(facts, steps, turn, backward, step))
    lines = {place[:2]: one for place, one in reversed(found.items()) if place not in cleared}
    return list(reversed(lines.values()))


def places(facts: FileFacts) -> Iterable[Candidate]:
    """Every backward of a loop that steps."""
    steps = facts.steps or StepFacts()
    for found in own_events(facts, "backward"):
        region, index, backward = found[0]
        turn = turn_of(region, index)
        stepped = [e for _, e in turn.events("step")] if turn is not None and turn.loop is not None else []
        if turn is not None and stepped:
            yield _candidate(facts, steps, turn, backward, stepped[0], edit=False)


def _nearest(turn: Turn, step: Event) -> Event | None:
    """The backward of the iteration that comes last before the step, as the text is written."""
    found = [e for _, e in turn.events("backward")]
    ahead = [e for e in found if e.path != step.path or e.line <= step.line]
    return (ahead or found)[-1] if found else None


def _candidate(
    facts: FileFacts, steps: StepFacts, turn: Turn, backward: Event, step: Event, edit: bool = True
) -> Candidate:
    clear = f"{step.written or 'optimizer'}.zero_grad()"
    remedy = _remedy(steps, turn, backward, step, clear) if edit else None
    return candidate(
        "GL104",
        facts,
        steps,
        turn,
        backward,
        [step],
        _claim(steps, turn, backward, step, facts.path),
        f"call {clear} once in each iteration, ahead of {backward.name}()",
        edit=remedy,
        related=[(step, "the summed gradients are used here")],
        told={
            "step": steps.spot(step),
            "evaluations": _evaluated(steps, turn, backward, step),
        },
        same_batch=True,
        overflow=bool(step.scaler),
        remedy="clear-after-step" if edit else "",
    )


def _evaluated(steps: StepFacts, turn: Turn, backward: Event, step: Event) -> bool:
    return turn.loop is None and repeated_by_itself(steps, step, backward)


def _claim(steps: StepFacts, turn: Turn, backward: Event, step: Event, path: str) -> str:
    if _evaluated(steps, turn, backward, step):
        return (
            f"the gradients are never cleared in this closure, which {step.name}() ({where(step, path)}) evaluates "
            "several times: each evaluation gives the sum of the gradients of all so far"
        )
    others = any(e.object != step.object for _, e in turn.events("step"))
    function = "function, as those of the other optimizer are" if others else "function, which a training loop calls"
    where_not = "loop" if turn.loop is not None else function
    return (
        f"the gradients are never cleared in this {where_not}: each {step.name}() ({where(step, path)}) uses the sum "
        "of the gradients of all iterations so far"
    )


def _remedy(steps: StepFacts, turn: Turn, backward: Event, step: Event, clear: str) -> SourceEdit | None:
    """The clearing ahead of the backward; behind the step where the step has a condition of its own."""
    depth = len(step.frames)
    inside = backward.frames[:depth] == step.frames  # in its function, or in a closure that it runs
    if not step.written or not inside or step.path != backward.path:
        return None
    if len(backward.frames) > depth:
        return insert_clearing(steps.text(backward.path), backward.location, clear)
    held = turn.own_guards(step)
    guarded = any(g.counter for g in held)
    return insert_clearing(steps.text(backward.path), backward.location, clear, step.location if guarded else None)


def judge(candidate: Candidate, measurement: Measurement) -> Judgement:
    """Confirmed if the norm at the step grows from step to step on one batch, and does not after the edit."""
    if measurement.data is None:
        return not_run(measurement)
    data = measurement.data
    spot = _stepped(data.get("paths", ()), spot_of(candidate.facts["step"]))
    common: dict[str, Any] = {"kind": kind_of(data), "assumed": {**assumed(candidate, data), "lr": 0, "clip": "off"}}
    stuck = _steps_after_overflow(data.get("paths", ()), spot)
    if stuck is not None:
        return _overflowed(candidate, data, stuck, common)
    every = bool(candidate.facts["evaluations"])
    written = _worst(data.get("paths", ()), spot, every)
    if written is None:
        detail = "in the replay fewer than three steps were made with gradients"
        return Judgement("unverified", reason="not-sliced", detail=detail, **common)
    norms, guards = written
    growth = _growth(norms)
    grown = GROWN if len(norms) > 3 else GROWN_TWICE
    common |= {
        "measured": {"own_gradient": norms[0], "norms_at_steps": norms[1:], "growth": growth},
        "threshold": {"growth": grown},
    }
    if growth < STEADY:
        return Judgement("refuted", detail="the gradient at the step does not grow", **common)
    if growth <= grown:
        return Judgement("unverified", reason="inconclusive", detail="the gradient grows, by less than a sum", **common)
    if not candidate.facts["has_edit"]:
        return Judgement("unverified", reason="not-sliced", detail=NO_EDIT, **common)
    edited = _worst(data.get("edited_paths", ()), None, every)
    if edited is None:
        return Judgement("unverified", reason="not-sliced", detail="the edited loop did not run", **common)
    after = {"growth": _growth(edited[0])}
    if after["growth"] >= STEADY:
        return Judgement("refuted", after_remedy=after, detail="clearing the gradients did not help", **common)
    message = f"{candidate.message}{on_branch(guards)}"
    return Judgement("confirmed", after_remedy=after, message=message, **common)


def _stepped(paths: Sequence[Mapping[str, Any]], spot: Spot) -> Spot | None:
    """Where steps count; anywhere, if there is but one optimizer and its step is inside of something stood in for."""
    made = [e for path in paths for e in path.get("events", ()) if e["kind"] == "step"]
    return None if not any(map(spot.holds, made)) and len({e["object"] for e in made}) == 1 else spot


def _overflowed(candidate: Candidate, data: Mapping[str, Any], steps: int, common: Mapping[str, Any]) -> Judgement:
    """The verdict under a gradient scaler, which divides what is left over, but not an infinite gradient."""
    numbers: dict[str, Any] = {"measured": {"steps_after_overflow": steps}, "threshold": {"steps_after_overflow": 0}}
    if steps:
        return Judgement("refuted", detail="steps are made again after an overflow", **numbers, **common)
    again = _steps_after_overflow(data.get("edited_paths", ()), None)
    if again is None:
        return Judgement("unverified", reason="not-sliced", detail="the edited loop did not run", **numbers, **common)
    after = {"steps_after_overflow": again}
    if not again:
        return Judgement("refuted", after_remedy=after, detail="clearing did not help", **numbers, **common)
    message = (
        f"{candidate.message}; after one overflow of the loss scale the infinite gradient stays, and the scaler skips "
        "every further step"
    )
    return Judgement("confirmed", after_remedy=after, message=message, **numbers, **common)


def _steps_after_overflow(paths: Sequence[Mapping[str, Any]], spot: Spot | None) -> int | None:
    """How many steps were made after one that the scaler skipped, of two at least: the fewest over all paths."""
    found = []
    for path in paths:
        events = [e for e in path.get("events", ()) if e["kind"] == "step" and (spot is None or spot.holds(e))]
        first = next((k for k, e in enumerate(events) if e.get("skipped")), None)
        if first is not None and len(events) > first + 2:
            found.append(sum(not e.get("skipped") for e in events[first + 1 :]))
    return min(found, default=None)


def _worst(
    paths: Sequence[Mapping[str, Any]], spot: Spot | None, every: bool
) -> tuple[list[float], Mapping[str, bool]] | None:
    """Of the optimizer whose norms grow most, over all paths: one iteration's own norm, and those at three steps.

    ``every``: each evaluation of a closure counts as a step.
    """
    found = [(norms, path.get("guards", {})) for path in paths for norms in _series(path, spot, every)]
    return max(found, key=lambda one: _growth(one[0]), default=None)


def _series(path: Mapping[str, Any], spot: Spot | None, every: bool) -> Iterator[list[float]]:
    by_optimizer: dict[str, list[Mapping[str, Any]]] = {}
    by_parameters: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for event in path.get("events", ()):
        if event["kind"] != "step" or event.get("fenced") or (event.get("evaluation", 0) and not every):
            continue
        if (spot is None or spot.holds(event)) and event.get("accumulated") and "norm_unscaled" in event:
            by_optimizer.setdefault(event["object"], []).append(event)
            by_parameters.setdefault(tuple(event.get("parameters", ())), []).append(event)
    anew = max(map(len, by_optimizer.values()), default=0) < 3  # each iteration makes its optimizer
    cleared = [e for e in path.get("events", ()) if e["kind"] == "zero_grad"]
    for events in by_parameters.values() if anew else by_optimizer.values():
        if len(events) >= 3:
            own = float(events[0 if anew else 2]["accumulated"])
            norms = [float(e["norm_unscaled"]) for e in events[:3]]
            early = _cleared_between(path, events[0], events[1], cleared)
            if not early and _cleared_between(path, events[1], events[2], cleared):
                norms.pop()  # the loop is left after two steps, and what is round it clears
            yield [float(f"{n:.6g}") for n in (own, *norms)]


def _cleared_between(path: Mapping[str, Any], first: Any, second: Any, cleared: Sequence[Any]) -> bool:
    """Whether the optimizer of two steps is cleared between them."""
    events = list(path.get("events", ()))
    between = events[events.index(first) : events.index(second)]
    return any(e in between and e.get("object") == first.get("object") for e in cleared)


def _growth(norms: Sequence[float]) -> float:
    """The norm at the last step over that of what its own iteration gave: of one batch, that at the first step."""
    return float(f"{norms[-1] / norms[0]:.4g}")


RULE = Rule(
    code="GL104",
    name="missing-zero-grad",
    severity="error",
    proof="exact",
    summary="a loop makes backward passes and steps and never clears the gradients",
    check=check,
    judge=judge,
    places=places,
    remedy="source-edit",
)
