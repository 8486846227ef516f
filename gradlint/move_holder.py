"""The statement that holds a call, and what of it moves with the call."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable

import libcst as cst

from gradlint.move_names import binds, callee, reads
from gradlint.move_source import Refused, Source, bodies
from gradlint.rule import Location


@dataclasses.dataclass(frozen=True)
class Taken:
    """A statement that is taken out of its block."""

    holder: cst.BaseStatement
    """The statement as it stands."""
    first: cst.BaseStatement
    """What moves: the holder, or of a line of several statements the one with the call."""
    remainder: cst.SimpleStatementLine | None
    """What stays of such a line."""
    line: int
    """Where the statement that moves begins."""
    ahead: tuple[cst.BaseSmallStatement, ...] = ()
    """What stays of the line and stood ahead of the call."""
    behind: tuple[cst.BaseSmallStatement, ...] = ()
    """What stays of the line and stood behind the call."""


def take(source: Source, holder: cst.CSTNode, small: cst.BaseSmallStatement | None) -> Taken:
    """The holder, of which only the small statement moves if others stand on its line."""
    assert isinstance(holder, cst.BaseStatement)
    if small is None or not isinstance(holder, cst.SimpleStatementLine) or len(holder.body) == 1:
        return Taken(holder, holder, None, source.start(holder)[0])
    at = list(holder.body).index(small)
    rest = [*holder.body[:at], *holder.body[at + 1 :]]
    rest[-1] = rest[-1].with_changes(semicolon=_DEFAULT)
    first = cst.SimpleStatementLine([small.with_changes(semicolon=_DEFAULT)])
    line = source.start(small)[0]
    return Taken(
        holder, first, holder.with_changes(body=rest), line, tuple(holder.body[:at]), tuple(holder.body[at + 1 :])
    )


Beside = Callable[[cst.CSTNode], bool]


def held(
    source: Source, holder: cst.CSTNode, what: Location, beside: Beside = lambda node: False
) -> cst.BaseSmallStatement:
    """The small statement with the call, if the holder holds nothing else that matters.

    Under an ``if`` or ``with`` statements that need the call's result may stand beside it, and those that ``beside``
    says.
    """
    if isinstance(holder, (cst.SimpleStatementLine, cst.SimpleStatementSuite)):
        for small in holder.body:
            if source.contains(small, what) and plain(source, small, what):
                return small
        raise Refused
    if isinstance(holder, cst.If) and holder.orelse is None:
        return _alone(source, holder.body, what, beside)
    if isinstance(holder, cst.With) and holder.asynchronous is None:
        return _alone(source, holder.body, what, beside)
    raise Refused


def _alone(source: Source, body: cst.BaseSuite, what: Location, beside: Beside) -> cst.BaseSmallStatement:
    if not isinstance(body, cst.IndentedBlock):
        small = held(source, body, what)
        if not all(child is small or beside(child) for child in body.body):
            raise Refused
        return small
    inner = next((child for child in body.body if source.contains(child, what)), None)
    if inner is None:
        raise Refused
    small = held(source, inner, what, beside)
    result = binds(source.tree(small))
    for child in body.body:
        if child is not inner and not (reads(source.tree(child)) & result) and not beside(child):
            raise Refused
    return small


def plain(source: Source, small: cst.BaseSmallStatement, what: Location) -> bool:
    """Whether a statement is the call, or keeps its result: ``norm = clip(...)``, ``norm = clip(...).item()``."""
    value = _value(small)
    while value is not None and source.begins(value, what):
        if isinstance(value, cst.Call) and source.spans(value, what):
            return True
        if isinstance(value, cst.Call) and isinstance(value.func, cst.Attribute) and not value.args:
            value = value.func.value
        elif isinstance(value, cst.Attribute):
            value = value.value
        else:
            return False
    if isinstance(value, cst.Call) and isinstance(value.func, cst.Name) and value.func.value == "float":
        inner = value.args[0].value if len(value.args) == 1 else None
        return isinstance(inner, cst.Call) and source.begins(inner, what)
    return False


def _value(small: cst.BaseSmallStatement) -> cst.BaseExpression | None:
    return small.value if isinstance(small, (cst.Expr, cst.Assign, cst.AnnAssign)) else None


def only_clips(source: Source, holder: cst.CSTNode) -> bool:
    """Whether an ``if`` with branches does nothing but choose between clips."""
    return isinstance(holder, cst.If) and all(_clips(source, body) for body in bodies(holder))


def _clips(source: Source, body: cst.BaseSuite) -> bool:
    for child in body.body:
        if isinstance(child, cst.If):
            if not only_clips(source, child):
                return False
            continue
        for small in child.body if isinstance(child, cst.SimpleStatementLine) else [child]:
            value = _value(small) if isinstance(small, cst.BaseSmallStatement) else None
            call = ast.parse(source.code(value).strip(), mode="eval").body if isinstance(value, cst.Call) else None
            clips = isinstance(call, ast.Call) and "clip" in callee(call)
            if not clips and not isinstance(small, cst.Pass):
                return False
    return True


_DEFAULT = cst.MaybeSentinel.DEFAULT
