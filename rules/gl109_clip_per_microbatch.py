"""# clip-per-microbatch

## What it does
Finds a gradient clip that runs in every micro-batch of a gradient accumulation, outside of the condition that holds
the step.

## Why it matters
Accumulation adds up the gradients of several micro-batches and steps on the sum. A clip in every micro-batch shrinks
the sum so far each time: the first micro-batches count less than the last one, and the step is not the clipped
gradient of the large batch. It is also work done for nothing.

## Example
```python
import torch
from torch import nn

model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
criterion = nn.MSELoss()
inputs, targets = torch.randn(32, 10), torch.randn(32, 1)

for step in range(20):
    loss = criterion(model(inputs), targets) / 4
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
    if (step + 1) % 4 == 0:
        optimizer.step()
        optimizer.zero_grad()
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
    loss = criterion(model(inputs), targets) / 4
    loss.backward()
    if (step + 1) % 4 == 0:
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
```

## How it is confirmed
The loop runs on real PyTorch until it has stepped several times. The finding is confirmed if the clip ran more often
than the step on its parameters, and just as often once it has been moved into the condition that holds the step. The
same edit is what `--fix --unsafe-fixes` applies; a move into a branch is never called safe. Under accelerate, whose
optimizer skips the steps of an accumulation by itself, the clip is put under `if accelerator.sync_gradients:`.

## When to ignore it
When each micro-batch is to be limited by itself, as some private training does, and the step is meant to use the sum
of clipped gradients.

## References
- PyTorch documentation, Automatic Mixed Precision examples: gradient accumulation.
- Accelerate documentation, gradient accumulation: clipping under sync_gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gradlint.facts import FileFacts
from gradlint.facts.remedies import move_before, put_under
from gradlint.facts.step_trace import NO_EDIT, Spot, assumed, edited_spots, kind_of, not_run, on_branch, spot_of
from gradlint.facts.steps import Event, Region, StepFacts
from gradlint.facts.steps_report import candidate, in_one_function, own_events, proposed, short, where
from gradlint.facts.steps_states import Turn, turn_of
from gradlint.facts.steps_windows import guarded_step
from gradlint.rule import Candidate, Judgement, Measurement, Rule, SourceEdit

MICRO_BATCHES = 4
"""Run with so many micro-batches to a step where the program leaves their number open (FAULTS O9)."""


def check(facts: FileFacts) -> Iterable[Candidate]:
    """Clips behind a backward that run where the step is held back by an accumulation's condition."""

    def find(steps: StepFacts, region: Region, index: int, clip: Event) -> Candidate | None:
        turn = turn_of(region, index)
        if turn is None or clip.logging:
            return None
        step = guarded_step(steps, turn, index, clip)
        return _candidate(facts, steps, turn, clip, step) if step is not None else None

    return proposed(facts, "clip", find)


def places(facts: FileFacts) -> Iterable[Candidate]:
    """Every clip that shares an iteration with a backward and a step."""
    steps = facts.steps or StepFacts()
    for found in own_events(facts, "clip"):
        region, index, clip = found[0]
        turn = turn_of(region, index)
        stepped = [e for _, e in turn.events("step")] if turn is not None else []
        if turn is not None and stepped and not clip.logging:
            yield _candidate(facts, steps, turn, clip, stepped[0], edit=False)


def _candidate(
    facts: FileFacts, steps: StepFacts, turn: Turn, clip: Event, step: Event, edit: bool = True
) -> Candidate:
    backward = [e for _, e in turn.events("backward")]
    remedy = _remedy(steps, turn, clip, step) if edit else None
    return candidate(
        "GL109",
        facts,
        steps,
        turn,
        clip,
        [step, *backward[:1]],
        f"{short(clip)} runs in every micro-batch, {step.name}() ({where(step, facts.path)}) only at the end of an "
        "accumulation window",
        f"clip where the step is made, directly ahead of {step.name}()",
        edit=remedy,
        related=[(step, "the accumulated gradients are used here")],
        told={"by_value": clip.by_value},
        same_batch=True,
        accumulation=MICRO_BATCHES,
        remedy="clip-at-step" if edit else "",
    )


def _remedy(steps: StepFacts, turn: Turn, clip: Event, step: Event) -> SourceEdit | None:
    wrapper = next((e.object for _, e in turn.events("accumulate")), None)
    if wrapper is not None:
        return put_under(steps.text(clip.path), clip.location, f"{wrapper}.sync_gradients")
    placed = in_one_function([clip, step], clip.path)
    if placed is None:
        return None
    return move_before(steps.text(clip.path), placed[0], [placed[1]], (), bool(step.scaler))


def judge(candidate: Candidate, measurement: Measurement) -> Judgement:
    """Confirmed if the clip ran more often than the step as written, and as often after the edit."""
    if measurement.data is None:
        return not_run(measurement)
    data = measurement.data
    common: dict[str, Any] = {"kind": kind_of(data), "assumed": assumed(candidate, data)}
    written = _most(data.get("paths", ()), spot_of(candidate.facts))
    if written is None:
        detail = "in the replay no step was made on the parameters that it clips"
        return Judgement("unverified", reason="not-sliced", detail=detail, **common)
    clips, guards = written
    common |= {"measured": {"clips_per_step": clips}, "threshold": {"clips_per_step": 1}}
    if clips <= 1:
        return Judgement("refuted", detail="the clip runs once for each step", **common)
    if not candidate.facts["edited_lines"]:
        return Judgement("unverified", reason="not-sliced", detail=NO_EDIT, **common)
    edited = [m for spot in edited_spots(candidate) if (m := _most(data.get("edited_paths", ()), spot))]
    if not edited:
        return Judgement("unverified", reason="not-sliced", detail="the moved clip did not run in the replay", **common)
    after = {"clips_per_step": max(count for count, _ in edited)}
    if after["clips_per_step"] > 1:
        return Judgement("refuted", after_remedy=after, detail="moving the clip did not help", **common)
    message = f"{candidate.message}{on_branch(guards)}"
    return Judgement("confirmed", after_remedy=after, message=message, **common)


def _most(paths: Sequence[Mapping[str, Any]], spot: Spot) -> tuple[int, Mapping[str, bool]] | None:
    """How often the clip ran, behind a backward, between two steps on its parameters: the most, over all paths."""
    found: list[tuple[int, Mapping[str, bool]]] = []
    for path in paths:
        count, fresh, stepped = 0, False, False
        for event in path.get("events", ()):
            if event["kind"] == "backward":
                fresh = bool(event.get("reached", 1))
            elif spot.holds(event) and (event["kind"] == "clip" or (event["kind"] == "unscale" and event.get("error"))):
                count, fresh = count + fresh, False  # a second unscale_ before the step raises
            elif event["kind"] == "step" and spot.key in event.get("norms", {}) and not event.get("fenced"):
                found.append((count, path.get("guards", {})))
                count, stepped = 0, True
        if count > 1 and not stepped:
            found.append((count, path.get("guards", {})))  # the path on which the condition never holds
    return max(found, key=lambda one: one[0], default=None)


RULE = Rule(
    code="GL109",
    name="clip-per-microbatch",
    severity="warning",
    proof="exact",
    summary="the clip runs in every micro-batch, the step only at the end of the accumulation",
    check=check,
    judge=judge,
    places=places,
    remedy="source-edit",
)
