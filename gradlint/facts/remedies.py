"""The source edits a rule may propose. They are made with libcst, which is imported when the first one is made."""

from __future__ import annotations

from collections.abc import Sequence

from gradlint.rule import Location, SourceEdit


def move_after(
    text: str, what: Location, after: Sequence[Location], before: Sequence[Location], scaled: bool = False
) -> SourceEdit | None:
    """The text with one call moved to after others and ahead of a third kind; see :func:`gradlint.move.move_after`."""
    from gradlint.fix import move_after as move

    return move(text, what, after, before, scaled)
