"""# clip-other-parameters

## What it does
Finds a gradient clip whose parameters have nothing in common with those that the step behind it updates, while
nothing clips the latter.

## Why it matters
The clip works, on the wrong gradients. What the optimizer steps on is as large as the loss makes it, and the norm in
the log is that of another network. It happens where a block is copied from one network to the next, or where the
optimizer is given only a part of the model.

## Example
```python
import torch
from torch import nn

encoder = nn.Linear(10, 20)
head = nn.Linear(20, 1)
for parameter in encoder.parameters():
    parameter.requires_grad = False
optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
criterion = nn.MSELoss()
inputs, targets = torch.randn(32, 10), torch.randn(32, 1)

for step in range(20):
    optimizer.zero_grad()
    loss = criterion(head(torch.relu(encoder(inputs))), targets)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(encoder.parameters(), max_norm=1.0)
    optimizer.step()
```

## Use instead
```python
import torch
from torch import nn

encoder = nn.Linear(10, 20)
head = nn.Linear(20, 1)
for parameter in encoder.parameters():
    parameter.requires_grad = False
optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
criterion = nn.MSELoss()
inputs, targets = torch.randn(32, 10), torch.randn(32, 1)

for step in range(20):
    optimizer.zero_grad()
    loss = criterion(head(torch.relu(encoder(inputs))), targets)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(head.parameters(), max_norm=1.0)
    optimizer.step()
```

## How it is confirmed
The statements of the training step run on real PyTorch. The finding is confirmed if in every iteration the step
met gradients on parameters of which the clip, or any other clip, was given none. There is no remedy to apply: which
parameters were meant is for the author to say.

## When to ignore it
When only the other network is meant to be clipped, and the optimizer's own gradients are known to be small.

## References
- PyTorch documentation, torch.nn.utils.clip_grad_norm_.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gradlint.facts import FileFacts
from gradlint.facts.step_trace import Spot, assumed, kind_of, not_run, spot_of, turns
from gradlint.facts.steps import Event, Region, StepFacts
from gradlint.facts.steps_apart import unclipped_step
from gradlint.facts.steps_report import candidate, own_events, proposed, short, where
from gradlint.facts.steps_states import Turn, turn_of
from gradlint.rule import Candidate, Judgement, Measurement, Rule


def check(facts: FileFacts) -> Iterable[Candidate]:
    """Clips between a backward and the step of other parameters, which nothing clips."""
    if "add_param_group" in facts.text:
        return  # an optimizer comes to hold more than it was given

    def find(steps: StepFacts, region: Region, index: int, clip: Event) -> Candidate | None:
        turn = turn_of(region, index)
        step = unclipped_step(steps, turn, index, clip) if turn is not None and not clip.logging else None
        return _candidate(facts, steps, turn, clip, step) if turn is not None and step is not None else None

    yield from proposed(facts, "clip", find)


def places(facts: FileFacts) -> Iterable[Candidate]:
    """Every clip that shares an iteration with a backward and a step."""
    steps = facts.steps or StepFacts()
    for found in own_events(facts, "clip"):
        region, index, clip = found[0]
        turn = turn_of(region, index)
        stepped = [e for _, e in turn.events("step")] if turn is not None else []
        if turn is not None and stepped:
            yield _candidate(facts, steps, turn, clip, stepped[0])


def _candidate(facts: FileFacts, steps: StepFacts, turn: Turn, clip: Event, step: Event) -> Candidate:
    clipped = ", ".join(sorted(root.removeprefix("optimizer:") for root in clip.roots)) or "other parameters"
    return candidate(
        "GL108",
        facts,
        steps,
        turn,
        clip,
        [step],
        f"{short(clip)} clips {clipped}, and {step.name}() ({where(step, facts.path)}) updates other parameters, which "
        "nothing clips",
        f"clip the parameters that {step.object or 'the optimizer'} was given",
        related=[(step, "the unclipped gradients are used here")],
        told={"step": steps.spot(step), "given": sorted(steps.given(step.object))},
    )


def judge(candidate: Candidate, measurement: Measurement) -> Judgement:
    """Confirmed if every step behind the clip used gradients of which no clip was given any."""
    if measurement.data is None:
        return not_run(measurement)
    data = measurement.data
    common: dict[str, Any] = {"kind": kind_of(data), "assumed": assumed(candidate, data)}
    spot, stepped = spot_of(candidate.facts), spot_of(candidate.facts["step"])
    runs = [run for path in data.get("paths", ()) for run in _runs(path, spot, stepped)]
    if not runs:
        detail = "in the replay no step followed the clip"
        return Judgement("unverified", reason="not-sliced", detail=detail, **common)
    if not candidate.facts["given"]:
        detail = "the program does not show which parameters the optimizer was given"
        return Judgement("unverified", reason="not-sliced", detail=detail, **common)
    shared = any(common_one for common_one, _ in runs)
    norm = max(size for _, size in runs)
    common |= {
        "measured": {"clipped_and_stepped": int(shared), "norm_at_step": float(f"{norm:.6g}")},
        "threshold": {"clipped_and_stepped": 0},
    }
    if norm == 0.0:
        detail = "in the replay the step's own parameters had no gradients"
        return Judgement("unverified", reason="not-sliced", detail=detail, **common)
    if shared and any(_STAND_IN.match(str(value)) for value in common["assumed"].values()):
        detail = "the replay had to assume which parameters the optimizer holds"
        return Judgement("unverified", reason="not-sliced", detail=detail, **common)
    if shared:
        return Judgement("refuted", detail="the step's own parameters are clipped", **common)
    return Judgement("confirmed", **common)


_STAND_IN = re.compile(r"\w+\(lr=")
"""An optimizer that was made for the replay."""


def _runs(path: Mapping[str, Any], spot: Spot, stepped: Spot) -> Iterator[tuple[bool, float]]:
    """For each step behind the clip: whether any clip of the run was given some of its parameters, and its norm."""
    clips = [e for e in path.get("events", ()) if e["kind"] == "clip"]
    clipped = {key for e in clips for key in e.get("parameters", ())}
    for events in turns(path):
        at = next((k for k, e in enumerate(events) if e["kind"] == "clip" and spot.holds(e)), None)
        if at is None or not events[at].get("parameter_count"):
            continue
        for event in events[at + 1 :]:
            if event["kind"] == "step" and stepped.holds(event):
                mine = set(event.get("parameters", ()))
                yield bool(mine & clipped) or spot.key in event.get("norms", {}), float(event["norm"])
                break


RULE = Rule(
    code="GL108",
    name="clip-other-parameters",
    severity="warning",
    proof="exact",
    summary="the clip is given other parameters than the step updates",
    check=check,
    judge=judge,
    places=places,
    remedy="none: that clipped and stepped parameters have nothing in common is the symptom itself",
)
