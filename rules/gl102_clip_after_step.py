"""# clip-after-step

## What it does
Finds a gradient clip that runs after the optimizer's step of its iteration.

## Why it matters
`optimizer.step()` uses the gradients as they are when it is called. A clip that comes later changes gradients that
were used already and that the next `zero_grad()` throws away: the training runs as if the line were not there. The
norm that it returns looks right in the log, which is why nobody notices.

## Example
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
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
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
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
    optimizer.step()
```

## How it is confirmed
The statements of the training step run on real PyTorch with recorders around the clip, the backward and the step,
with a loss that makes the gradient ten times the limit. The finding is confirmed if the step of an iteration met a
gradient norm above 1.01 times the limit ahead of the clip, and one at the limit once the clip has been moved to
before the step. The same edit is what `--fix` applies. It is safe where nothing but plain statements is crossed; it is
unsafe where the call goes into or out of a branch, or where an `unscale_` had to be written with it.

## When to ignore it
When the norm is only logged; an infinite limit says so, and is not reported.

## References
- PyTorch documentation, torch.nn.utils.clip_grad_norm_.
- PyTorch documentation, Automatic Mixed Precision examples: gradient clipping.
"""

from __future__ import annotations

from collections.abc import Iterable

from gradlint.facts import FileFacts
from gradlint.facts.remedies import move_before
from gradlint.facts.step_trace import clip_judgement, late_run
from gradlint.facts.steps import Event, Region, StepFacts
from gradlint.facts.steps_report import candidate, in_one_function, own_events, proposed, short, where
from gradlint.facts.steps_states import Turn, clears, guards_held, phases, stepped_by, turn_of
from gradlint.rule import Candidate, Judgement, Measurement, Rule, SourceEdit


def check(facts: FileFacts) -> Iterable[Candidate]:
    """Clips whose gradients a step of the same iteration has used, with no backward since and no step to come."""

    def find(steps: StepFacts, region: Region, index: int, clip: Event) -> Candidate | None:
        turn = turn_of(region, index)
        if turn is None or clip.logging:
            return None
        ahead = phases(steps, turn.graph, clip).get(index, frozenset())
        if "consumed" not in ahead and "spent" not in ahead:
            return None
        if not ahead <= {"consumed", "spent"} and not _in_vain(steps, turn, index, clip, ahead):
            return None
        if _used_later(steps, turn, index, clip):
            return None
        return _candidate(facts, steps, turn, clip)

    return proposed(facts, "clip", find)


def places(facts: FileFacts) -> Iterable[Candidate]:
    """Every clip that shares an iteration with a backward and a step."""
    steps = facts.steps or StepFacts()
    for found in own_events(facts, "clip"):
        region, index, clip = found[0]
        turn = turn_of(region, index)
        if turn is not None and not clip.logging:
            yield _candidate(facts, steps, turn, clip, edit=False)


def _in_vain(steps: StepFacts, turn: Turn, index: int, clip: Event, ahead: frozenset[str]) -> bool:
    """Whether gradients that some path leaves unused (their norm is not finite, say) are cleared behind the clip."""
    held = guards_held(turn.graph)
    mine = held.get(index, frozenset())
    stepped = [k for k, e in turn.events("step") if k < index and steps.related(clip, e) is not False]
    if not ahead <= {"consumed", "spent", "fresh", "unscaled"} or any(
        guard.counter for k in stepped for guard in held.get(k, frozenset()) - mine
    ):
        return False
    loops = turn.graph.nodes[index].loops
    return any(
        k > index
        and turn.graph.nodes[k].loops == loops
        and held.get(k, frozenset()) <= mine
        and clears(steps, e, clip, True) is True
        for k, e in turn.events("zero_grad")
    )


def _used_later(steps: StepFacts, turn: Turn, index: int, clip: Event) -> bool:
    """Whether a step of these gradients may follow the clip in its iteration."""
    after = phases(steps, turn.graph, clip, "clipped", index)
    later = [(k, e) for k, e in turn.events("step") if k in after and steps.related(clip, e) is not False]
    return any({"clipped", "scaled-clipped", "unknown"} & after[k] for k, _ in later)


def _candidate(facts: FileFacts, steps: StepFacts, turn: Turn, clip: Event, edit: bool = True) -> Candidate:
    ahead = [e for _, e in turn.events("step")]
    used = [e for e in stepped_by(steps, clip, ahead) if e.line <= clip.line or e.path != clip.path] or ahead
    step = used[-1]
    backward = [e for _, e in turn.events("backward")]
    last = max((e.line for e in backward if e.path == step.path and e.line < step.line), default=0)
    used = [e for e in used if e.path != step.path or e.line > last] or used  # not the first step of SAM
    remedy = _remedy(steps, clip, used, backward) if edit and not turn.region.trainer else None
    return candidate(
        "GL102",
        facts,
        steps,
        turn,
        clip,
        [step, *backward[:1]],
        f"{short(clip)} runs after {step.name}() ({where(step, facts.path)}), which has already used the gradients: "
        "the step is not clipped",
        f"move the call to directly ahead of {step.name}()",
        edit=remedy,
        related=[(step, "the gradients are used here")],
        told={"by_value": clip.by_value},
        remedy="clip-at-step" if edit else "",
    )


def _remedy(steps: StepFacts, clip: Event, used: list[Event], backward: list[Event]) -> SourceEdit | None:
    placed = in_one_function([clip, *used], clip.path)
    if placed is None:
        return None
    around = in_one_function([clip, *used, *backward], clip.path)
    scaled = any(e.scaler for e in used)
    behind = around[1 + len(used) :] if around is not None else []
    return move_before(steps.text(clip.path), placed[0], placed[1:], behind, scaled)


def judge(candidate: Candidate, measurement: Measurement) -> Judgement:
    """Confirmed if the step ahead of the clip was seen to use unclipped gradients, and clipped ones after the edit."""
    return clip_judgement(candidate, measurement, late_run)


RULE = Rule(
    code="GL102",
    name="clip-after-step",
    severity="error",
    proof="exact",
    summary="gradients are clipped after the optimizer's step of the iteration has used them",
    check=check,
    judge=judge,
    places=places,
    remedy="source-edit",
)
