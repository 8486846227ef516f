"""Small pieces of syntax tree, and the text of names."""

from __future__ import annotations

import ast
from typing import List, Optional, Sequence, Tuple, TypeVar

_Node = TypeVar("_Node", bound=ast.AST)


def dotted(node: ast.AST) -> Optional[str]:
    """``self.nets[i].model`` as ``self.nets[].model``, ``nets["a"]`` as ``nets['a']``.

    None for anything but names, attributes and items.
    """
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return None if base is None else f"{base}.{node.attr}"
    if isinstance(node, ast.Subscript):
        base = dotted(node.value)
        key = repr(node.slice.value) if isinstance(node.slice, ast.Constant) else ""
        return None if base is None else f"{base}[{key}]"
    return None


def guard(node: ast.stmt, handler: List[ast.stmt]) -> ast.Try:
    """``node`` in a ``try`` with ``handler``."""
    caught = ast.ExceptHandler(type=load("_gl_Exception"), name=None, body=handler)
    return ast.Try(body=[node], handlers=[caught], orelse=[], finalbody=[])


def call(name: str, *args: ast.expr) -> ast.Call:
    """``name(*args)``."""
    return ast.Call(func=load(name), args=list(args), keywords=[])


def load(name: str) -> ast.Name:
    """``name``, read."""
    return ast.Name(id=name, ctx=ast.Load())


def store(name: str) -> ast.Name:
    """``name``, bound."""
    return ast.Name(id=name, ctx=ast.Store())


def string(value: str) -> ast.Constant:
    """A string."""
    return ast.Constant(value=value)


def names_of(names: Sequence[str]) -> ast.Tuple:
    """A tuple of strings."""
    return ast.Tuple(elts=[ast.Constant(value=n) for n in names], ctx=ast.Load())


def at(new: _Node, old: ast.AST) -> _Node:
    """Give ``new`` and the nodes in it that have no place the place of ``old``."""
    place: Tuple[int, int] = (getattr(old, "lineno", 1), getattr(old, "col_offset", 0))
    todo: List[ast.AST] = [new]
    while todo:
        node = todo.pop()
        if "lineno" in node._attributes and not hasattr(node, "lineno"):
            node.lineno, node.col_offset = place  # type: ignore[attr-defined]
            node.end_lineno, node.end_col_offset = place  # type: ignore[attr-defined]
        elif "lineno" in node._attributes and node is not new:
            continue
        todo.extend(ast.iter_child_nodes(node))
    return new
