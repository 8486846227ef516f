"""# exhausted-parameters

## What it does
Finds an iterator of parameters (`filter`, `map`, a generator, `model.parameters()` itself) that is used twice: the
second time it is empty.

## Why it matters
`filter(lambda p: p.requires_grad, model.parameters())` can be run through once. The optimizer does, and a clip that is
given the same object afterwards gets no parameters: it clips nothing, returns 0, and raises no error. `filter` and
`map` objects do not even get the warning that PyTorch prints for generators.

## Example
```python
import torch
from torch import nn

model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 1))
params = filter(lambda p: p.requires_grad, model.parameters())
optimizer = torch.optim.SGD(params, lr=0.1)
criterion = nn.MSELoss()
inputs, targets = torch.randn(32, 10), torch.randn(32, 1)

for step in range(20):
    optimizer.zero_grad()
    loss = criterion(model(inputs), targets)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(params, max_norm=1.0)
    optimizer.step()
```

## Use instead
```python
import torch
from torch import nn

model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 1))
params = list(filter(lambda p: p.requires_grad, model.parameters()))
optimizer = torch.optim.SGD(params, lr=0.1)
criterion = nn.MSELoss()
inputs, targets = torch.randn(32, 10), torch.randn(32, 1)

for step in range(20):
    optimizer.zero_grad()
    loss = criterion(model(inputs), targets)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(params, max_norm=1.0)
    optimizer.step()
```

## How it is confirmed
The program's statements run on real PyTorch, with the iterator in a wrapper that counts what each consumer gets. The
finding is confirmed if the first consumer got parameters and this one none, and it gets them once the iterator has
been wrapped in `list()`. The same edit is what `--fix` applies: a list can be run through wherever an iterator can. It
is safe where the first use follows at once, and unsafe where the parameters might change in between, since a list
holds those of the moment it is made.

## When to ignore it
When the second use is meant to find nothing.

## References
- Python documentation, iterator types.
- PyTorch documentation, torch.nn.utils.clip_grad_norm_.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gradlint.facts import FileFacts
from gradlint.facts.remedies import wrap_in_list
from gradlint.facts.step_trace import NO_EDIT, Spot, assumed, edited_spots, kind_of, not_run, spot_of
from gradlint.facts.steps import StepFacts
from gradlint.facts.steps_consumed import SecondUse, second_uses
from gradlint.facts.steps_report import entered_at, in_region, moved_to, where
from gradlint.rule import Candidate, Judgement, Measurement, Related, Rule, StepExperiment


def check(facts: FileFacts) -> Iterable[Candidate]:
    """The second consumers of iterators that are made once."""
    steps = facts.steps or StepFacts()
    for use in second_uses(steps):
        yield _candidate(facts, steps, use)


def places(facts: FileFacts) -> Iterable[Candidate]:
    """Every consumer but the first of a name that is bound to parameters."""
    steps = facts.steps or StepFacts()
    for use in second_uses(steps, lists=True):
        yield _candidate(facts, steps, use, edit=False)


def _candidate(facts: FileFacts, steps: StepFacts, use: SecondUse, edit: bool = True) -> Candidate:
    made, first, second = use.made, use.first, use.second
    remedy = wrap_in_list(steps.text(made.path), made.value) if edit and made.value is not None else None
    again = first == second
    lines = (list(moved_to(remedy, second.line)) if made.path == second.path else [second.line]) if remedy else []
    already = "on its next run" if again else f"after {first.name} ({where(first, facts.path)})"
    frame = in_region(use.region, [made, second], facts.path)
    return Candidate(
        code="GL107",
        path=second.path,
        location=second.location,
        symbol=frame.qualname or "<module>",
        message=f"{made.name} is an iterator and is used up {already}: {second.name} gets no parameters",
        experiment=StepExperiment(
            facts.path,
            frame.qualname,
            entered_at(second, facts.path),
            remedy,
            entered_at(second, facts.path),
            edit_path=made.path,
            iterators=((made.line, made.name, str(steps.spot(made)["module"])),),
        ),
        help=f"make a list of it: {made.name} = list(...)",
        group=f"{second.path}:{second.line}",
        related=(Related(made.path, made.line, "the iterator is made here"),),
        facts={**steps.spot(second), "edited_lines": lines, "name": made.name},
    )


def judge(candidate: Candidate, measurement: Measurement) -> Judgement:
    """Confirmed if this consumer got nothing where an earlier one got parameters, and gets them after the edit."""
    if measurement.data is None:
        return not_run(measurement)
    data = measurement.data
    common: dict[str, Any] = {"kind": kind_of(data), "assumed": assumed(candidate, data)}
    runs = _runs(data.get("paths", ()), spot_of(candidate.facts))
    if not runs:
        detail = "in the replay the second consumer was not reached"
        return Judgement("unverified", reason="not-sliced", detail=detail, **common)
    most, least = max(before for before, _ in runs), min(got for _, got in runs)
    common |= {"measured": {"first_got": most, "got": least}, "threshold": {"got": 0}}
    if least > 0 or most == 0:
        return Judgement("refuted", detail="the consumer got parameters", **common)
    if not candidate.facts["edited_lines"]:
        return Judgement("unverified", reason="not-sliced", detail=NO_EDIT, **common)
    edited = [got for spot in edited_spots(candidate) for _, got in _runs(data.get("edited_paths", ()), spot)]
    if not edited:
        return Judgement("unverified", reason="not-sliced", detail="the consumer did not run after the edit", **common)
    after = {"got": min(edited)}
    if min(edited) == 0:
        return Judgement("refuted", after_remedy=after, detail="a list did not help", **common)
    return Judgement("confirmed", after_remedy=after, **common)


def _runs(paths: Sequence[Mapping[str, Any]], spot: Spot) -> list[tuple[int, int]]:
    """For each run of the consumer on ``line``: the most that an earlier consumer got, and what it got itself."""
    found: list[tuple[int, int]] = []
    for path in paths:
        most: dict[str, int] = {}
        for event in path.get("events", ()):
            if event["kind"] != "consume":
                continue
            name, got = str(event.get("name", "")), int(event["yielded"])
            if spot.holds(event):
                found.append((most.get(name, 0), got))
            most[name] = max(most.get(name, 0), got)
    return found


RULE = Rule(
    code="GL107",
    name="exhausted-parameters",
    severity="error",
    proof="exact",
    summary="an iterator of parameters is used a second time, when it is empty",
    check=check,
    judge=judge,
    places=places,
    remedy="source-edit",
)
