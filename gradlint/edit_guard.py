"""A call put under a condition: the remedy for a clip in every micro-batch where a wrapper guards the step itself."""

from __future__ import annotations

import itertools

import libcst as cst

from gradlint.move_cross import carry, check_result, scope_of
from gradlint.move_holder import held, take
from gradlint.move_names import binds, leaves, reads
from gradlint.move_source import Refused, Source, attempt
from gradlint.move_write import Writer, split_lead
from gradlint.rule import Location, SourceEdit


def put_under(text: str, what: Location, condition: str) -> SourceEdit | None:
    """Put the statement that is the call ``what`` under ``if condition:``, with the ones directly behind it that need
    its result; this is not safe.

    None where the call is only a part of its statement, shares its line with others, or stands under this condition
    already, and where its result is read where it may then be missing.
    """
    return attempt(lambda: _put_under(Source(text), what, condition))


def _put_under(source: Source, what: Location, condition: str) -> SourceEdit:
    way = source.path(what)
    if any(isinstance(at.statement, cst.If) and source.code(at.statement.test) == condition for at in way):
        raise Refused
    block, index = next(at for at in reversed(way) if isinstance(at.block, (cst.Module, cst.IndentedBlock)))
    holder = block.body[index]
    taken = take(source, holder, held(source, holder, what))
    if taken.remainder is not None:
        raise Refused
    result = binds(source.tree(holder))
    needing = itertools.takewhile(lambda node: reads(source.tree(node)) & result, block.body[index + 1 :])
    moved = [taken.holder, *carry(source, holder, needing)]
    if any(leaves(source.tree(node)) for node in moved):
        raise Refused
    check_result(source, moved, scope_of(source, way, moved))
    writer = Writer(source)
    writer.gone.update(moved[1:])
    inside = [copy for node in moved for copy in writer.copies(node, source.start(node)[0])]
    writer.instead[holder] = [writer.guard(condition, inside, split_lead(holder)[0])]
    return writer.finish("unsafe", f"clip only if {condition}")
