"""# unused-suppression

## What it does
Reports a comment that silences gradlint where gradlint has nothing to say: `# gradlint: ignore[...]`,
`# gradlint: ignore-file[...]`, or a `# noqa:` that names a GL code. Each code of a comment is looked at by itself.

## Why it matters
A suppression outlives the fault it was written for. Left in place it hides the next one on that line.

## Example
```python
import torch


def step(model, loss, optimizer):
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # gradlint: ignore[GL101] the order is right by now
    optimizer.step()
```

## Use instead
```python
import torch


def step(model, loss, optimizer):
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
```

## How it is confirmed
The named rule was run on the file and proposed nothing on that line. A candidate that an experiment would refute
counts as something: the comment saves that experiment. Rules that are not selected are not judged.

## When to ignore it
When another version of gradlint, or a rule of your own that is not loaded here, needs the comment.

## References
- Suppression comments of gradlint: README, section "Silencing a finding"
"""

from __future__ import annotations

from collections.abc import Iterable

from gradlint.facts import FileFacts
from gradlint.rule import Candidate, Judgement, Measurement, Rule


def check(facts: FileFacts) -> Iterable[Candidate]:
    """Nothing: what a comment silences is known only after every other rule has run."""
    return ()


def judge(candidate: Candidate, measurement: Measurement) -> Judgement:
    """That nothing met the comment was seen, not measured."""
    return Judgement("confirmed", kind="static")


RULE = Rule(
    code="GL002",
    name="unused-suppression",
    severity="warning",
    proof="static",
    summary="a comment silences gradlint where it has nothing to say",
    check=check,
    judge=judge,
    places=check,
    remedy="none: that a comment meets nothing is seen, not measured",
)
