"""An iterator of parameters made a list: the remedy where it is used up before its second use."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from gradlint.facts.steps_events import Lines
from gradlint.fix import lines_of
from gradlint.move_names import binds, chains, dotted, reads
from gradlint.rule import Location, SourceEdit

_ITERATORS = (ast.Call, ast.GeneratorExp, ast.IfExp)
_LISTS = frozenset(["list", "tuple", "sorted", "set"])
_KEEPS = frozenset(["train", "eval", "to", "cuda", "cpu", "parameters", "named_parameters", "zero_grad", "state_dict"])
"""Methods of a module that leave which parameters it has, and which of them are trained, as it is."""


def wrap_in_list(text: str, value: Location) -> SourceEdit | None:
    """Make a list of the expression at ``value``.

    ``filter(...)`` becomes ``list(filter(...))``, and ``(p for p in ...)`` becomes ``[p for p in ...]``. The iterator
    is then read where it is made, not at its first use. That is safe if the use follows in the same block, and the
    statements between say nothing of the objects that the expression reads but a few methods of theirs. None where no
    such expression is there, where it is a list already, and where its parentheses are those of a call.
    """
    try:
        tree = ast.parse(text)
        places = Lines(text)
        nodes = (node for node in ast.walk(tree) if isinstance(node, _ITERATORS))
        node = next((node for node in nodes if places.location(node) == value), None)
        written = _written(tree, node, _between(text, value)) if node is not None else None
        if node is None or written is None:
            return None
        start = _offset(text, value.line, value.column)
        new = text[:start] + written + text[_offset(text, value.end_line, value.end_column) :]
        ast.parse(new)
    except (SyntaxError, ValueError, RecursionError):
        return None
    line_map = {line: line for line in range(1, len(lines_of(text)) + 1)}
    safe = _same_parameters(tree, node)
    return SourceEdit(new, "safe" if safe else "unsafe", "make a list of the iterator", line_map)


def _written(tree: ast.Module, node: ast.expr, code: str) -> str | None:
    """The list in place of an expression."""
    calls = [inner for inner in ast.walk(tree) if isinstance(inner, ast.Call)]
    if isinstance(node, ast.GeneratorExp):
        shared = any(node in call.args and _end(call) == _end(node) for call in calls)
        return None if shared else f"[{code[1:-1]}]"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _LISTS:
        return None
    if any(isinstance(call.func, ast.Name) and call.func.id in _LISTS and node in call.args for call in calls):
        return None
    if any(isinstance(inner, ast.Starred) and inner.value is node for inner in ast.walk(tree)):
        return None
    return f"[*{code}]" if "list" in binds(tree) else f"list({code})"


def _same_parameters(tree: ast.Module, value: ast.expr) -> bool:
    """Whether the iterator is sure to give the same where it is made as at its first use."""
    objects = frozenset(chains(value)) - binds(value)
    for block in _blocks(tree):
        made = next((k for k, child in enumerate(block) if getattr(child, "value", None) is value), None)
        if made is None:
            continue
        names = binds(block[made])
        for statement in block[made + 1 :]:
            if reads(statement) & names:
                return True
            if _mentions(statement, objects):
                return False
    return False


def _mentions(statement: ast.stmt, objects: frozenset[str]) -> bool:
    """Whether a statement says anything of the objects but their harmless methods and calls of themselves."""
    harmless: set[int] = set()
    for node in ast.walk(statement):
        if not isinstance(node, ast.Call):
            continue
        if dotted(node.func) in objects:
            harmless.add(id(node.func))
        if isinstance(node.func, ast.Attribute):
            if node.func.attr in _KEEPS:
                harmless.add(id(node.func.value))
            holder = dotted(node.func.value)
            if holder and any(name.startswith(f"{holder}.") for name in objects):
                return True
    exprs = (node for node in ast.walk(statement) if isinstance(node, (ast.Name, ast.Attribute)))
    return any(dotted(node) in objects and id(node) not in harmless for node in exprs)


def _blocks(tree: ast.Module) -> Iterator[list[ast.stmt]]:
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                yield block


def _end(node: ast.expr) -> tuple[int | None, int | None]:
    return node.end_lineno, node.end_col_offset


def _between(text: str, span: Location) -> str:
    return text[_offset(text, span.line, span.column) : _offset(text, span.end_line, span.end_column)]


def _offset(text: str, line: int, column: int) -> int:
    return sum(len(before) for before in lines_of(text)[: line - 1]) + column - 1
