"""What a few statements read, bind and may do to the flow of control: enough to say whether they may change places."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Mapping

from gradlint.fix import lines_of

_EXITS = frozenset({"exit", "_exit", "quit", "abort"})


def reads(tree: ast.AST) -> set[str]:
    """The names and attribute chains that are read: ``clip(model.parameters())`` gives clip and model.parameters.

    Every prefix of a chain is among them.
    """
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load):
            chain = dotted(node)
            if chain:
                found.add(chain)
        elif isinstance(node, ast.AugAssign):
            chain = dotted(node.target)
            if chain:
                found.add(chain)
    return found


def binds(tree: ast.AST) -> set[str]:
    """The names and attribute chains that are assigned, deleted or imported; of ``a[0] = 1`` it is ``a``."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load):
            chain = dotted(node.value if isinstance(node, ast.Subscript) else node)
            if chain:
                found.add(chain)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            found.add(node.name)
    return found - _comprehended(tree)


def covers(bound: str, read: str) -> bool:
    """Whether a new binding of ``bound`` changes what ``read`` means: ``model`` and ``model.parameters``."""
    return read == bound or read.startswith(f"{bound}.")


def leaves(tree: ast.AST, jumps: bool = True) -> bool:
    """Whether control may leave: return, raise, yield, exit, or a break or continue of a loop around the statements.

    Without ``jumps`` only yield and exit count.
    """
    return any(_leaves(node, False, jumps) for node in ast.iter_child_nodes(tree))


def callee(call: ast.Call) -> str:
    """The last name of what is called."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def count(tree: ast.AST, names: set[str]) -> int:
    """How often any of the names is read."""
    return sum(
        1
        for node in ast.walk(tree)
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load) and dotted(node) in names
    )


def survivors(old: str, new: str, moved: Mapping[int, int]) -> dict[int, int]:
    """The line of ``old`` for each line of ``new`` that comes from it; ``moved`` is known already."""
    before, after = lines_of(old), lines_of(new)
    gone, come = set(moved.values()), set(moved)
    left = [k for k in range(1, len(before) + 1) if k not in gone]
    right = [k for k in range(1, len(after) + 1) if k not in come]
    matcher = difflib.SequenceMatcher(None, [before[k - 1] for k in left], [after[k - 1] for k in right], False)
    found = dict(moved)
    for block in matcher.get_matching_blocks():
        for k in range(block.size):
            found[right[block.b + k]] = left[block.a + k]
    return found


def dotted(expr: ast.expr) -> str | None:
    """``self.model`` of the expression that says so; of ``a.b[0].c`` it is ``a.b``, and None of a call."""
    parts: list[str] = []
    while isinstance(expr, (ast.Attribute, ast.Subscript)):
        if isinstance(expr, ast.Subscript):
            parts.clear()
        else:
            parts.append(expr.attr)
        expr = expr.value
    if not isinstance(expr, ast.Name):
        return None
    return ".".join([expr.id, *reversed(parts)])


def chains(expr: ast.AST) -> Iterator[str]:
    """The names and attribute chains in an expression, each whole; of a method that is called, its object."""
    name = dotted(expr) if isinstance(expr, ast.expr) else None
    if name:
        yield name
    elif isinstance(expr, ast.Call):
        if isinstance(expr.func, ast.Attribute):
            yield from chains(expr.func.value)
        for argument in arguments(expr):
            yield from chains(argument)
    else:
        for child in ast.iter_child_nodes(expr):
            yield from chains(child)


def arguments(call: ast.Call) -> list[ast.expr]:
    """What a call is handed, positional arguments first."""
    return [*call.args, *(keyword.value for keyword in call.keywords)]


def _comprehended(tree: ast.AST) -> set[str]:
    inside: set[str] = set()
    outside: set[str] = set()
    own = {
        id(name)
        for node in ast.walk(tree)
        if isinstance(node, ast.comprehension)
        for name in ast.walk(node.target)
        if isinstance(name, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            (inside if id(node) in own else outside).add(node.id)
    return inside - outside


def _leaves(node: ast.AST, looped: bool, jumps: bool) -> bool:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
        return False
    if isinstance(node, (ast.Return, ast.Raise)) and jumps:
        return True
    if isinstance(node, (ast.Break, ast.Continue)):
        return jumps and not looped
    if isinstance(node, (ast.Yield, ast.YieldFrom)) or (isinstance(node, ast.Call) and callee(node) in _EXITS):
        return True
    looped = looped or isinstance(node, (ast.For, ast.AsyncFor, ast.While))
    return any(_leaves(child, looped, jumps) for child in ast.iter_child_nodes(node))
