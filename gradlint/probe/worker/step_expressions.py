"""Expressions that know ghosts: ``not x``, ``x is None``, items, conditions; ``__name__`` of a script."""

from __future__ import annotations

import ast
from typing import FrozenSet, List, Optional, Set

from step_nodes import at, call, dotted, string
from step_text import nodes_of

_OPERATORS = {ast.Eq: "eq", ast.NotEq: "ne", ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge"}


def _tuple(values: List[ast.expr]) -> ast.Tuple:
    return ast.Tuple(elts=values, ctx=ast.Load())


def window_counters(tree: ast.Module) -> FrozenSet[str]:
    """Paths that count the micro-batches of a window: ``n += 1``, and back to 0 where ``n >= length``."""
    nodes = nodes_of(tree)
    found: Set[str] = set()
    for node in nodes.branches:
        tests = node.test.values if isinstance(node.test, ast.BoolOp) else [node.test]
        compared = {dotted(t.left) for t in tests if isinstance(t, ast.Compare)}
        for inner in node.body:
            if isinstance(inner, ast.Assign) and isinstance(inner.value, ast.Constant) and inner.value.value == 0:
                found.update(p for p in map(dotted, inner.targets) if p is not None and p in compared)
    return frozenset(found)


def clamp_of(loop: ast.For) -> Optional[ast.stmt]:
    """A loop that does nothing but ``p.grad.data.clamp_(-1, 1)`` as one clip by value of all its parameters."""
    generators: List[ast.comprehension] = []
    inner: ast.stmt = loop
    while isinstance(inner, (ast.For, ast.If)) and len(inner.body) == 1 and not inner.orelse:
        if isinstance(inner, ast.For):
            generators.append(ast.comprehension(target=inner.target, iter=inner.iter, ifs=[], is_async=0))
        inner = inner.body[0]
    clamp = inner.value if isinstance(inner, ast.Expr) else None
    if not (isinstance(clamp, ast.Call) and isinstance(clamp.func, ast.Attribute) and clamp.func.attr == "clamp_"):
        return None
    grad = clamp.func.value
    if isinstance(grad, ast.Attribute) and grad.attr == "data":
        grad = grad.value
    if not (isinstance(grad, ast.Attribute) and grad.attr == "grad" and isinstance(grad.value, ast.Name)):
        return None
    limit = next((k.value for k in clamp.keywords if k.arg == "max"), clamp.args[1] if clamp.args[1:] else None)
    if limit is None:
        return None
    listed = ast.ListComp(elt=grad.value, generators=generators)
    return at(ast.Expr(value=call("_gl_clamp", listed, limit)), loop)


class Expressions(ast.NodeTransformer):
    """``not x``, ``x is None`` and conditional expressions, so that they know ghosts; ``__name__`` of a script."""

    def __init__(self, is_main: bool, counters: FrozenSet[str] = frozenset()) -> None:
        self.is_main = is_main
        self.counters = counters

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id == "__name__" and self.is_main:
            return at(string("__main__"), node)
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.op, ast.Not):
            return at(call("_gl_not", node.operand), node)
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if len(node.ops) == 1 and isinstance(node.ops[0], (ast.Is, ast.IsNot)):
            right = node.comparators[0]
            if isinstance(right, ast.Constant) and right.value is None:
                negated = ast.Constant(value=isinstance(node.ops[0], ast.IsNot))
                return at(call("_gl_is_none", node.left, string(dotted(node.left) or ""), negated), node)
            if isinstance(right, ast.Constant) and isinstance(right.value, bool):
                negated = ast.Constant(value=isinstance(node.ops[0], ast.IsNot))
                return at(call("_gl_is_bool", node.left, right, negated), node)
            if not isinstance(right, ast.Constant):
                negated = ast.Constant(value=isinstance(node.ops[0], ast.IsNot))
                return at(call("_gl_same", node.left, right, negated), node)
        operator = _OPERATORS.get(type(node.ops[0])) if len(node.ops) == 1 else None
        if operator is not None and not any(isinstance(v, ast.Constant) for v in (node.left, node.comparators[0])):
            counts = ast.Constant(value=dotted(node.left) in self.counters)
            return at(call("_gl_compare", string(operator), node.left, node.comparators[0], counts), node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        func = node.func
        if isinstance(func, ast.Attribute) and func.attr == "__init__" and not isinstance(func.value, ast.Call):
            made = ast.Call(func=ast.Name(id="_gl_init", ctx=ast.Load()), args=[func.value, *node.args], keywords=[])
            made.keywords = node.keywords
            return at(made, node)
        if isinstance(func, ast.Attribute) and func.attr == "backward" and isinstance(func.value, ast.Name):
            func.value = at(call("_gl_loss", func.value), func.value)
        stars = any(isinstance(a, ast.Starred) for a in node.args)
        maps = [k.value for k in node.keywords if k.arg is None]
        if not stars and not maps:
            return node
        args = [call("_gl_star", a.value) if isinstance(a, ast.Starred) else a for a in node.args]
        named = [k for k in node.keywords if k.arg is not None]
        keywords = ast.Dict(keys=[string(k.arg or "") for k in named], values=[k.value for k in named])
        return at(call("_gl_call", func, _tuple(args), keywords, _tuple(maps)), node)

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.ctx, ast.Load):
            return node
        index = node.slice.value if isinstance(node.slice, ast.Constant) else None
        if isinstance(node.slice, (ast.Name, ast.Attribute, ast.Call)) or type(index) is int:
            return at(call("_gl_item", node.value, node.slice), node)
        return node

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        node.test = at(call("_gl_test", node.test), node.test)
        return node
