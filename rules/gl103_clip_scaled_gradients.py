"""# clip-scaled-gradients

## What it does
Finds a gradient clip that runs on gradients which still carry the loss scale of a gradient scaler, or of apex's
`amp.scale_loss` if it runs inside of that block.

## Why it matters
`scaler.scale(loss).backward()` makes gradients that are larger by the loss scale, 65536 at the start. A clip compares
these with its limit, so it always acts, and when `scaler.step()` divides by the scale, what is left of the gradient
is the limit divided by 65536. The learning rate is in effect thousands of times smaller than written, and changes
whenever the scale does.

## Example
```python
import torch
from torch import nn

model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scaler = torch.amp.GradScaler("cuda")
criterion = nn.MSELoss()
inputs, targets = torch.randn(32, 10), torch.randn(32, 1)

for step in range(20):
    optimizer.zero_grad()
    with torch.autocast("cuda", dtype=torch.float16):
        loss = criterion(model(inputs), targets)
    scaler.scale(loss).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
    scaler.step(optimizer)
    scaler.update()
```

## Use instead
```python
import torch
from torch import nn

model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scaler = torch.amp.GradScaler("cuda")
criterion = nn.MSELoss()
inputs, targets = torch.randn(32, 10), torch.randn(32, 1)

for step in range(20):
    optimizer.zero_grad()
    with torch.autocast("cuda", dtype=torch.float16):
        loss = criterion(model(inputs), targets)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
    scaler.step(optimizer)
    scaler.update()
```

## How it is confirmed
The statements of the training step run on real PyTorch, with a scaler that works on the CPU and otherwise has the
arguments of the program's own. The finding is confirmed if the clip met scaled gradients whose true norm was above
the limit, less than half of the limit was left at the step, and between half and 1.01 times the limit is left once
`unscale_` has been put ahead of the clip. The same edit is what `--fix` applies: safe where an `unscale_` that is
there moves up in the clip's own block, with `--unsafe-fixes` where one has to be written or more is crossed.

## When to ignore it
When the scaler is switched off for this run; a literal `enabled=False` says so, and is not reported.

## References
- PyTorch documentation, Automatic Mixed Precision examples: gradient clipping.
- PyTorch documentation, torch.amp.GradScaler.unscale_.
"""

from __future__ import annotations

from collections.abc import Iterable

from gradlint.facts import FileFacts
from gradlint.facts.remedies import insert_unscale, move_before
from gradlint.facts.step_trace import CURE_SHARE, clip_judgement, scaled_run
from gradlint.facts.steps import Event, Region, StepFacts
from gradlint.facts.steps_apart import unclipped_step
from gradlint.facts.steps_events import APEX
from gradlint.facts.steps_report import candidate, in_one_function, own_events, proposed, short, where
from gradlint.facts.steps_states import Phase, Turn, guards_held, phases, stepped_by, turn_of
from gradlint.facts.steps_words import PRECISION, tells_listeners, words
from gradlint.rule import Candidate, Judgement, Measurement, Rule, SourceEdit

_SCALED: frozenset[Phase] = frozenset({"scaled", "scaled-clipped"})
_PRECISION = frozenset(
    {"scaler", "amp", "fp", "half", "mixed", "precision", "autocast", "float", "bf", "apex", "dtype"}
)
"""In the name of a condition that may decide whether the loss is scaled."""


def check(facts: FileFacts) -> Iterable[Candidate]:
    """Clips that meet scaled gradients on every path, with a step through the scaler behind them."""

    def find(steps: StepFacts, region: Region, index: int, clip: Event) -> Candidate | None:
        turn = turn_of(region, index)
        if turn is None or clip.logging or clip.own_scale or clip.wrapper:
            return None
        ahead = phases(steps, turn.graph, clip, passed_over=_keeps_the_scale).get(index, frozenset())
        if not _SCALED & ahead or not ahead <= _SCALED | {"fresh", "clipped", "unscaled"}:
            return None
        if "unscaled" in ahead and not _skipped_at_times(steps, turn, index, clip):
            return None
        if not ahead <= _SCALED and _asks_for_precision(turn, index):
            return None
        if unclipped_step(steps, turn, index, clip) is not None:
            return None  # GL108: it is another network that is clipped
        stepped = _steps_behind(steps, turn, index, clip)
        return _candidate(facts, steps, turn, clip, stepped) if stepped else None

    return proposed(facts, "clip", find)


def places(facts: FileFacts) -> Iterable[Candidate]:
    """Every clip that shares an iteration with a backward and a step through a scaler."""
    steps = facts.steps or StepFacts()
    for found in own_events(facts, "clip"):
        region, index, clip = found[0]
        turn = turn_of(region, index)
        scaled = [e for _, e in turn.events("step") if e.scaler] if turn is not None else []
        if turn is not None and scaled and not clip.logging:
            yield _candidate(facts, steps, turn, clip, scaled[:1], edit=False)


def _keeps_the_scale(unknown: Event) -> bool:
    """Whether an unknown call only tells listeners of something that has nothing to do with precision."""
    return tells_listeners(unknown.name) and not PRECISION & set(words(unknown.name)) and not unknown.given


def _asks_for_precision(turn: Turn, index: int) -> bool:
    """Whether a condition round the clip may say, in other words, that no scaler is used."""
    held = guards_held(turn.graph).get(index, frozenset())
    return any(_PRECISION & set(words(name)) for guard in held for name in (guard.key, *guard.names))


def _skipped_at_times(steps: StepFacts, turn: Turn, index: int, clip: Event) -> bool:
    """Whether an ``unscale_`` ahead of the clip stands under a condition of its own, which says nothing of clipping."""
    held = guards_held(turn.graph)
    mine = held.get(index, frozenset())
    ahead = [(k, e) for k, e in turn.events("unscale") if e.line < clip.line and steps.related(clip, e) is not False]
    own = [held.get(k, frozenset()) - mine for k, _ in ahead]
    about = _PRECISION | {"clip", "clipping", "norm", "grad", "gradient", "max"}
    return bool(own) and all(
        guards and not any(about & set(words(name)) for guard in guards for name in (guard.key, *guard.names))
        for guards in own
    )


def _steps_behind(steps: StepFacts, turn: Turn, index: int, clip: Event) -> list[Event]:
    """The steps through a scaler that use what the clip left."""
    after = phases(steps, turn.graph, clip, "clipped", index, _keeps_the_scale)
    found = [e for k, e in turn.events("step") if "clipped" in after.get(k, frozenset())]
    apex = any(e.scaler == APEX for _, e in turn.events("unscale"))
    return [e for e in stepped_by(steps, clip, found) if e.scaler or apex]


def _candidate(
    facts: FileFacts, steps: StepFacts, turn: Turn, clip: Event, stepped: list[Event], edit: bool = True
) -> Candidate:
    step = stepped[0]
    backward = [e for _, e in turn.events("backward")]
    late = [e for _, e in turn.events("unscale") if e.line > clip.line and steps.related(clip, e) is not False]
    late = [e for e in late if not e.object or e.object in {s.object for s in stepped}]
    held = turn.own_guards(step) - turn.own_guards(clip)
    guarded = any(guard.counter for guard in held)  # an unscale_ in every micro-batch would raise
    remedy = _remedy(steps, clip, stepped, late, guarded) if edit else None
    missing = (
        f"unscale_ comes only after it ({where(late[0], facts.path)})" if late else "without an unscale_ before it"
    )
    return candidate(
        "GL103",
        facts,
        steps,
        turn,
        clip,
        [step, *backward[:1]],
        f"{short(clip)} runs on gradients that carry the loss scale, {missing}: its limit is compared with gradients "
        "that are thousands of times too large",
        f"call {step.written_scaler or step.scaler}.unscale_({step.written or 'optimizer'}) ahead of the clip"
        if step.scaler
        else "clip behind the block of scale_loss, which unscales the gradients as it ends",
        edit=remedy,
        related=[(e, "the loss is scaled here") for e in backward if e.scaler][:1],
        told={"by_value": clip.by_value},
        remedy="clip-at-step" if edit else "",
    )


def _remedy(steps: StepFacts, clip: Event, stepped: list[Event], late: list[Event], guarded: bool) -> SourceEdit | None:
    step = stepped[0]
    names = {(e.scaler, e.object) for e in stepped}
    if len(names) > 1 or not step.written or not step.written_scaler or step.path != clip.path:
        return None
    existing = next((e.location for e in late if e.path == clip.path), None)
    if (late and existing is None) or (clip.frames != step.frames and existing is None):
        return None
    placed = in_one_function([clip, step], clip.path)
    if placed is None:
        return None
    if guarded and not late:
        return move_before(steps.text(clip.path), placed[0], placed[1:], (), scaled=True)
    return insert_unscale(steps.text(clip.path), clip.location, step.written_scaler, step.written, existing)


def judge(candidate: Candidate, measurement: Measurement) -> Judgement:
    """Confirmed if the clip was seen to shrink the true gradient below half of its limit, and not after the edit."""
    return clip_judgement(candidate, measurement, scaled_run, floor=CURE_SHARE)


RULE = Rule(
    code="GL103",
    name="clip-scaled-gradients",
    severity="error",
    proof="exact",
    summary="gradients are clipped while they carry the loss scale",
    check=check,
    judge=judge,
    places=places,
    remedy="source-edit",
)
