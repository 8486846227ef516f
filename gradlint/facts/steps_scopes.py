"""The functions, methods and classes of one file, and what the names in them are bound to."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator

from gradlint.facts.names import Names

_HERE = "<this file>"
"""Stands for the file's own module, so that its definitions are told from imports."""

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
ScopeNode = ast.Module | ast.ClassDef | FunctionNode


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Binding:
    """What one name is bound to in one scope. Several kinds may meet in one name."""

    values: list[ast.expr] = dataclasses.field(default_factory=list)
    """Right-hand sides of plain ``name = value`` assignments."""
    functions: list[Function] = dataclasses.field(default_factory=list)
    classes: list[Class] = dataclasses.field(default_factory=list)
    opaque: list[ast.AST] = dataclasses.field(default_factory=list)
    """Parameters, loop targets, unpacked tuples: bound to something that is not known."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Scope:
    """A module, class or function body and the names bound in it."""

    node: ScopeNode
    parent: Scope | None
    qualname: str
    names: dict[str, Binding]

    def lookup(self, name: str) -> Binding | None:
        """The binding a bare name means here. Class bodies are seen from themselves only."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names and (scope is self or not isinstance(scope.node, ast.ClassDef)):
                return scope.names[name]
            scope = scope.parent
        return None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Function:
    """A function, method or nested function of the file."""

    node: FunctionNode
    qualname: str
    scope: Scope
    owner: Class | None
    path: str

    @property
    def parameters(self) -> list[str]:
        """Names of the positional parameters, ``self`` included, then the keyword-only ones."""
        arguments = self.node.args
        return [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]

    @property
    def receiver(self) -> str | None:
        """The name of ``self``; None for plain functions and static methods."""
        if self.owner is None or not self.parameters:
            return None
        if any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in self.node.decorator_list):
            return None
        return self.parameters[0]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Class:
    """A class of the file."""

    node: ast.ClassDef
    qualname: str
    scope: Scope
    outer: Scope
    methods: dict[str, Function]
    path: str


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Scopes:
    """All scopes of one file."""

    module: Scope
    path: str
    names: Names
    functions: tuple[Function, ...]
    classes: tuple[Class, ...]

    def function_of(self, node: FunctionNode) -> Function | None:
        """The function that a definition of this file makes."""
        return next((f for f in self.functions if f.node is node), None)

    def class_with(self, node: ast.ClassDef) -> Class | None:
        """The class that a definition of this file makes."""
        return next((c for c in self.classes if c.node is node), None)

    def class_of(self, expr: ast.expr, scope: Scope) -> Class | None:
        """The class of this file that a name or ``Outer.Inner`` means; not one that stands in for a missing import."""
        if isinstance(expr, ast.Name):
            binding = scope.lookup(expr.id)
            if binding and binding.classes and self.dotted(expr, scope) is not None:
                return None
            return binding.classes[-1] if binding and binding.classes else None
        if isinstance(expr, ast.Attribute):
            outer = self.class_of(expr.value, scope)
            if outer is not None and expr.attr in outer.scope.names:
                classes = outer.scope.names[expr.attr].classes
                return classes[-1] if classes else None
        return None

    def dotted(self, expr: ast.expr, scope: Scope) -> str | None:
        """The imported thing an expression means, ``torch.nn.utils.clip_grad_norm_``; None if it is not imported.

        ``getattr(torch.optim, name)`` is some optimizer of PyTorch.
        """
        if isinstance(expr, ast.Call) and isinstance(expr.func, ast.Name) and expr.func.id == "getattr" and expr.args:
            return "torch.optim.Optimizer" if self.dotted(expr.args[0], scope) == "torch.optim" else None
        name = self.names.qualified(expr, self.names.scope(scope.node))
        return None if name is None or name.startswith((f"{_HERE}.", "builtins.")) else name


def read_scopes(tree: ast.Module, path: str, package: str = "") -> Scopes:
    """Every scope of a file. ``package`` is the dotted package the file is in, for relative imports."""
    reader = _Reader(path)
    module = Scope(tree, None, "", {})
    reader.fill(tree.body, module)
    return Scopes(module, path, Names.of(tree, _HERE, package), tuple(reader.functions), tuple(reader.classes))


def spelled(expr: ast.expr) -> str | None:
    """A chain of names as written (``self.opt``), or None."""
    parts = []
    while isinstance(expr, ast.Attribute):
        parts.append(expr.attr)
        expr = expr.value
    if not isinstance(expr, ast.Name):
        return None
    return ".".join([expr.id, *reversed(parts)])


def own_nodes(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Every node that runs with ``body`` itself: not the insides of functions, lambdas and classes."""
    work: list[ast.AST] = list(reversed(body))
    while work:
        node = work.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            work.extend(reversed(list(ast.iter_child_nodes(node))))


class _Reader:
    def __init__(self, path: str) -> None:
        self.path = path
        self.functions: list[Function] = []
        self.classes: list[Class] = []
        self.owners: dict[int, Class] = {}

    def fill(self, body: list[ast.stmt], scope: Scope) -> None:
        """Bind the names of one scope, then go into the scopes it defines."""
        inner: list[Scope] = []
        outside = {
            name for node in own_nodes(body) if isinstance(node, (ast.Global, ast.Nonlocal)) for name in node.names
        }
        plain: set[int] = set()
        for node in own_nodes(body):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                inner.append(self.function(node, scope))
            elif isinstance(node, ast.ClassDef):
                inner.append(self.class_(node, scope))
            elif isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    for name, value in _pairs(target, node.value):
                        plain.add(id(name))
                        self.bind(scope, name.id).values.append(value)
            elif isinstance(node, ast.ExceptHandler) and node.name:
                self.bind(scope, node.name).opaque.append(node)
            elif isinstance(node, ast.Name) and id(node) not in plain and isinstance(node.ctx, ast.Store):
                self.bind(scope, node.id).opaque.append(node)
        for elsewhere in outside:
            scope.names.pop(elsewhere, None)  # a global or nonlocal: bound elsewhere
        for child in inner:
            self.fill(child.node.body, child)

    def bind(self, scope: Scope, name: str) -> Binding:
        return scope.names.setdefault(name, Binding())

    def function(self, node: FunctionNode, scope: Scope) -> Scope:
        qualname = _qualname(scope, node.name)
        owner = self.owners.get(id(scope))
        inner = Scope(node, scope, qualname, {})
        function = Function(node, qualname, inner, owner, self.path)
        arguments = node.args
        for arg in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg):
            if arg is not None:
                self.bind(inner, arg.arg).opaque.append(arg)
        self.bind(scope, node.name).functions.append(function)
        self.functions.append(function)
        if owner is not None:
            owner.methods[node.name] = function
        return inner

    def class_(self, node: ast.ClassDef, scope: Scope) -> Scope:
        qualname = _qualname(scope, node.name)
        inner = Scope(node, scope, qualname, {})
        cls = Class(node, qualname, inner, scope, {}, self.path)
        self.bind(scope, node.name).classes.append(cls)
        self.classes.append(cls)
        self.owners[id(inner)] = cls
        return inner


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[ast.Name, ast.expr]]:
    """The ``name = value`` pairs of an assignment, through tuples of equal length."""
    if isinstance(target, ast.Name):
        yield target, value
    elif (
        isinstance(target, (ast.Tuple, ast.List))
        and isinstance(value, (ast.Tuple, ast.List))
        and len(target.elts) == len(value.elts)
    ):
        for left, right in zip(target.elts, value.elts, strict=True):
            yield from _pairs(left, right)


def _qualname(scope: Scope, name: str) -> str:
    if scope.qualname == "":
        return name
    inside_function = not isinstance(scope.node, ast.ClassDef)
    return f"{scope.qualname}.<locals>.{name}" if inside_function else f"{scope.qualname}.{name}"


def pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[ast.expr, ast.expr]]:
    """The single assignments of one statement, through tuples of equal length."""
    if (
        isinstance(target, (ast.Tuple, ast.List))
        and isinstance(value, (ast.Tuple, ast.List))
        and len(target.elts) == len(value.elts)
    ):
        for left, right in zip(target.elts, value.elts, strict=True):
            yield from pairs(left, right)
    else:
        yield target, value
