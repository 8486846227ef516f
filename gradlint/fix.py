"""Edits of a source text: the difference of two texts as edits, and edits applied.

The remedies themselves are made in the files ``move*.py`` and ``edit_*.py``, see :mod:`gradlint.facts.remedies`. They
need libcst, which is imported when one is made.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Sequence

from gradlint.rule import Edit, Location, SourceEdit

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+$")


def lines_of(text: str) -> list[str]:
    """The lines of a text with their ends, as the parser counts them: only CR, LF and CRLF end a line."""
    return _LINE.findall(text)


def edits(old: str, new: str) -> tuple[Edit, ...]:
    """The smallest edits by whole lines that turn ``old`` into ``new``.

    A deleted line goes from its column 1 to column 1 of the next line; an insertion is empty at column 1.
    """
    before, after = lines_of(old), lines_of(new)
    head = 0
    while head < min(len(before), len(after)) and before[head] == after[head]:
        head += 1
    tail = 0
    while tail < min(len(before), len(after)) - head and before[-1 - tail] == after[-1 - tail]:
        tail += 1
    middle_before, middle_after = before[head : len(before) - tail], after[head : len(after) - tail]
    found = []
    # Read backwards, a line that moved down past one other is the one that is taken out and put in again.
    matcher = difflib.SequenceMatcher(None, middle_before[::-1], middle_after[::-1], autojunk=False)
    for tag, i1, i2, j1, j2 in reversed(matcher.get_opcodes()):
        if tag != "equal":
            start = _position(before, head + len(middle_before) - i2)
            end = _position(before, head + len(middle_before) - i1)
            content = "".join(middle_after[len(middle_after) - j2 : len(middle_after) - j1])
            found.append(Edit(*start, *end, content))
    return tuple(found)


def move_after(
    text: str, what: Location, after: Sequence[Location], before: Sequence[Location], scaled: bool = False
) -> SourceEdit | None:
    """The text with the call ``what`` moved to after the calls ``after`` and ahead of ``before``, or None if refused.

    See :func:`gradlint.move.move_after`.
    """
    from gradlint import move  # libcst takes 250 ms to import

    return move.move_after(text, what, after, before, scaled)


def apply(text: str, changes: Sequence[Edit]) -> str:
    """The text after all the edits, whose positions are those of the text as it stands.

    Raises ValueError where two edits overlap.
    """
    spans = _spans(text, changes)
    for (_, end, _), (start, _, _) in itertools.pairwise(spans):
        if start < end:
            raise ValueError("the edits overlap")
    for start, end, content in reversed(spans):
        text = text[:start] + content + text[end:]
    return text


def apply_fixes(text: str, fixes: Sequence[Sequence[Edit]]) -> tuple[str, tuple[int, ...]]:
    """Apply each fix whole, or not at all where it touches lines of an earlier one; which ones were applied."""
    taken: list[Edit] = []
    applied = []
    for index, fix in enumerate(fixes):
        if fix and not any(_touch(one, other) for one in fix for other in taken):
            taken.extend(fix)
            applied.append(index)
    return apply(text, taken), tuple(applied)


def _touch(one: Edit, other: Edit) -> bool:
    first = ((one.line, one.column), (one.end_line, one.end_column))
    second = ((other.line, other.column), (other.end_line, other.end_column))
    if first[0] == second[0]:
        return True
    return first[0] < second[1] and second[0] < first[1]


def _position(lines: Sequence[str], index: int) -> tuple[int, int]:
    """Where line ``index`` (from 0) begins; past the last line, where the text ends."""
    if index < len(lines) or not lines or lines[-1].endswith(("\n", "\r")):
        return index + 1, 1
    return len(lines), len(lines[-1]) + 1


def _spans(text: str, changes: Sequence[Edit]) -> list[tuple[int, int, str]]:
    starts = [0]
    for line in lines_of(text):
        starts.append(starts[-1] + len(line))

    def offset(line: int, column: int) -> int:
        if not 1 <= line <= len(starts):
            raise ValueError(f"the text has no line {line}")
        return min(starts[line - 1] + column - 1, len(text))

    return sorted((offset(e.line, e.column), offset(e.end_line, e.end_column), e.content) for e in changes)
