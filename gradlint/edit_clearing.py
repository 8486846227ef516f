"""Where gradients are cleared: a ``zero_grad`` moved from between backward and step, or one that was missing written.

What clears is a ``zero_grad`` call, a loop of ``p.grad = None``, the call of a helper, or an ``if`` around it. It goes
ahead of the backward, or behind the step where it belongs under the step's guard.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

import libcst as cst

from gradlint.move_cross import BACKWARD
from gradlint.move_edit import relocated, reordered
from gradlint.move_holder import Taken, take
from gradlint.move_place import directly_ahead, earlier, outwards, passed, says, steps_in
from gradlint.move_source import Body, Refused, Source, Standing, attempt, bodies
from gradlint.move_write import Insertion, Writer
from gradlint.rule import Location, SourceEdit

_CLEARING = frozenset(["zero_grad", "zero_", "detach_", "requires_grad_"])


def insert_clearing(
    text: str, backward: Location, statement: str, after_step: Location | None = None
) -> SourceEdit | None:
    """Write ``optimizer.zero_grad()`` directly ahead of the first backward of a step; with ``after_step`` behind that.

    ``backward`` may be any backward of the step: one ahead of it in its block, with no step or ``zero_grad`` between,
    adds to the same gradients. Where each branch of an ``if`` has one, the statement goes ahead of the ``if``. It is
    never safe. None where the statement is there already, and where it cannot stand directly ahead or behind.
    """
    if after_step is not None:
        return attempt(lambda: _insert_behind(Source(text), after_step, statement))
    return attempt(lambda: _insert_ahead(Source(text), backward, statement))


def move_clearing(
    text: str, what: Location, before: Sequence[Location], after: Sequence[Location], accumulate: bool = False
) -> SourceEdit | None:
    """Move the clearing at ``what`` to ahead of the backward calls ``before`` that the next step uses.

    It moves to behind the step of ``after`` with ``accumulate`` (the clearing of every micro-batch, whose step has a
    guard), and where it stands under a guard that the backward is not under; this is not safe. Where it clears already
    behind that step, it is only taken out. None where the move is refused, and where there is nothing to move.
    """

    def make() -> SourceEdit:
        source = Source(text)
        if not accumulate:
            try:
                return _move_ahead(source, what, before)
            except Refused:
                pass
        return _move_behind(source, what, after, accumulate)

    return attempt(make)


# -- written


def _insert_ahead(source: Source, backward: Location, statement: str) -> SourceEdit:
    trail = directly_ahead(source, backward)
    trail = outwards(trail, lambda branch: bool(source.calls(branch, BACKWARD)), first=True)
    for way, node in earlier(trail):
        if says(source, node, ast.parse(statement)):
            raise Refused
        if steps_in(source, node) or source.calls(node, frozenset(["zero_grad"])):
            break
        if source.calls(node, BACKWARD):
            trail = way
    return _written(source, Insertion(trail), statement, "ahead of the backward")


def _insert_behind(source: Source, step: Location, statement: str) -> SourceEdit:
    insertion = _behind(source, directly_ahead(source, step))
    if _repeated(source, insertion, ast.parse(statement)):
        raise Refused
    return _written(source, insertion, statement, "behind the step")


def _written(source: Source, insertion: Insertion, statement: str, where: str) -> SourceEdit:
    writer = Writer(source)
    writer.insert(insertion, [writer.written(statement)])
    return writer.finish("unsafe", f"write {statement} {where}")


def _behind(source: Source, trail: Sequence[Standing]) -> Insertion:
    """The place behind a step, or behind an ``if`` with a step in each branch."""
    trail = outwards(trail, lambda branch: steps_in(source, branch), first=False)
    if isinstance(trail[-1].statement, cst.Return):
        raise Refused
    trail = (*trail[:-1], Standing(trail[-1].block, trail[-1].at + 1))
    return Insertion(trail, behind=True, nested=Insertion(trail).depth > 0)


def _repeated(source: Source, insertion: Insertion, statement: ast.Module) -> bool:
    """Whether the statement comes behind a place anyway, ahead of the next backward."""
    for node in insertion.following():
        if source.calls(node, BACKWARD):
            return False
        for small in node.body if isinstance(node, cst.SimpleStatementLine) else [node]:
            if says(source, small, statement):
                return True
    return False


# -- moved


def _move_ahead(source: Source, what: Location, before: Sequence[Location]) -> SourceEdit:
    description = "clear the gradients ahead of the backward"
    way, near = source.meet(what, before)
    block, index = way[-1]
    first = _first_backward(source, block, index, near)
    if isinstance(block, (cst.SimpleStatementLine, cst.SimpleStatementSuite)):
        _clearing(source, block.body[index], what)
        return reordered(source, block, [index], first, near, description)
    taken = _take(source, block.body[index], what)
    trail: tuple[Standing, ...] = (Standing(block, first),)
    line = block.body[first]
    if isinstance(line, cst.SimpleStatementLine):
        trail = (*trail, Standing(line, next(k for k, small in enumerate(line.body) if source.holds(small, near))))
    insertion = Insertion(trail)
    crossed = [*taken.ahead, *passed(source, insertion, index, (), upward=True)]
    return relocated(source, taken, [taken.first], [insertion], crossed, near, description)


def _first_backward(source: Source, block: Body, index: int, backward: Sequence[Location]) -> int:
    """The first statement with a backward ahead of a place in a block, that no step separates from it."""
    found = None
    for k in range(index - 1, -1, -1):
        if steps_in(source, block.body[k]):
            break
        if source.holds(block.body[k], backward):
            found = k
    if found is None:
        raise Refused
    return found


def _move_behind(source: Source, what: Location, after: Sequence[Location], accumulate: bool) -> SourceEdit:
    description = "clear the gradients behind the step"
    way, near = source.meet(what, after)
    block, index = way[-1]
    if isinstance(block, (cst.SimpleStatementLine, cst.SimpleStatementSuite)):
        _clearing(source, block.body[index], what)
        last = max(k for k, small in enumerate(block.body) if source.holds(small, near))
        if last < index:
            raise Refused
        return reordered(source, block, [index], last + 1, near, description, safe=False)
    taken = _take(source, block.body[index], what)
    places = {}
    for step in near:
        insertion = _behind(source, directly_ahead(source, step)[len(way) - 1 :])
        places[insertion.trail[-1].block] = insertion
    insertions = list(places.values())
    if not accumulate and any(insertion.nested for insertion in insertions):
        raise Refused
    upward = insertions[0].trail[0].at <= index
    if upward and not all(insertion.nested for insertion in insertions):
        raise Refused  # it is there already
    crossed: list[cst.CSTNode] = [*(taken.ahead if upward else taken.behind)]
    for insertion in insertions:
        crossed.extend(passed(source, insertion, index, near, upward))
    if not accumulate and any(source.calls(node, BACKWARD) for node in crossed):
        raise Refused  # the step has fresh gradients
    tree = source.tree(taken.first)
    insertions = [insertion for insertion in insertions if not _repeated(source, insertion, tree)]
    return relocated(source, taken, [taken.first], insertions, crossed, near, description, jumps=not upward, safe=False)


def _take(source: Source, holder: cst.CSTNode, what: Location) -> Taken:
    """The statement that clears, and does nothing else."""
    if isinstance(holder, cst.SimpleStatementLine):
        small = next(small for small in holder.body if source.contains(small, what))
        _clearing(source, small, what)
        return take(source, holder, small)
    _clearing(source, holder, what)
    return take(source, holder, None)


def _clearing(source: Source, node: cst.CSTNode, what: Location) -> None:
    if not _clears(source, node, what):
        raise Refused


def _clears(source: Source, node: cst.CSTNode, what: Location) -> bool:
    if isinstance(node, cst.SimpleStatementLine):
        return all(_clears(source, small, what) for small in node.body)
    if isinstance(node, (cst.If, cst.For, cst.With)):
        return all(_clears(source, child, what) for body in bodies(node) for child in body.body)
    if isinstance(node, cst.Assign):
        grad = all(isinstance(it.target, cst.Attribute) and it.target.attr.value == "grad" for it in node.targets)
        return grad and isinstance(node.value, cst.Name) and node.value.value == "None"
    if isinstance(node, cst.Expr) and isinstance(node.value, cst.Call):
        return source.spans(node.value, what) or bool(source.calls(node, _CLEARING))
    return isinstance(node, cst.Pass)
