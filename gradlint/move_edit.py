"""A move that was planned, made: checked against what it passes, written, and told safe from unsafe."""

from __future__ import annotations

from collections.abc import Sequence

import libcst as cst

from gradlint.move_cross import called, check, harmless, objects_of
from gradlint.move_holder import Taken
from gradlint.move_source import Line, Source
from gradlint.move_write import Insertion, Writer
from gradlint.rule import Location, SourceEdit


def relocated(
    source: Source,
    taken: Taken,
    moved: Sequence[cst.BaseStatement],
    insertions: Sequence[Insertion],
    crossed: Sequence[cst.CSTNode],
    about: Sequence[Location],
    description: str,
    *,
    jumps: bool = False,
    safe: bool = True,
) -> SourceEdit:
    """The text with statements moved, ``taken.first`` among them, across others.

    ``about`` are the calls that are meant to change places with them. With ``jumps`` a way out of the block may be
    passed; without ``safe`` it is unsafe for another reason.
    """
    check(source, moved, crossed, jumps)
    safe = safe and not any(insertion.nested or insertion.unscale for insertion in insertions)
    safe = safe and _harmless(source, taken.first, [node for node in crossed if node not in moved], about)
    writer = Writer(source)
    writer.move(taken, moved, insertions)
    return writer.finish("safe" if safe else "unsafe", description)


def reordered(
    source: Source,
    line: Line,
    moved: Sequence[int],
    to: int,
    about: Sequence[Location],
    description: str,
    written: str = "",
    safe: bool = True,
) -> SourceEdit:
    """The text with some of the statements of a line moved to ahead of the one at ``to``, where others are written."""
    smalls = list(line.body)
    low, high = min(to, *moved), max(to, moved[-1] + 1)
    crossed = [smalls[k] for k in range(low, high) if k not in moved]
    check(source, [smalls[k] for k in moved], crossed)
    safe = safe and not written and _harmless(source, smalls[moved[-1]], crossed, about)
    writer = Writer(source)
    ahead = [smalls[k] for k in range(to) if k not in moved]
    behind = [smalls[k] for k in range(to, len(smalls)) if k not in moved]
    writer.reorder(line, [*ahead, *writer.smalls(written), *(smalls[k] for k in moved), *behind])
    return writer.finish("safe" if safe else "unsafe", description)


def _harmless(source: Source, moved: cst.CSTNode, crossed: Sequence[cst.CSTNode], about: Sequence[Location]) -> bool:
    calls = [source.call_at(place) for place in about]
    expected = frozenset(called(call) for call in calls if call)
    objects = objects_of(source.tree(moved))
    return all(harmless(source.tree(node), objects, expected) for node in crossed)
