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


def move_before(
    text: str, what: Location, before: Sequence[Location], after: Sequence[Location] = (), scaled: bool = False
) -> SourceEdit | None:
    """The text with one call moved to directly ahead of others; see :func:`gradlint.move_ahead.move_before`."""
    from gradlint import move_ahead

    return move_ahead.move_before(text, what, before, after, scaled)


def insert_unscale(
    text: str, clip: Location, scaler: str, optimizer: str, existing: Location | None = None
) -> SourceEdit | None:
    """The text with an ``unscale_`` ahead of a clip; see :func:`gradlint.edit_unscale.insert_unscale`."""
    from gradlint import edit_unscale

    return edit_unscale.insert_unscale(text, clip, scaler, optimizer, existing)


def insert_clearing(
    text: str, backward: Location, statement: str, after_step: Location | None = None
) -> SourceEdit | None:
    """The text with a ``zero_grad`` ahead of a backward, or behind a step; see
    :func:`gradlint.edit_clearing.insert_clearing`."""
    from gradlint import edit_clearing

    return edit_clearing.insert_clearing(text, backward, statement, after_step)


def move_clearing(
    text: str, what: Location, before: Sequence[Location], after: Sequence[Location], accumulate: bool = False
) -> SourceEdit | None:
    """The text with a ``zero_grad`` out of the way of a step; see :func:`gradlint.edit_clearing.move_clearing`."""
    from gradlint import edit_clearing

    return edit_clearing.move_clearing(text, what, before, after, accumulate)


def wrap_in_list(text: str, value: Location) -> SourceEdit | None:
    """The text with an iterator made a list; see :func:`gradlint.edit_list.wrap_in_list`."""
    from gradlint import edit_list

    return edit_list.wrap_in_list(text, value)


def put_under(text: str, what: Location, condition: str) -> SourceEdit | None:
    """The text with a call put under an ``if``; see :func:`gradlint.edit_guard.put_under`."""
    from gradlint import edit_guard

    return edit_guard.put_under(text, what, condition)
