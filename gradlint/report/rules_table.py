"""The rules as tables: for a terminal, and for the README."""

from __future__ import annotations

from collections.abc import Iterable

from gradlint.rule import Rule


def plain(rules: Iterable[Rule]) -> str:
    """One line for each rule: code, name, severity, what it reports."""
    rows = [(rule.code, rule.name, rule.severity, rule.summary) for rule in rules]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    return "".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip() + "\n"
        for row in rows
    )


def markdown(rules: Iterable[Rule]) -> str:
    """The table of the README."""
    lines = ["| code | name | severity | what it reports |", "|---|---|---|---|"]
    lines += [f"| {rule.code} | {rule.name} | {rule.severity} | {rule.summary} |" for rule in rules]
    return "\n".join(lines) + "\n"
