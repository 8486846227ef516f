"""# clip-before-backward

## What it does
Finds a gradient clip that runs before the `backward()` of its iteration, while the optimizer's step comes after it.

## Why it matters
`clip_grad_norm_` scales the gradients that are there when it is called. Before `backward()` these are the leftovers
of the last iteration, or none at all. The gradients that reach `optimizer.step()` are never clipped: the training
runs as if the line were not there, and the norm it logs is the norm of something else. Nothing raises an error.

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
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
    optimizer.zero_grad()
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
    loss = criterion(model(inputs), targets)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
    optimizer.step()
```

## How it is confirmed
The statements of the training step run on real PyTorch with recorders around the clip, the backward and the step,
with a loss that makes the gradient ten times the limit. The finding is confirmed if the clip ran before the backward
of its iteration and the norm at the step is above 1.01 times the limit, and is at the limit once the clip has been
moved to after the backward. The same edit is what `--fix` applies.

## When to ignore it
When the norm is only logged; an infinite limit says so, and is not reported. A loop that clips and steps for the
gradients of the iteration before is right, and is not reported either.

## References
- R. Pascanu, T. Mikolov, Y. Bengio. On the difficulty of training recurrent neural networks. ICML 2013,
  arXiv 1211.5063.
- PyTorch documentation, torch.nn.utils.clip_grad_norm_.
- PyTorch documentation, Automatic Mixed Precision examples: gradient clipping.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from gradlint.facts import FileFacts
from gradlint.facts.cfg import Node
from gradlint.facts.remedies import move_after
from gradlint.facts.step_trace import clip_judgement, early_run
from gradlint.facts.steps import Event, Frame, Region, StepFacts, may_share
from gradlint.facts.steps_report import Finder, at_calls, candidate, depth_of_events, own_events, short, where
from gradlint.facts.steps_states import Turn, follow, place_in, reaches, turn_of
from gradlint.facts.steps_words import KEEPS_SIZE, tells_listeners, words
from gradlint.rule import Candidate, Judgement, Measurement, Rule, SourceEdit

_States = frozenset[str]


@dataclasses.dataclass(frozen=True)
class _Course:
    """What follows a clip in its iteration."""

    backward: tuple[Event, ...]
    """The backward calls that are the first after the clip on some path."""
    steps: tuple[Event, ...]
    """The steps that such a backward reaches."""
    cleared: bool
    """Whether the gradients the clip saw are cleared ahead of the backward, on every path."""
    more: tuple[Event, ...] = ()
    """Further backward calls ahead of the step."""


def check(facts: FileFacts) -> Iterable[Candidate]:
    """Clips that come before the backward of their iteration on every path, in every region they belong to."""
    steps = facts.steps or StepFacts()
    for places_of_clip in own_events(facts, "clip"):
        if places_of_clip[0][2].logging:
            continue
        faults = [(region, node, clip, _fault(steps, region, node, clip)) for region, node, clip in places_of_clip]
        if any(fault == "right" for *_, fault in faults):
            found = [isinstance(fault, _Course) for *_, fault in faults]
            if any(found):
                yield from at_calls(facts, steps, places_of_clip, found, _finder(facts))
            continue
        for region, node, clip, fault in faults:
            if isinstance(fault, _Course):
                yield _candidate(facts, steps, region, node, clip, fault)
                break


def _finder(facts: FileFacts) -> Finder:
    def find(steps: StepFacts, region: Region, node: int, clip: Event) -> Candidate | None:
        fault = _fault(steps, region, node, clip)
        return _candidate(facts, steps, region, node, clip, fault) if isinstance(fault, _Course) else None

    return find


def places(facts: FileFacts) -> Iterable[Candidate]:
    """Every clip that shares an iteration with a backward and a step."""
    steps = facts.steps or StepFacts()
    for places_of_clip in own_events(facts, "clip"):
        region, node, clip = places_of_clip[0]
        turn = turn_of(region, node)
        if turn is None or clip.logging:
            continue
        inside = [event for index, event in region.events if _in(turn, index)]
        found = {kind: tuple(e for e in inside if e.kind == kind) for kind in ("backward", "step")}
        course = _Course(found["backward"][:1], found["step"][:1], False)
        if course.backward and course.steps:
            yield _candidate(facts, steps, region, node, clip, course, edit=False)


def _in(turn: Turn, index: int) -> bool:
    return turn.loop is None or turn.loop in turn.graph.nodes[index].loops


def _fault(steps: StepFacts, region: Region, index: int, clip: Event) -> _Course | str:
    """The course of a clip that is at fault; ``"right"`` if it is not, ``"late"`` if it repeats after its step,
    ``"aside"`` where no step follows at all."""
    turn = turn_of(region, index)
    if turn is None:
        return "aside" if not any(True for _ in region.of_kind("step")) else "right"
    before = _history(steps, turn, index, clip)
    course = _course(steps, turn, index, clip)
    if course is None:
        return "right" if any(reaches(turn.graph, index, k) for k, _ in turn.events("step")) else "aside"
    if before == {"start"}:
        return course
    if before <= {"start", "weak", "other"} and course.cleared:
        return course
    return "late" if before == {"consumed"} else "right"


def _history(steps: StepFacts, turn: Turn, index: int, clip: Event) -> _States:
    """What happened in this iteration ahead of the clip, over all paths."""

    def transfer(node: Node[Event], state: str) -> str:
        event = node.event
        if event is None:
            return state
        if event.kind == "backward":
            return "fresh"
        if event.kind == "unknown":
            if event.doubt == "strong" and not (tells_listeners(event.name) and state == "start"):
                return "strong"  # a listener runs no backward of its own beside that of the loop
            return "weak" if state == "start" and event.doubt == "weak" else state
        if _clears(steps, turn, clip, event):
            return "start"
        if event.kind == "step":
            other = steps.paired(clip, event) is False
            return ("other" if state == "fresh" else state) if other else "consumed"
        return state

    before = follow(turn.graph, {turn.graph.entry: frozenset({"start"})}, transfer)
    return before.get(index, frozenset())


def _clears(steps: StepFacts, turn: Turn, clip: Event, event: Event) -> bool:
    """Whether a ``zero_grad`` surely clears what the clip acts on: the same parameters, or the only optimizer's."""
    if event.kind != "zero_grad":
        return False
    if clip.roots and clip.roots <= event.roots:
        return True
    known = True if steps.named_together(clip, event) else steps.paired(clip, event)
    inside = {e.object for index, e in turn.region.events if e.kind == "step" and _in(turn, index)}
    return known is True or (known is None and len(inside) == 1)


def _course(steps: StepFacts, turn: Turn, index: int, clip: Event) -> _Course | None:
    """What follows the clip; None if a step, or something unknown, may come ahead of the backward, or another clip
    after it."""

    def transfer(node: Node[Event], state: str) -> str | None:
        event = node.event
        if event is None:
            return state
        if event.kind == "backward":
            return "ready"
        if _clears(steps, turn, clip, event):
            return "cleared" if state in {"clipped", "doubtful"} else state
        if event.kind == "unknown" and event.doubt == "weak":
            return "doubtful" if state == "clipped" else state
        if event.kind == "step" and state == "ready" and steps.paired(clip, event) is not False:
            return None
        return state

    start = {target: frozenset({"clipped"}) for target in turn.graph.successors[index]}
    before = follow(turn.graph, start, transfer)
    backward, more, stepped = [], [], []
    cleared = True
    for node, states in sorted(before.items()):
        event = turn.graph.nodes[node].event
        if event is None:
            continue
        waiting = bool(states - {"ready"})
        if event.kind == "backward" and waiting:
            backward.append(event)
            cleared &= states <= {"cleared", "ready"}
        elif event.kind == "step" and steps.paired(clip, event) is not False:
            if waiting:
                return None
            stepped.append(event)
        elif event.kind == "backward":
            more.append(event)
        elif _spoils(clip, event, waiting):
            return None
    if not backward or not stepped or ("doubtful" in _union(before.values()) and not cleared):
        return None
    return _Course(tuple(backward), tuple(stepped), cleared, tuple(more))


def _spoils(clip: Event, event: Event, waiting: bool) -> bool:
    if event.kind == "clip":
        other = event != clip and event.by_value is clip.by_value
        return not waiting and not event.logging and other and may_share(clip, event)
    if event.kind != "unknown" or event.doubt != "strong":
        return False
    if waiting or "clip" in event.name.lower():
        return True
    return "grad" in event.name.lower() and not KEEPS_SIZE & set(words(event.name.rpartition(".")[2]))


def _union(sets: Iterable[_States]) -> _States:
    return frozenset().union(*sets)


# -- the candidate


def _candidate(
    facts: FileFacts,
    steps: StepFacts,
    region: Region,
    node: int,
    clip: Event,
    course: _Course,
    edit: bool = True,
) -> Candidate:
    backward, step = course.backward[0], course.steps[0]
    turn = turn_of(region, node)
    assert turn is not None
    remedy, changed = _remedy(steps, region, clip, course) if edit and not region.trainer else (None, "")
    return candidate(
        "GL101",
        facts,
        steps,
        turn,
        clip,
        [backward, step],
        f"{short(clip)} runs before {backward.name}() ({where(backward, facts.path)}): "
        f"the gradients that {step.name}() uses are not clipped",
        f"move the call to after {backward.name}(), ahead of {step.name}()",
        edit=remedy,
        related=[(backward, "the gradients of this iteration are computed here")],
        told={"by_value": clip.by_value},
        edit_path=changed,
        remedy="clip-at-step" if edit else "",
    )


def _remedy(steps: StepFacts, region: Region, clip: Event, course: _Course) -> tuple[SourceEdit | None, str]:
    """The clip, or the call of the helper that does nothing but clip, moved to after the backward; in which file."""
    backward = (*course.backward, *course.more)
    depth = depth_of_events([clip, *backward])
    path = clip.frames[depth].path
    helper = clip.frames[: depth + 2]
    through = len(clip.frames) > depth + 1
    if through and any(e != clip for _, e in region.events if _reached(e, helper)):
        return None, ""
    after = [place_in(event, depth) for event in backward]
    inside = [event for event in course.steps if event.frames[: depth + 1] == clip.frames[: depth + 1]]
    before = [place_in(event, depth) for event in inside]
    scaled = any(event.scaler for event in (*backward, *course.steps))
    if scaled and len(inside) < len(course.steps):
        return None, ""
    edit = move_after(steps.text(path), place_in(clip, depth), after, before, scaled)
    return (dataclasses.replace(edit, applicability="unsafe") if edit and through else edit), path


def _reached(event: Event, frames: Sequence[Frame]) -> bool:
    return event.frames[: len(frames)] == tuple(frames)


# -- the judgement


def judge(candidate: Candidate, measurement: Measurement) -> Judgement:
    """Confirmed if the clip was seen to miss the gradients as written, and to clip them after the edit."""
    judgement = clip_judgement(candidate, measurement, early_run)
    stale = judgement.measured.get("clip_saw", 0.0) > 0.0 and "error" not in judgement.measured
    if judgement.verdict == "confirmed" and judgement.message == candidate.message and stale:
        message = f"{candidate.message}; what it clips is the previous iteration's"
        return dataclasses.replace(judgement, message=message)
    return judgement


RULE = Rule(
    code="GL101",
    name="clip-before-backward",
    severity="error",
    proof="exact",
    summary="gradients are clipped before this iteration's backward has computed them",
    check=check,
    judge=judge,
    places=places,
    remedy="source-edit",
)
