"""# step-without-backward

## What it does
Finds an optimizer step that no path gives a fresh gradient: nothing has run backward since the gradients were
cleared, or since the same optimizer made its last step. That is also so where the loss is computed between clearing
and step and its backward has been forgotten.

## Why it matters
A step without gradients changes no weight (or lets momentum and weight decay move them). In the order `zero_grad`,
`step`, `backward` every gradient is computed and then cleared before it is used: the loss is printed, and nothing
learns. A second step in one iteration, such as `optimizer.step()` behind `scaler.step(optimizer)`, applies the same
gradient twice: the learning rate is not the one that is written, and what the scaler skips is done all the same.

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
    optimizer.zero_grad()
    optimizer.step()
    loss.backward()
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
    loss = criterion(model(inputs), targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
```

## How it is confirmed
The statements of the training step run on real PyTorch with recorders, on both branches of conditions that are not
known. The finding is confirmed if every run of the step found gradients that are missing or exactly 0, although the
iteration ran to its end; for a second step, if no backward had reached its parameters since the first. There is no
remedy to apply: whether the step or the backward is in the wrong place is for the author to say.

## When to ignore it
When a first step without gradients is made on purpose, to start a schedule.

## References
- PyTorch documentation, torch.optim: taking an optimization step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gradlint.facts import FileFacts
from gradlint.facts.step_trace import assumed, kind_of, not_run, spot_of
from gradlint.facts.steps import Event, Region, StepFacts
from gradlint.facts.steps_loss import loss_left
from gradlint.facts.steps_repeat import mistaken, repeated, unfed
from gradlint.facts.steps_report import candidate, own_events, proposed, where
from gradlint.facts.steps_states import Turn, turn_of
from gradlint.rule import Candidate, Judgement, Measurement, Rule


def check(facts: FileFacts) -> Iterable[Candidate]:
    """Steps that only cleared gradients can reach, in an iteration that computes a gradient too late or never."""

    def find(steps: StepFacts, region: Region, index: int, step: Event) -> Candidate | None:
        turn = unfed(steps, region, index, step)
        if turn is not None:
            return _candidate(facts, steps, turn, step)
        turn = turn_of(region, index)
        idle = mistaken(steps, turn, index, step) if turn is not None else None
        return _mistaken(facts, steps, turn, step, idle) if turn is not None and idle else None

    return proposed(facts, "step", find)


def places(facts: FileFacts) -> Iterable[Candidate]:
    """Every step of an iteration with a backward."""
    steps = facts.steps or StepFacts()
    for found in own_events(facts, "step"):
        region, index, step = found[0]
        turn = turn_of(region, index)
        if turn is not None:
            yield _candidate(facts, steps, turn, step)


def _candidate(facts: FileFacts, steps: StepFacts, turn: Turn, step: Event) -> Candidate:
    backward = [e for _, e in turn.events("backward")]
    first = repeated(steps, turn, step)
    if first is not None:
        return candidate(
            "GL106",
            facts,
            steps,
            turn,
            step,
            [first, *backward[:1]],
            f"{step.name}() repeats {first.name}() ({where(first, facts.path)}): no backward has run in between, and "
            "the same gradients are applied twice",
            f"step {step.object} once in each iteration",
            related=[(first, "the gradients are used here")],
            told={"again": True},
        )
    index = next(k for k, e in turn.events("step") if e == step)
    left = loss_left(steps, turn, index, step)
    if left is not None:
        why = f"no backward runs on {left} between its clearing and it"
        help = f"call {left}.backward() ahead of {step.name}()"
        backward = []
    elif backward and _another_begins(turn, step):
        why = "no backward runs between its clearing and it"
        help = f"call backward() on the loss of {step.object} ahead of {step.name}()"
        backward = []
    elif backward:
        why = f"{backward[0].name}() ({where(backward[0], facts.path)}) comes only after it"
        help = f"call {backward[0].name}() ahead of {step.name}()"
    else:
        why = "nothing runs backward in this iteration"
        help = f"call backward() on the loss ahead of {step.name}()"
    return candidate(
        "GL106",
        facts,
        steps,
        turn,
        step,
        backward[:1],
        f"{step.name}() finds no gradients: {why}",
        help,
        related=[(e, "the gradients are computed here") for e in backward[:1]],
    )


def _another_begins(turn: Turn, step: Event) -> bool:
    """Whether another optimizer is cleared behind a step, ahead of any backward: the backward is not for this one."""
    at = next(k for k, e in turn.events("step") if e == step)
    first = min((k for k, _ in turn.events("backward") if k > at), default=None)
    cleared = [k for k, e in turn.events("zero_grad") if k > at and e.object != step.object]
    return first is not None and bool(cleared) and cleared[0] < first


def _mistaken(facts: FileFacts, steps: StepFacts, turn: Turn, step: Event, idle: str) -> Candidate:
    backward = [e for _, e in turn.events("backward") if e.line < step.line]
    return candidate(
        "GL106",
        facts,
        steps,
        turn,
        step,
        backward[-1:],
        f"{step.name}() finds no new gradients, and {idle} never steps",
        f"call {idle}.step() here, if the backward ahead is meant for it",
        related=[(e, "the gradients computed here are not its own") for e in backward[-1:]],
        told={"again": True},
    )


def judge(candidate: Candidate, measurement: Measurement) -> Judgement:
    """Confirmed if every run of the step found no gradient, or none but zeros."""
    if measurement.data is None:
        return not_run(measurement)
    data = measurement.data
    common: dict[str, Any] = {"kind": kind_of(data), "assumed": assumed(candidate, data)}
    spot = spot_of(candidate.facts)
    events = [e for path in data.get("paths", ()) for e in path.get("events", ()) if e["kind"] == "step"]
    runs = [e for e in events if spot.holds(e) and not e.get("fenced")]
    again = candidate.facts.get("again") is True
    if not runs:
        detail = "in the replay the step was not made"
        return Judgement("unverified", reason="not-sliced", detail=detail, **common)
    largest = max(float(e["norm"]) for e in runs)
    measured = {"norm_at_step": float(f"{largest:.6g}"), "steps": len(runs)}
    if again:
        fresh = sum(bool(e.get("fresh")) for e in runs)
        common |= {"measured": {**measured, "fresh": fresh}, "threshold": {"fresh": 0}}
        if fresh:
            return Judgement("refuted", detail="a backward ran between the two steps", **common)
        return Judgement("confirmed", **common)
    common |= {"measured": measured, "threshold": {"norm_at_step": 0.0}}
    if largest > 0.0 or any(e.get("fresh") for e in runs):
        return Judgement("refuted", detail="the step found gradients", **common)
    return Judgement("confirmed", **common)


RULE = Rule(
    code="GL106",
    name="step-without-backward",
    severity="error",
    proof="exact",
    summary="an optimizer steps where no backward has given it a gradient",
    check=check,
    judge=judge,
    places=places,
    remedy="none: a step without a gradient is the symptom itself, and two calls could be the misplaced one",
)
