"""From paths and bytes to source text: discovery, encodings, syntax, suppression comments."""

from __future__ import annotations

from gradlint.sources.discover import discover
from gradlint.sources.suppress import Suppressions, Unused, read_suppressions
from gradlint.sources.text import Problem, SourceFile, decode, parse, read

__all__ = [
    "Problem",
    "SourceFile",
    "Suppressions",
    "Unused",
    "decode",
    "discover",
    "parse",
    "read",
    "read_suppressions",
]
