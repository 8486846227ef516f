"""# missing-zero-grad

## What it does
Finds a training loop that makes backward passes and steps and never clears the gradients.

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
gives the same gradient. The finding is confirmed if the norm at the third step is more than 2.5 times that at the
first (a sum of three gives 3.0), and within 1.2 times of it once `zero_grad()` has been put ahead of the backward. The
same edit is what `--fix --unsafe-fixes` applies; it is never called safe, since only the author knows whether the
gradients were meant to add up over several iterations.

## When to ignore it
When the gradients of all iterations are meant to be summed. Under a gradient scaler the leftovers are divided by the
loss scale at the next `unscale_` and hardly count; then the experiment refutes the finding.

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
from gradlint.facts.steps_repeat import never_cleared, repeating
from gradlint.facts.steps_report import candidate, own_events, where
from gradlint.facts.steps_states import Turn, turn_of
from gradlint.rule import Candidate, Judgement, Measurement, Rule, SourceEdit

GROWN = 2.5
"""Norm at the third step, over that of one iteration's own gradient, from which gradients have piled up: three equal
ones give 3 (FAULTS O7)."""
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
            if not repeating(steps, turn, index) or not never_cleared(steps, turn, step):
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
        f"the gradients are never cleared in this loop: each {step.name}() ({where(step, facts.path)}) uses the sum of "
        "the gradients of all iterations so far",
        f"call {clear} once in each iteration, ahead of {backward.name}()",
        edit=remedy,
        related=[(step, "the summed gradients are used here")],
        told={
            "step": steps.spot(step),
        },
        same_batch=True,
        remedy="clear-after-step" if edit else "",
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
    spot = spot_of(candidate.facts["step"])
    common: dict[str, Any] = {"kind": kind_of(data), "assumed": {**assumed(candidate, data), "lr": 0, "clip": "off"}}
    written = _worst(data.get("paths", ()), spot)
    if written is None:
        detail = "in the replay fewer than three steps were made with gradients"
        return Judgement("unverified", reason="not-sliced", detail=detail, **common)
    norms, guards = written
    growth = _growth(norms)
    common |= {
        "measured": {"own_gradient": norms[0], "norms_at_steps": norms[1:], "growth": growth},
        "threshold": {"growth": GROWN},
    }
    if growth < STEADY:
        return Judgement("refuted", detail="the gradient at the step does not grow", **common)
    if growth <= GROWN:
        return Judgement("unverified", reason="inconclusive", detail="the gradient grows, by less than a sum", **common)
    if not candidate.facts["has_edit"]:
        return Judgement("unverified", reason="not-sliced", detail=NO_EDIT, **common)
    edited = _worst(data.get("edited_paths", ()), None)
    if edited is None:
        return Judgement("unverified", reason="not-sliced", detail="the edited loop did not run", **common)
    after = {"growth": _growth(edited[0])}
    if after["growth"] >= STEADY:
        return Judgement("refuted", after_remedy=after, detail="clearing the gradients did not help", **common)
    message = f"{candidate.message}{on_branch(guards)}"
    return Judgement("confirmed", after_remedy=after, message=message, **common)


def _worst(paths: Sequence[Mapping[str, Any]], spot: Spot | None) -> tuple[list[float], Mapping[str, bool]] | None:
    """Of the optimizer whose norms grow most, over all paths: one iteration's own norm, and those at three steps."""
    found = [(norms, path.get("guards", {})) for path in paths for norms in _series(path, spot)]
    return max(found, key=lambda one: _growth(one[0]), default=None)


def _series(path: Mapping[str, Any], spot: Spot | None) -> Iterator[list[float]]:
    by_optimizer: dict[str, list[Mapping[str, Any]]] = {}
    for event in path.get("events", ()):
        if event["kind"] != "step" or event.get("fenced") or event.get("evaluation", 0):
            continue
        if (spot is None or spot.holds(event)) and event.get("accumulated") and "norm_unscaled" in event:
            by_optimizer.setdefault(event["object"], []).append(event)
    for events in by_optimizer.values():
        if len(events) >= 3:
            own = float(events[2]["accumulated"])
            yield [float(f"{n:.6g}") for n in (own, *(float(e["norm_unscaled"]) for e in events[:3]))]


def _growth(norms: Sequence[float]) -> float:
    """The norm at the third step over that of what its own iteration gave: of one batch, that at the first step."""
    return float(f"{norms[3] / norms[0]:.4g}")


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
