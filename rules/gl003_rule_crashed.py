"""# rule-crashed

## What it does
Reports a rule that raised an exception while it read a file, or a rule file that could not be loaded. Everything that
the other rules found is reported all the same. The exit status is 2.

## Why it matters
A rule that crashed has not looked at the code. That is a fault of the rule, never of the code it read.

## Example
A rule file of your own that does not set `RULE`:
```python
import torch

rule = None
```

## Use instead
```python
from gradlint.rule import Rule

RULE = Rule(...)
```

## How it is confirmed
The exception was caught; its type and text stand in the message.

## When to ignore it
Never for long. Put the crashing rule on `ignore` until it is mended, and report it if it is one of gradlint's own.

## References
- How to write a rule: CONTRIBUTING.md
"""

from __future__ import annotations

from collections.abc import Iterable

from gradlint.facts import FileFacts
from gradlint.rule import Candidate, Judgement, Measurement, Rule


def check(facts: FileFacts) -> Iterable[Candidate]:
    """Nothing: a crash is noticed by whoever runs the rules."""
    return ()


def judge(candidate: Candidate, measurement: Measurement) -> Judgement:
    """The exception was seen, not measured."""
    return Judgement("confirmed", kind="static")


RULE = Rule(
    code="GL003",
    name="rule-crashed",
    severity="error",
    proof="static",
    summary="a rule raised an exception, or could not be loaded",
    check=check,
    judge=judge,
    places=check,
    remedy="none: an exception is seen, not measured",
)
