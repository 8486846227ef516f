"""# syntax-error

## What it does
Reports a file that mentions torch and cannot be read as Python: a syntax error, an encoding that does not hold, a NUL
byte, or code nested so deep that no parser follows it. Files that never mention torch are passed over.

## Why it matters
Nothing in such a file was checked. A run that said nothing about it would look like a clean one.

## Example
```python
import torch

def train(model, optimizer:
    optimizer.step()
```

## Use instead
```python
import torch

def train(model, optimizer):
    optimizer.step()
```

## How it is confirmed
Python's own parser refuses the file. Where that parser is older than the code, libcst is asked too: syntax that only a
later Python knows is not reported.

## When to ignore it
When the file is a template or a deliberately broken test case. It is better to exclude such files:
`exclude` or `extend-exclude` in `[tool.gradlint]`.

## References
- Python language reference, lexical analysis: https://docs.python.org/3/reference/lexical_analysis.html
- PEP 263, defining Python source code encodings: https://peps.python.org/pep-0263/
"""

from __future__ import annotations

from collections.abc import Iterable

from gradlint.facts import FileFacts
from gradlint.rule import Candidate, Judgement, Measurement, Rule


def check(facts: FileFacts) -> Iterable[Candidate]:
    """Nothing: where there are facts, the file could be read. The reader of the file reports it."""
    return ()


def judge(candidate: Candidate, measurement: Measurement) -> Judgement:
    """What the parser refused needs no experiment."""
    return Judgement("confirmed", kind="static")


RULE = Rule(
    code="GL001",
    name="syntax-error",
    severity="error",
    proof="static",
    summary="a file that mentions torch cannot be read as Python",
    check=check,
    judge=judge,
    places=check,
    remedy="none: what a parser refuses is seen, not measured",
)
