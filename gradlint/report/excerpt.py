"""The lines of a file that a finding speaks of, with carets under the span."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gradlint.report.style import TAB, Style, visible, width
from gradlint.rule import Location
from gradlint.sources.suppress import last_line

MAX_LINES = 4
"""Longer spans show their first line only."""
MAX_CELLS = 200
"""Longer lines are cut: generated code has lines of megabytes."""

_COMMENT = re.compile(r"\s+#.*$")


def excerpt(lines: Sequence[str], location: Location, style: Style) -> list[str]:
    """The span with line numbers and carets; empty where the file has no such line."""
    if not 1 <= location.line <= len(lines):
        return []
    last = min(last_line(location), len(lines))
    if last - location.line >= MAX_LINES:
        last = location.line
    gutter = len(str(last))
    bar = style.cyan("|")
    out = [f"{' ' * gutter} {bar}"]
    for number in range(location.line, last + 1):
        out.append(f"{style.cyan(str(number).rjust(gutter))} {bar} {_shown(lines[number - 1])}".rstrip())
        if number == location.line:
            before, marked = _caret(lines[number - 1], location)
            out.append(f"{' ' * gutter} {bar} {' ' * before}{style.cyan('^' * marked)}")
    return out


def _shown(line: str) -> str:
    text = visible(line.rstrip().replace("\t", TAB))
    return text if len(text) <= MAX_CELLS else text[: MAX_CELLS - 3] + "..."


def _caret(line: str, location: Location) -> tuple[int, int]:
    """Cells before the carets, and how many there are."""
    start = location.column - 1
    end = location.end_column - 1 if location.end_line == location.line else len(_COMMENT.sub("", line.rstrip()))
    before = width(visible(line[:start].replace("\t", TAB)))
    marked = width(visible(line[start : max(end, start)].replace("\t", TAB)))
    before = min(before, MAX_CELLS - 1)
    return before, max(1, min(marked, MAX_CELLS - before))
