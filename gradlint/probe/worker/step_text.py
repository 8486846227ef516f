"""What the text of a module holds, collected in one walk: the calls, loops, functions that everything else reads."""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass, field
from typing import List, Tuple, Union

Definition = Union[ast.FunctionDef, ast.AsyncFunctionDef]
Repeating = Union[ast.For, ast.AsyncFor, ast.While]

_EMPTY = (ast.expr_context, ast.operator, ast.unaryop, ast.boolop, ast.cmpop)


@dataclass
class Nodes:
    """The nodes of a module by their kind, outer ones first."""

    calls: List[ast.Call] = field(default_factory=list)
    assigns: List[ast.Assign] = field(default_factory=list)
    iterations: List[Union[ast.For, ast.comprehension]] = field(default_factory=list)
    conditionals: List[ast.IfExp] = field(default_factory=list)
    branches: List[ast.If] = field(default_factory=list)
    attributes: List[ast.Attribute] = field(default_factory=list)
    classes: List[ast.ClassDef] = field(default_factory=list)
    functions: List[Definition] = field(default_factory=list)
    repeating: List[Tuple[Repeating, Tuple[Definition, ...]]] = field(default_factory=list)
    """Loops, with the functions round them."""


@functools.lru_cache(maxsize=512)
def nodes_of(tree: ast.Module) -> Nodes:
    """The nodes of ``tree``, in the order of :func:`ast.walk`."""
    nodes = Nodes()
    queue: List[Tuple[ast.AST, Tuple[Definition, ...]]] = [(tree, ())]
    for node, scope in queue:  # it grows while it is read
        if isinstance(node, ast.Call):
            nodes.calls.append(node)
        elif isinstance(node, ast.Attribute):
            nodes.attributes.append(node)
        elif isinstance(node, ast.Assign):
            nodes.assigns.append(node)
        elif isinstance(node, ast.If):
            nodes.branches.append(node)
        elif isinstance(node, ast.IfExp):
            nodes.conditionals.append(node)
        elif isinstance(node, ast.comprehension):
            nodes.iterations.append(node)
        elif isinstance(node, (ast.For, ast.AsyncFor, ast.While)):
            nodes.repeating.append((node, scope))
            if isinstance(node, ast.For):
                nodes.iterations.append(node)
        elif isinstance(node, ast.ClassDef):
            nodes.classes.append(node)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            nodes.functions.append(node)
            scope = (*scope, node)
        for name in node._fields:
            value = getattr(node, name, None)
            if isinstance(value, ast.AST):
                if not isinstance(value, _EMPTY):
                    queue.append((value, scope))
            elif isinstance(value, list):
                queue.extend((v, scope) for v in value if isinstance(v, ast.AST) and not isinstance(v, _EMPTY))
    return nodes
