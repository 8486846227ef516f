"""An ``unscale_`` ahead of a clip, written or moved there: the remedy where a clip sees the loss scale."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

import libcst as cst

from gradlint.move_cross import BACKWARD, check
from gradlint.move_edit import relocated, reordered
from gradlint.move_holder import Taken, held, take
from gradlint.move_place import directly_ahead, earlier, passed, says, steps_in
from gradlint.move_source import Refused, Source, Standing, attempt
from gradlint.move_unscale import only_unscales
from gradlint.move_write import Insertion, Writer
from gradlint.rule import Location, SourceEdit

_MOVED = "move unscale_ to ahead of the clip"


def insert_unscale(
    text: str, clip: Location, scaler: str, optimizer: str, existing: Location | None = None
) -> SourceEdit | None:
    """Write ``scaler.unscale_(optimizer)`` directly ahead of the statement with the clip; this is not safe.

    Where all that the function does with the scaler is under a condition that the clip is not under, the ``unscale_``
    is put under it too.

    If there is an ``existing`` one behind the clip, in the same block or one around it, that moves to ahead of the
    statement of its block that holds the clip; it is safe as :mod:`gradlint.move_cross` says. Out of a guard that it
    shares with the step it moves under a guard of its own, and out of another function to directly ahead of the clip;
    both are not safe. None where the move is refused, where the backward is in the statement with the clip too, and
    where the ``unscale_`` is there already.
    """
    if existing is not None:
        return attempt(lambda: _move(Source(text), existing, clip, f"{scaler}.unscale_({optimizer})"))
    return attempt(lambda: _insert(Source(text), clip, scaler, f"{scaler}.unscale_({optimizer})"))


def _insert(source: Source, clip: Location, scaler: str, call: str) -> SourceEdit:
    trail = directly_ahead(source, clip)
    statement = _guarded(call, _conditions(source, trail, scaler))
    for _, node in earlier(trail):
        if says(source, node, ast.parse(call)) or says(source, node, ast.parse(statement)):
            raise Refused
        if steps_in(source, node) or source.calls(node, BACKWARD):
            break
    writer = Writer(source)
    writer.insert(Insertion(trail), [writer.written(statement)])
    return writer.finish("unsafe", f"write {call} ahead of the clip")


def _move(source: Source, existing: Location, clip: Location, call: str) -> SourceEdit:
    whole = source.path(existing)
    if _function(whole) is not _function(source.path(clip)):
        return _out_of_function(source, whole, clip, call)
    way, _ = source.meet(existing, [clip])
    block, index = way[-1]
    target = next(k for k, child in enumerate(block.body) if source.contains(child, clip))
    if target > index:
        raise Refused
    if isinstance(block, (cst.SimpleStatementLine, cst.SimpleStatementSuite)):
        if not only_unscales(source, block.body[index]):
            raise Refused
        return reordered(source, block, [index], target, [clip], _MOVED)
    trail: tuple[Standing, ...] = (Standing(block, target),)
    node = block.body[target]
    if isinstance(node, cst.SimpleStatementLine):
        part = next(k for k, small in enumerate(node.body) if source.contains(small, clip))
        trail = (*trail, Standing(node, part))
    elif source.calls(node, BACKWARD):
        raise Refused
    insertion = Insertion(trail)
    holder = block.body[index]
    crossed = passed(source, insertion, index, (), upward=True)
    if isinstance(holder, cst.If) and not only_unscales(source, holder):
        return _out_of_guard(source, insertion, whole[len(way) - 1 :], existing, crossed)
    small = None if only_unscales(source, holder) else held(source, holder, existing)
    taken = take(source, holder, small)
    return relocated(source, taken, [taken.first], [insertion], [*taken.ahead, *crossed], [clip], _MOVED)


def _out_of_guard(
    source: Source, insertion: Insertion, way: Sequence[Standing], existing: Location, crossed: Sequence[cst.CSTNode]
) -> SourceEdit:
    """Out of the guard that it shares with the step, to a guard of its own with the same condition."""
    conditions = list(_tests(source, way[:1], existing))
    if len(way) != 3 or not conditions:
        raise Refused
    taken = _line_with(source, way)
    writer = Writer(source)
    guard = writer.guard(conditions[0], writer.copies(taken.first, taken.line))
    check(source, [guard], [*crossed, *way[1].block.body[: way[1].at], *taken.ahead])
    writer.take_out(taken)
    writer.insert(insertion, [guard])
    return writer.finish("unsafe", _MOVED)


def _out_of_function(source: Source, way: Sequence[Standing], clip: Location, call: str) -> SourceEdit:
    """Out of a function that is called behind the clip, with the names it has at the clip."""
    writer = Writer(source)
    writer.take_out(_line_with(source, way))
    writer.insert(Insertion(directly_ahead(source, clip)), [writer.written(call)])
    return writer.finish("unsafe", _MOVED)


def _line_with(source: Source, way: Sequence[Standing]) -> Taken:
    """The ``unscale_`` at the end of a way, out of the line that it stands on."""
    line, small = way[-2].statement, way[-1].statement
    if not isinstance(line, cst.SimpleStatementLine) or not isinstance(small, cst.BaseSmallStatement):
        raise Refused
    if not only_unscales(source, small):
        raise Refused
    return take(source, line, small)


def _guarded(call: str, conditions: Sequence[str]) -> str:
    return f"if {' and '.join(conditions)}:\n    {call}" if conditions else call


def _conditions(source: Source, trail: Sequence[Standing], scaler: str) -> list[str]:
    """The conditions under which all calls of a scaler in a function are, other than those around a place."""
    around = {at.statement for at in trail}
    found: list[list[str]] = []
    for node, span in source.ranges.items():
        if not isinstance(node, cst.Call) or not isinstance(node.func, cst.Attribute):
            continue
        if node.func.attr.value not in {"scale", "step", "update"} or source.code(node.func.value) != scaler:
            continue
        place = Location(span.start.line, span.start.column + 1, span.end.line, span.end.column + 1)
        way = source.path(place)
        if _function(way) is _function(trail):
            found.append(list(_tests(source, [at for at in way if at.statement not in around], place)))
    return [test for test in found[0] if all(test in tests for tests in found)] if found else []


def _tests(source: Source, way: Sequence[Standing], place: Location) -> Iterator[str]:
    """The conditions of the ``if`` statements on a way, as they hold at its end; nothing of an ``elif``."""
    for at in way:
        node = at.statement
        if not isinstance(node, cst.If) or isinstance(node.orelse, cst.If):
            continue
        test = source.code(node.test)
        if source.contains(node.body, place):
            yield f"({test})" if isinstance(node.test, cst.BooleanOperation) else test
        elif isinstance(node.test, cst.UnaryOperation) and isinstance(node.test.operator, cst.Not):
            yield source.code(node.test.expression)
        elif isinstance(node.orelse, cst.Else) and source.contains(node.orelse.body, place):
            yield f"not {test}" if isinstance(node.test, (cst.Name, cst.Attribute, cst.Call)) else f"not ({test})"


def _function(way: Sequence[Standing]) -> cst.CSTNode | None:
    functions = [at.statement for at in way if isinstance(at.statement, cst.FunctionDef)]
    return functions[-1] if functions else None
