"""# gradients-discarded

## What it does
Finds a `zero_grad()` between the backward and the step of an iteration, and one that runs in every micro-batch while
the step waits for several.

## Why it matters
What `zero_grad()` clears before the step has used it is lost. Between backward and step it leaves nothing: the step
changes no weight, or moves them by momentum and weight decay alone. In every micro-batch of an accumulation it leaves
the last one: three quarters of the work are thrown away with four micro-batches, and the batch is in effect a
quarter of what is written.

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
    optimizer.zero_grad()
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
    loss = criterion(model(inputs), targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
```

## How it is confirmed
The statements of the training step run on real PyTorch with recorders. The finding is confirmed if the call was seen
to clear gradients that no step had used, the step behind it met none (under accumulation: no more than half of what
the backward passes since the last step had given), and it meets all of them once the call has been moved: to ahead
of the backward, or to behind the guarded step. The same edit is what `--fix` applies. It is safe where only plain
statements that do not touch gradients are crossed; a move into the guard of the step is unsafe.

## When to ignore it
When a step is meant to move the weights by momentum or weight decay alone.

## References
- PyTorch documentation, torch.optim.Optimizer.zero_grad.
- PyTorch documentation, Automatic Mixed Precision examples: gradient accumulation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from gradlint.facts import FileFacts
from gradlint.facts.remedies import move_clearing
from gradlint.facts.step_trace import NO_EDIT, Spot, assumed, kind_of, not_run, on_branch, spot_of
from gradlint.facts.steps import Event, Region, StepFacts
from gradlint.facts.steps_report import candidate, in_one_function, own_events, where
from gradlint.facts.steps_states import Turn, turn_of
from gradlint.facts.steps_windows import cleared_each_turn, dropped_at
from gradlint.rule import Candidate, Judgement, Measurement, Rule, SourceEdit

KEPT = 0.5
"""Share of the micro-batches' gradients that is left at the step, up to which accumulation is defeated (FAULTS O9);
two micro-batches leave exactly this."""
MICRO_BATCHES = 4
"""Run with so many micro-batches to a step where the program leaves their number open (FAULTS O9)."""
ALL = 0.99
"""From this share on nothing was lost."""


def check(facts: FileFacts) -> Iterable[Candidate]:
    """Clearings that lose, on every path, what a backward of their iteration or window gave and a step waits for."""
    steps = facts.steps or StepFacts()
    for found in own_events(facts, "zero_grad"):
        proposals = [_suspect(facts, steps, *one) for one in found]
        first = proposals[0]
        calls = {event.frames[-1].call for *_, event in found}
        if len(calls) > 1:
            alone = [_at_call(facts, steps, *place) for place in found]
            lost = {one.location: one for one in alone if one is not None}
            if lost and len(lost) < len(calls):
                yield from lost.values()
                continue
        if first is not None and all(one is not None for one in proposals):
            yield first


def _at_call(facts: FileFacts, steps: StepFacts, region: Region, index: int, clear: Event) -> Candidate | None:
    """The call of a helper that does nothing but clear, where what it clears is lost at this call and not at others."""
    turn, call = turn_of(region, index), clear.frames[-1].call
    step = dropped_at(steps, turn, index, clear) if turn is not None else None
    if turn is None or step is None or call is None or len(clear.frames) < 2:
        return None
    if any(e.kind != "zero_grad" for _, e in region.events if e.frames[: len(clear.frames)] == clear.frames):
        return None
    name = clear.frames[-1].qualname.rpartition(".")[2]
    path = clear.frames[-2].path
    outer = dataclasses.replace(clear, location=call, path=path, frames=clear.frames[:-1], value=None, name=name)
    inner = {**steps.spot(clear), "through": call.line}
    return _candidate(facts, steps, turn, outer, step, accumulating=False, inner=inner)


def _suspect(facts: FileFacts, steps: StepFacts, region: Region, index: int, clear: Event) -> Candidate | None:
    turn = turn_of(region, index)
    if turn is None:
        return None
    step = dropped_at(steps, turn, index, clear)
    if step is not None:
        return _candidate(facts, steps, turn, clear, step, accumulating=False)
    step = cleared_each_turn(steps, turn, index, clear)
    return _candidate(facts, steps, turn, clear, step, accumulating=True) if step is not None else None


def places(facts: FileFacts) -> Iterable[Candidate]:
    """Every clearing of an iteration that has a backward and a step."""
    steps = facts.steps or StepFacts()
    for found in own_events(facts, "zero_grad"):
        region, index, clear = found[0]
        turn = turn_of(region, index)
        stepped = [e for _, e in turn.events("step")] if turn is not None else []
        if turn is not None and stepped:
            yield _candidate(facts, steps, turn, clear, stepped[0], accumulating=False, edit=False)


def _candidate(
    facts: FileFacts,
    steps: StepFacts,
    turn: Turn,
    clear: Event,
    step: Event,
    accumulating: bool,
    edit: bool = True,
    inner: Mapping[str, Any] | None = None,
) -> Candidate:
    backward = [e for _, e in turn.events("backward")]
    remedy = _remedy(steps, clear, step, backward, accumulating) if edit else None
    if accumulating:
        message = (
            f"{clear.name}() runs in every micro-batch, {step.name}() ({where(step, facts.path)}) only now and then: "
            "all but the last gradients of each accumulation window are thrown away"
        )
        help = f"clear only where {step.name}() was called"
    else:
        message = (
            f"{clear.name}() runs between backward and {step.name}() ({where(step, facts.path)}): the step finds no "
            "gradients"
        )
        help = "clear ahead of the backward, or behind the step"
    return candidate(
        "GL105",
        facts,
        steps,
        turn,
        clear,
        [step, *backward[:1]],
        message,
        help,
        edit=remedy,
        related=[(step, "the gradients are missing here")],
        told={
            **(inner or {"line": clear.line if clear.value is None else clear.value.line}),
            "step": steps.spot(step),
            "accumulating": accumulating,
        },
        same_batch=accumulating,
        accumulation=MICRO_BATCHES if accumulating else 1,
        remedy="clear-after-step" if edit and inner is None else "",
    )


def _remedy(
    steps: StepFacts, clear: Event, step: Event, backward: list[Event], accumulating: bool
) -> SourceEdit | None:
    if step.window:
        return None  # the condition is inside of the call
    near = [e for e in backward if e.frames == clear.frames] or backward
    if step.frames != clear.frames and clear.frames[: len(step.frames)] == step.frames:
        # in a closure that the step runs
        return move_clearing(steps.text(clear.path), clear.value or clear.location, [e.location for e in near], ())
    placed = in_one_function([clear, step, *near], clear.path)
    if placed is None or (accumulating and step.frames != clear.frames):
        return None
    what = clear.value if clear.value is not None and placed[0] == clear.location else placed[0]
    return move_clearing(steps.text(clear.path), what, placed[2:], [placed[1]], accumulate=accumulating)


def judge(candidate: Candidate, measurement: Measurement) -> Judgement:
    """Confirmed if the clearing was seen to lose gradients ahead of their step, and none after the edit."""
    if measurement.data is None:
        return not_run(measurement)
    data = measurement.data
    accumulating = bool(candidate.facts["accumulating"])
    common: dict[str, Any] = {"kind": kind_of(data), "assumed": assumed(candidate, data)}
    spot, stepped = spot_of(candidate.facts), spot_of(candidate.facts["step"])
    found = [
        (share, path.get("guards", {}))
        for path in data.get("paths", ())
        if (share := _share(path, spot, stepped)) is not None
    ]
    if not found:
        detail = "in the replay no step was made on the parameters that are cleared"
        return Judgement("unverified", reason="not-sliced", detail=detail, **common)
    share, guards = min(found, key=lambda one: one[0])
    common |= {"measured": {"kept_at_step": share}, "threshold": {"kept_at_step": KEPT if accumulating else 0.0}}
    if share > (1.001 * KEPT if accumulating else 0.0):
        return Judgement("refuted", detail="the step found the gradients", **common)
    if not candidate.facts["has_edit"]:
        return Judgement("unverified", reason="not-sliced", detail=NO_EDIT, **common)
    edited = [s for p in data.get("edited_paths", ()) if (s := _share(p, None, None)) is not None]
    if not edited:
        return Judgement("unverified", reason="not-sliced", detail="the edited step did not run", **common)
    after = {"kept_at_step": min(edited)}
    if min(edited) < ALL if accumulating else min(edited) == 0.0:
        detail = "moving the call did not help: gradients are lost elsewhere too"
        return Judgement("refuted", after_remedy=after, detail=detail, **common)
    message = f"{candidate.message}{on_branch(guards)}"
    return Judgement("confirmed", after_remedy=after, message=message, **common)


def _share(path: Mapping[str, Any], spot: Spot | None, stepped: Spot | None) -> float | None:
    """The smallest share of the gradients given since the last step that a step found; None where none can be told.

    With ``spot`` only steps count that a clearing there came ahead of.
    """
    steps = [e for e in path.get("events", ()) if e["kind"] == "step"]
    if stepped is not None and not any(map(stepped.holds, steps)):
        stepped = None  # the step is made inside of something that was stood in for
    shares: list[float] = []
    lost: set[str] = set()
    counted = 0
    for event in path.get("events", ()):
        if event["kind"] == "zero_grad":
            if (spot is None or spot.holds(event)) and _loses(event):
                lost.update(event.get("parameters", ()))
                counted += 1
        elif event["kind"] == "step" and not event.get("fenced"):
            mine = set(event.get("parameters", ()))
            at = stepped is None or stepped.holds(event)
            given = float(event.get("accumulated") or 0.0)
            if at and given > 0.0 and (spot is None or not lost or lost & mine):
                shares.append(float(f"{float(event['kept']) / given:.4g}"))
            lost -= mine
    if spot is not None and not counted:
        seen = any(e["kind"] == "zero_grad" and spot.holds(e) for e in path.get("events", ()))
        return 1.0 if shares and seen else None
    return min(shares, default=None)


def _loses(event: Mapping[str, Any]) -> bool:
    """Whether a clearing takes gradients that no step has used; of ``p.grad = None`` the trace tells how many went."""
    return not event.get("fenced") and bool(
        event.get("fresh") or (event.get("object") == "assignment" and event["cleared"])
    )


RULE = Rule(
    code="GL105",
    name="gradients-discarded",
    severity="error",
    proof="exact",
    summary="gradients are cleared before the step has used them",
    check=check,
    judge=judge,
    places=places,
    remedy="source-edit",
)
