"""An accumulation over one micro-batch is none: where its count is an option that is 1 by default, it is run with more.

``args.gradient_accumulation_steps`` with a default of 1 can be set to anything; what happens between micro-batches can
only be seen with several. A literal 1 in the text stays 1.
"""

from __future__ import annotations

import ast
import copy
import re
from typing import Any, Callable, Dict, Set, Union

from step_nodes import dotted

_COUNT = re.compile(r"accum|grad_acc|micro_?batch", re.IGNORECASE)


def widen(tree: ast.Module) -> ast.Module:
    """A copy of ``tree`` in which every reading of such an option goes through ``_gl_accumulated``."""
    copied = copy.deepcopy(tree)
    called: Set[int] = {id(node.func) for node in ast.walk(copied) if isinstance(node, ast.Call)}
    inner = {id(node.value) for node in ast.walk(copied) if isinstance(node, ast.Attribute)}
    counted = {dotted(node.target) for node in ast.walk(copied) if isinstance(node, ast.AugAssign)}
    kept = {id(node) for node in ast.walk(copied) if isinstance(node, ast.expr) and dotted(node) in counted - {None}}
    widened = _Widener(called | inner | kept).visit(copied)
    assert isinstance(widened, ast.Module)
    return ast.fix_missing_locations(widened)


class _Widener(ast.NodeTransformer):
    def __init__(self, kept: Set[int]) -> None:
        self.kept = kept

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return self._read(node, node.id)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        return self._read(node, node.attr)

    def _read(self, node: Union[ast.Name, ast.Attribute], name: str) -> ast.AST:
        if id(node) in self.kept or not isinstance(node.ctx, ast.Load) or not _COUNT.search(name):
            return node
        call = ast.Call(ast.Name("_gl_accumulated", ast.Load()), [node, ast.Constant(value=name)], [])
        return ast.copy_location(call, node)


def at_least(count: int, assumed: Dict[str, Any]) -> Callable[[Any, str], Any]:
    """What ``_gl_accumulated`` is: a count of 1 becomes ``count``, and is listed among the assumptions."""

    def accumulated(value: Any, name: str) -> Any:
        if type(value) is int and value == 1:
            assumed.setdefault(name, count)
            return count
        return value

    return accumulated
