"""Conditions as the control-flow graph remembers them: what a test says, so that two equal ones go the same way."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator, Sequence

from gradlint.facts.cfg import Guard
from gradlint.facts.steps_context import Context
from gradlint.facts.steps_words import callee, words

COUNTER_WORDS = frozenset({"accum", "accumulate", "accumulated", "accumulation", "accumulating", "micro", "grad_acc"})
"""In the name of something that tells micro-batches apart."""
MAX_HOPS = 3
"""Names are followed through so many assignments."""


def read_guards(test: ast.expr, truth: bool, frame: Context) -> list[Guard]:
    """What holds where ``test`` came out as ``truth``: each part of a conjunction by itself."""
    found = list(_parts(test, truth, frame, 0))
    return list(dict.fromkeys(found))


def _parts(test: ast.expr, truth: bool, frame: Context, hops: int) -> Iterator[Guard]:
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        yield from _parts(test.operand, not truth, frame, hops)
        return
    if isinstance(test, ast.NamedExpr):
        yield from _parts(test.value, truth, frame, hops)
        return
    if isinstance(test, ast.BoolOp):
        whole = _guard(test, truth, frame)
        if isinstance(test.op, ast.And) and not truth:
            inner = [_guard(*_plain(part, False), frame) for part in test.values]
            whole = dataclasses.replace(whole, counter=all(guard.counter for guard in inner))
        elif truth is isinstance(test.op, ast.And):
            whole = dataclasses.replace(whole, counter=False)  # its parts say it
        yield whole
        if truth is isinstance(test.op, ast.And):
            for part in test.values:
                yield from _parts(part, truth, frame, hops)
        return
    plain, truth = _plain(test, truth)
    value = _value_of(plain, frame) if hops < MAX_HOPS else None
    if value is not None:
        if isinstance(value, ast.IfExp) and _is_nothing(value.orelse) and not _is_nothing(value.body):
            yield from _parts(value.test, truth, frame, hops + 1)  # `scaler = GradScaler() if args.amp else None`
        elif isinstance(value, (ast.Compare, ast.BoolOp, ast.UnaryOp)):
            yield from _parts(value, truth, frame, hops + 1)
            yield _guard(plain, truth, frame)
            return
    yield _guard(plain, truth, frame)


def _plain(test: ast.expr, truth: bool) -> tuple[ast.expr, bool]:
    """``x is not None``, ``x == True``, ``x > 0`` and ``bool(x)`` as ``x``; ``x != y`` as not ``x == y``."""
    if isinstance(test, ast.Call) and isinstance(test.func, ast.Name) and (test.func.id, len(test.args)) == ("bool", 1):
        return _plain(test.args[0], truth)
    if not (isinstance(test, ast.Compare) and len(test.ops) == 1):
        return test, truth
    op, right = test.ops[0], test.comparators[0]
    if isinstance(right, ast.Constant):
        if right.value is None and isinstance(op, (ast.Is, ast.IsNot, ast.Eq, ast.NotEq)):
            return test.left, truth is isinstance(op, (ast.IsNot, ast.NotEq))
        if isinstance(right.value, bool) and isinstance(op, (ast.Is, ast.IsNot, ast.Eq, ast.NotEq)):
            same = isinstance(op, (ast.Is, ast.Eq))
            return test.left, truth is (same is right.value)
        if right.value in (0, 0.0) and isinstance(op, ast.Gt):
            return test.left, truth
    if isinstance(op, ast.NotEq):
        return ast.copy_location(ast.Compare(test.left, [ast.Eq()], [right]), test), not truth
    return test, truth


def _value_of(expr: ast.expr, frame: Context) -> ast.expr | None:
    """What a name is bound to, if it is bound once."""
    if not isinstance(expr, ast.Name):
        return None
    binding = frame.scope.lookup(expr.id)
    return binding.values[0] if binding and len(binding.values) == 1 and not binding.opaque else None


def _is_nothing(expr: ast.expr) -> bool:
    return isinstance(expr, ast.Constant) and expr.value in (None, False)


def _guard(test: ast.expr, truth: bool, frame: Context) -> Guard:
    key = frame.key(test) or ast.unparse(test)
    read = list(_names(test))
    return Guard(
        key,
        truth,
        frozenset(read),
        counter=_counts(test, truth)
        or (not _ends_no_window(test, truth) and bool(_of_batches(read) or frame.unit.counters.intersection(read)))
        or _asks_a_counter(test, frame),
        synced="sync_gradients" in read or "_do_sync" in read,
    )


def _asks_a_counter(test: ast.expr, frame: Context) -> bool:
    """``self.should_step()``, where the method counts."""
    if not isinstance(test, ast.Call):
        return False
    asked = [f for f in frame.unit.scopes.functions if f.node.name == callee(test)]
    return any(
        isinstance(n, ast.Return) and n.value is not None and _counts(n.value, True) for f in asked for n in f.node.body
    )


def _names(test: ast.expr) -> Iterator[str]:
    for node in ast.walk(test):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


def _of_batches(names: Sequence[str]) -> bool:
    """Whether a name says that micro-batches are counted: ``accum_steps``, not ``accumulate_stats``."""
    found = (set(words(name)) for name in names)
    return any(parts & COUNTER_WORDS and not parts & _OTHER_SUMS for parts in found)


_OTHER_SUMS = frozenset(["stats", "stat", "metrics", "metric", "loss", "losses", "bn", "log", "logs"])


def _ends_no_window(test: ast.expr, truth: bool) -> bool:
    """Whether a test holds within a window of micro-batches, and not at its end: ``i % n != 0``."""
    if not isinstance(test, ast.Compare) or len(test.ops) != 1 or not isinstance(test.ops[0], (ast.Eq, ast.NotEq)):
        return False
    remainder = isinstance(test.left, ast.BinOp) and isinstance(test.left.op, ast.Mod)
    return remainder and truth is isinstance(test.ops[0], ast.NotEq)


def _counts(test: ast.expr, truth: bool) -> bool:
    """Whether a test is met once in so many turns: ``i % n == 0``, ``not i % n``; not so ``i % n != 0``."""
    for node in ast.walk(test):
        if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod)):
            continue
        if isinstance(test, ast.Compare) and isinstance(test.ops[0], (ast.Eq, ast.NotEq)):
            if truth is isinstance(test.ops[0], ast.Eq):
                return True
        elif test is node:
            if not truth:
                return True
        else:
            return True
    return False
