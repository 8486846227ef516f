"""A value that is made inside a function, as module-level statements: the backward slice of the function's body.

The function's header is replaced, on its own line, by one that runs its body at module level: ``if 1:``, or
``for depth, dim in [(12, 64)]:`` where parameters need values. So every line and column stays.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from gradlint.facts.names import assigned, blocks
from gradlint.facts.uses import mutated, trains
from gradlint.probe.blanking import Keep
from gradlint.probe.parts import Part, bound

Needs = dict[str, set[str]]
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_NOT_AT_TOP = (ast.Yield, ast.YieldFrom, ast.Await, ast.AsyncFor, ast.AsyncWith)


@dataclass
class Body:
    """What is kept of the insides of functions."""

    part: Part
    needs: Needs = field(default_factory=dict)
    bound: set[str] = field(default_factory=set)
    """Names that the kept statements bind, perhaps only in a branch."""
    whole: list[ast.stmt] = field(default_factory=list)
    partly: list[ast.stmt] = field(default_factory=list)
    replaced: dict[ast.stmt, str] = field(default_factory=dict)
    headers: dict[ast.stmt, str] = field(default_factory=dict)
    imports: list[tuple[ast.Import | ast.ImportFrom, ast.alias, set[str]]] = field(default_factory=list)
    """Imports in the function that are kept, with what is read of the names they bind."""

    def keep(self) -> Keep:
        """For :func:`gradlint.probe.blanking.blanked`."""
        return Keep(self.whole, self.partly, self.replaced, self.headers)


def scope_chain(tree: ast.Module, scope: str) -> list[ast.stmt] | None:
    """The nodes from the module down to the function ``scope`` (``main``, ``A.build``, ``f.<locals>.g``)."""
    wanted = [p for p in scope.split(".") if p != "<locals>"]
    chain: list[ast.stmt] = []
    body: Sequence[ast.stmt] = tree.body
    for name in wanted:
        path = _path_to(body, name)
        if path is None:
            return None
        chain += path
        body = path[-1].body  # type: ignore[attr-defined]
    return chain


def _path_to(body: Sequence[ast.stmt], name: str) -> list[ast.stmt] | None:
    """The definition of ``name`` in a body, after the compound statements round it; the last one counts."""
    for node in reversed(body):
        if isinstance(node, _DEFINITIONS):
            if node.name == name:
                return [node]
            continue
        for block, _ in blocks(node):
            inner = _path_to(block, name)
            if inner is not None:
                return [node, *inner]
    return None


def slice_body(body: Body, statements: Sequence[ast.stmt], name: str | None) -> None:
    """Keeps the statements that ``body.needs`` depend on, the last first.

    With ``name``: up to its last binding, and behind it only what initialises it before any training.
    """
    last = len(statements)
    if name is not None:
        last = max((i for i, s in enumerate(statements) if name in _bound(s)), default=-1)
        for later in statements[last + 1 :]:
            if trains(later) or isinstance(later, (ast.Return, ast.Raise)):
                break
            if name in mutated(later):
                _keep_whole(body, later)
    for node in reversed(statements[: last + 1]):
        _step(body, node, name)


def _step(body: Body, node: ast.stmt, name: str | None) -> None:
    binds = _bound(node)
    if not (binds | mutated(node)) & body.needs.keys():
        return
    inner = [b for b, _ in blocks(node) if b]
    if inner and (trains(node) or (isinstance(node, ast.If) and name in binds)):
        _keep_partly(body, node, inner, name)
        return
    if isinstance(node, (ast.Assign, ast.AnnAssign, *_DEFINITIONS)) and not inner:
        for full in binds - _read(body, node).keys():
            body.needs.pop(full, None)
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        _keep_import(body, node)
        return
    _keep_whole(body, node)


def _keep_partly(body: Body, node: ast.stmt, inner: list[list[ast.stmt]], name: str | None) -> None:
    """A loop that trains, or branches of which one makes the value: the header, and the slice of each block."""
    body.partly.append(node)
    before = {k: set(v) for k, v in body.needs.items()}
    after = {k: set(v) for k, v in body.needs.items()}  # a branch need not run: what it binds may come from before
    for block in inner:
        body.needs = {k: set(v) for k, v in before.items()}
        slice_body(body, block, name if name is not None and any(name in _bound(s) for s in block) else None)
        for key, tails in body.needs.items():
            after.setdefault(key, set()).update(tails)
    body.needs = after
    probe: list[ast.expr] = [c for c in ast.iter_child_nodes(node) if isinstance(c, ast.expr)]
    if isinstance(node, (ast.With, ast.AsyncWith)):
        probe = [item.context_expr for item in node.items]
    for made, _ in assigned(node):
        body.needs.pop(made, None)
        body.bound.add(made)
    for expr in probe:
        _need(body, _read(body, ast.copy_location(ast.Expr(expr), node)))


def _keep_whole(body: Body, node: ast.stmt) -> None:
    body.whole.append(node)
    body.bound |= _bound(node)
    _need(body, _read(body, node))
    for inner in _own_statements(node):
        if isinstance(inner, (ast.Return, ast.Nonlocal)):
            body.replaced[inner] = "pass"


def _keep_import(body: Body, node: ast.Import | ast.ImportFrom) -> None:
    body.whole.append(node)
    for alias in node.names:
        body.imports.append((node, alias, body.needs.pop(bound(alias), set())))


def _need(body: Body, loads: Needs) -> None:
    for name, tails in loads.items():
        body.needs.setdefault(name, set()).update(tails)


def _read(body: Body, node: ast.stmt) -> Needs:
    return body.part.read(node).loads


def _bound(node: ast.stmt) -> set[str]:
    """Names that a statement binds in the function it stands in."""
    names: set[str] = set()
    for inner in _own_statements(node):
        if isinstance(inner, _DEFINITIONS):
            names.add(inner.name)
        elif isinstance(inner, (ast.Import, ast.ImportFrom)):
            names.update(bound(a) for a in inner.names)
        else:
            names.update(name for name, _ in assigned(inner))
    return names


def _own_statements(node: ast.stmt) -> Iterator[ast.stmt]:
    yield node
    for block, _ in blocks(node):
        for inner in block:
            yield from _own_statements(inner)


def runs_at_top(statements: Sequence[ast.stmt]) -> bool:
    """Whether statements of a function may stand at module level: no ``yield``, no ``await``."""
    return not any(
        isinstance(n, _NOT_AT_TOP) for s in statements if not isinstance(s, _DEFINITIONS) for n in ast.walk(s)
    )
