"""The ``unscale_`` that a clip of scaled gradients needs: whether it is there, and how it is written."""

from __future__ import annotations

import ast
from collections.abc import Sequence

import libcst as cst

from gradlint.move_cross import BACKWARD
from gradlint.move_names import dotted
from gradlint.move_source import Line, Refused, Source, Standing
from gradlint.rule import Location

_UNSCALE = frozenset(["unscale_"])


def mentions_unscale(source: Source, node: cst.CSTNode) -> bool:
    """Whether gradients are unscaled in a statement."""
    return any(isinstance(n, ast.Attribute) and n.attr in _UNSCALE for n in ast.walk(source.tree(node)))


def only_unscales(source: Source, node: cst.CSTNode) -> bool:
    """Whether a statement is an ``unscale_``, or an ``if`` around nothing else."""
    if isinstance(node, cst.If) and node.orelse is None and len(node.body.body) == 1:
        return only_unscales(source, node.body.body[0])
    if isinstance(node, cst.SimpleStatementLine) and len(node.body) == 1:
        node = node.body[0]
    call = node.value if isinstance(node, cst.Expr) else None
    return isinstance(call, cst.Call) and isinstance(call.func, cst.Attribute) and call.func.attr.value in _UNSCALE


def is_unscaled(
    source: Source, trail: Sequence[Standing], after: Sequence[Location], optimizers: frozenset[str]
) -> bool:
    """Whether the optimizers' gradients are unscaled ahead of a statement, in its function and since the backward.

    ``trail`` is the way to the statement. An ``unscale_`` counts if it is that of one of the optimizers, or does not
    say whose it is.
    """
    for standing in reversed(trail):
        if isinstance(standing.statement, (cst.FunctionDef, cst.ClassDef)):
            return False
        for node in reversed(standing.block.body[: standing.at]):
            if unscales(source, node, optimizers):
                return True
            if source.holds(node, after) or source.calls(node, BACKWARD):
                return False
    return False


def unscales(source: Source, node: cst.CSTNode, optimizers: frozenset[str]) -> bool:
    """Whether the gradients of one of the optimizers, or of one that is not told, are unscaled in a statement."""
    names = [optimizer_of(call) for call in source.calls(node, _UNSCALE)]
    return any(not name or not optimizers or name in optimizers or isinstance(node, cst.For) for name in names)


def optimizer_of(call: ast.Call) -> str | None:
    """The optimizer in a plain ``scaler.step(optimizer)`` or ``scaler.unscale_(optimizer)``."""
    return dotted(call.args[0]) if len(call.args) == 1 else None


def optimizers_of(source: Source, steps: Sequence[Location]) -> frozenset[str]:
    """The optimizers of plain ``scaler.step(optimizer)``."""
    calls = [source.call_at(place) for place in steps]
    names = (optimizer_of(call) for call in calls if call)
    return frozenset(name for name in names if name)


def unscale_for(source: Source, line: Line | cst.BaseSmallStatement, steps: Sequence[Location]) -> str:
    """``scaler.unscale_(optimizer)`` for a plain ``scaler.step(optimizer)`` of scaled gradients on a line.

    Empty for a step that is not the scaler's. Refused where it is not plain which optimizer is meant.
    """
    for small in [line] if isinstance(line, cst.BaseSmallStatement) else line.body:
        call = small.value if isinstance(small, (cst.Expr, cst.Assign)) else None
        if not isinstance(call, cst.Call) or not source.holds(small, steps):
            continue
        if not isinstance(call.func, cst.Attribute) or call.func.attr.value != "step":
            continue
        if len(call.args) != 1 or not isinstance(call.args[0].value, (cst.Name, cst.Attribute)):
            continue
        return f"{source.code(call.func.value)}.unscale_({source.code(call.args[0].value)})"
    if any(isinstance(n, ast.Call) and n.args for n in ast.walk(source.tree(line))):
        raise Refused
    return ""
