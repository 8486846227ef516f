"""Rewriting an expression so that it needs nothing but what the top level of its module binds."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from gradlint.facts.defaults import is_literal
from gradlint.facts.index import SourceFile
from gradlint.facts.names import FunctionNode, assigned, blocks

_BUILTINS = frozenset(dir(builtins))
# Calls whose value lies outside the source text, or that have an effect.
_OUTSIDE = frozenset(
    {"open", "input", "eval", "exec", "print", "next", "iter", "load", "parse_args", "parse_known_args"}
    | {"load_state_dict", "from_pretrained", "read", "readlines", "getenv", "globals", "locals", "vars"}
)
_MAX_DEPTH = 12


class NotClosed(Exception):
    """The expression depends on something that the text does not tell."""


@dataclass(frozen=True, eq=False)
class Frame:
    """A function body (or the module's), with what stands around it."""

    body: Sequence[ast.stmt]
    function: FunctionNode | None
    outer: Frame | None
    cls: ast.ClassDef | None = None


class Closer:
    """Substitutes local names by their values. ``used`` collects the module-level names that stay in."""

    def __init__(self, file: SourceFile, known: Mapping[str, str]) -> None:
        self.file = file
        self.known = known
        self.used: set[str] = set()

    def close(self, node: ast.expr, frame: Frame, line: int, depth: int = 0) -> ast.expr:
        """``node``, as it stands at ``line`` in ``frame``, over module-level names. Raises :class:`NotClosed`."""
        if depth > _MAX_DEPTH:
            raise NotClosed
        if isinstance(node, ast.Constant):
            return node
        if isinstance(node, ast.Name):
            return self._name(node, frame, line, depth)
        if isinstance(node, (ast.Attribute, ast.Subscript)):
            told = self.known.get(ast.unparse(node))
            if told is not None:
                return ast.parse(told, mode="eval").body
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
                return self._self(node.attr, frame, depth)
        if isinstance(node, ast.Call) and _last(node.func) in _OUTSIDE:
            raise NotClosed
        if isinstance(node, (ast.Lambda, ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
            return self._binding_expr(node, frame, line, depth)
        if isinstance(node, (ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr)):
            raise NotClosed
        return self._children(node, frame, line, depth)

    def _children(self, node: ast.expr, frame: Frame, line: int, depth: int) -> ast.expr:
        changes: dict[str, Any] = {}
        for name, value in ast.iter_fields(node):
            if isinstance(value, ast.expr):
                changes[name] = self.close(value, frame, line, depth)
            elif isinstance(value, list):
                changes[name] = [self._item(v, frame, line, depth) for v in value]
            else:
                changes[name] = value
        return ast.copy_location(type(node)(**changes), node)

    def _item(self, value: object, frame: Frame, line: int, depth: int) -> object:
        if isinstance(value, ast.keyword):
            return ast.keyword(value.arg, self.close(value.value, frame, line, depth))
        return self.close(value, frame, line, depth) if isinstance(value, ast.expr) else value

    def _binding_expr(self, node: ast.expr, frame: Frame, line: int, depth: int) -> ast.expr:
        """A comprehension or lambda stays as it is; its outer names must be module-level ones."""
        own = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        own.update(a.arg for a in ast.walk(node) if isinstance(a, ast.arg))
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name) and inner.id not in own:
                value = self._name(inner, frame, line, depth)
                if not isinstance(value, ast.Name):
                    return cast(ast.expr, _Renamer(self, frame, line, depth, own).visit(node))
        return node

    def _name(self, node: ast.Name, frame: Frame, line: int, depth: int) -> ast.expr:
        here: Frame | None = frame
        while here is not None and here.outer is not None:
            if here.function is not None:
                value, found = _local_value(here.function, node.id, line)
                if value is not None:
                    return self.close(value, here, getattr(value, "lineno", line), depth + 1)
                if found:
                    told = self.known.get(node.id)
                    if told is None:
                        raise NotClosed
                    return ast.parse(told, mode="eval").body
            here = here.outer
        return self._module_name(node, frame, line, depth)

    def _module_name(self, node: ast.Name, frame: Frame, line: int, depth: int) -> ast.expr:
        binding = self.file.names.top.binding(node.id)
        if binding is None:
            if node.id in _BUILTINS:
                return node
            if self.file.names.stars:
                self.used.add(node.id)
                return node
            raise NotClosed
        if not isinstance(binding.node, (ast.Import, ast.ImportFrom)) and binding.node not in self._plain:
            inner = _assigned_value(binding.node, node.id) if isinstance(binding.node, ast.stmt) else None
            if inner is None:
                raise NotClosed  # bound by a loop: the module cannot be sliced for it without running the loop
            return self.close(inner, frame, line, depth + 1)
        value = getattr(binding.node, "value", None)
        plain = (
            isinstance(binding.node, (ast.Assign, ast.AnnAssign)) and len(self.file.names.top.bindings[node.id]) == 1
        )
        if plain and isinstance(value, ast.expr) and is_literal(value) and not isinstance(value, (ast.List, ast.Dict)):
            targets = binding.node.targets if isinstance(binding.node, ast.Assign) else [binding.node.target]  # type: ignore[attr-defined]
            if all(isinstance(t, ast.Name) for t in targets):
                return value
        if plain and isinstance(value, ast.Call) and self._makes_tensor(value):
            return value
        self.used.add(node.id)
        return node

    @property
    def _plain(self) -> set[ast.stmt]:
        """The statements at module level and in branches there, but not in loops."""
        found: set[ast.stmt] | None = self.file.__dict__.get("_plain")
        if found is None:
            found = self.file.__dict__["_plain"] = set(_outside_loops(self.file.tree.body))
        return found

    def _makes_tensor(self, call: ast.Call) -> bool:
        """``torch.randn(2, 10)``: worth showing instead of the name it is bound to."""
        head = call.func
        while isinstance(head, ast.Attribute):
            head = head.value
        dotted = self.file.names.qualified(call.func) or ""
        if not (isinstance(head, ast.Name) and dotted.startswith("torch.") and dotted.count(".") == 1):
            return False
        if not all(map(is_literal, call.args)) or not all(is_literal(k.value) for k in call.keywords):
            return False
        self.used.add(head.id)
        return True

    def _self(self, attribute: str, frame: Frame, depth: int) -> ast.expr:
        """``self.x`` as the class's constructor sets it."""
        cls = frame.cls
        init = (
            next((n for n in cls.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
            if cls
            else None
        )
        for node in init.body if init is not None else ():
            target = node.targets[0] if isinstance(node, ast.Assign) else None
            if (
                isinstance(node, ast.Assign)
                and isinstance(target, ast.Attribute)
                and isinstance(target.value, ast.Name)
                and (target.value.id, target.attr) == ("self", attribute)
            ):
                inner = Frame(init.body if init is not None else (), init, frame, cls)
                return self.close(node.value, inner, node.lineno, depth + 1)
        raise NotClosed


class _Renamer(ast.NodeTransformer):
    """Puts values for the outer names of a comprehension."""

    def __init__(self, closer: Closer, frame: Frame, line: int, depth: int, own: set[str]) -> None:
        self.closer, self.frame, self.line, self.depth, self.own = closer, frame, line, depth, own

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in self.own:
            return node
        return self.closer.close(node, self.frame, self.line, self.depth + 1)

    def visit(self, node: ast.AST) -> ast.AST:
        """A copy: the tree belongs to the file."""
        if isinstance(node, ast.Name):
            return self.visit_Name(node)
        fields = {name: self._copied(value) for name, value in ast.iter_fields(node)}
        return ast.copy_location(type(node)(**fields), node) if hasattr(node, "lineno") else type(node)(**fields)

    def _copied(self, value: object) -> object:
        if isinstance(value, list):
            return [self._copied(v) for v in value]
        return self.visit(value) if isinstance(value, ast.AST) else value


def _last(func: ast.expr) -> str:
    return func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""


def _local_value(function: FunctionNode, name: str, line: int) -> tuple[ast.expr | None, bool]:
    """The value of a local name at ``line``, and whether the name is local at all.

    The last plain assignment before the line; else the first element of a literal that a loop runs over; else the
    parameter's default.
    """
    best: ast.expr | None = None
    found = False
    for node in _statements(function.body):
        names = [n for n, _ in assigned(node)] if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) else [node.name]
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.asname or a.name.split(".")[0] for a in node.names]
        if name not in names:
            continue
        found = True
        if node.lineno >= line and not (isinstance(node, ast.For) and (node.end_lineno or 0) >= line):
            continue
        best = _assigned_value(node, name)
    if found:
        return best, True
    spec = function.args
    named = [*spec.posonlyargs, *spec.args]
    defaults = dict(zip([a.arg for a in named[len(named) - len(spec.defaults) :]], spec.defaults, strict=True))
    defaults.update({a.arg: d for a, d in zip(spec.kwonlyargs, spec.kw_defaults, strict=True) if d is not None})
    every = {a.arg for a in (*named, *spec.kwonlyargs, spec.vararg, spec.kwarg) if a is not None}
    return defaults.get(name), name in every


def _assigned_value(node: ast.stmt, name: str) -> ast.expr | None:
    if isinstance(node, ast.AnnAssign):
        return node.value
    if isinstance(node, ast.For) and isinstance(node.iter, (ast.List, ast.Tuple)) and node.iter.elts:
        return _matching(node.target, node.iter.elts[0], name)
    if not isinstance(node, ast.Assign):
        return None
    return next((v for v in (_matching(t, node.value, name) for t in node.targets) if v is not None), None)


def _matching(target: ast.expr, value: ast.expr, name: str) -> ast.expr | None:
    """The part of ``value`` that ``name`` gets from ``target = value``."""
    if isinstance(target, ast.Name):
        return value if target.id == name else None
    if not (isinstance(target, (ast.Tuple, ast.List)) and isinstance(value, (ast.Tuple, ast.List))):
        return None
    if len(target.elts) != len(value.elts):
        return None
    pairs = (_matching(t, v, name) for t, v in zip(target.elts, value.elts, strict=True))
    return next((v for v in pairs if v is not None), None)


def _outside_loops(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if not isinstance(node, (ast.For, ast.While)):
            yield node
        if isinstance(node, (ast.If, ast.Try)):
            for block, _ in blocks(node):
                yield from _outside_loops(block)


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        for block, _ in blocks(node):
            yield from _statements(block)
