"""The files that a training step is spread over: their scopes, and what an imported name leads to."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Callable, Iterator

from gradlint.facts.steps_scopes import Class, Function, Scope, Scopes, own_nodes, pairs, read_scopes, spelled

Located = "tuple[ast.stmt, Source]"


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """One file of the project. ``locate`` leads from a full dotted name, as this file sees it, to its definition."""

    path: str
    text: str
    tree: ast.Module
    package: str = ""
    module: str = ""
    """The name by which the project imports it."""
    locate: Callable[[str], tuple[ast.stmt, Source] | None] = lambda name: None


_MAY_TRAIN = re.compile(r"\.step\(|clip_grad|zero_grad|backward|\.grad\b|parameters\(|optim|super\(\)|class ")
"""A file without any of these has no helper of a training step."""


class ScopeCache:
    """The scopes of every file that was asked for, and classes and functions across them."""

    def __init__(self) -> None:
        self.sources: dict[str, Source] = {}
        self._scopes: dict[str, Scopes] = {}
        self._kept: dict[Class, dict[str, str]] = {}
        self._located: dict[tuple[str, str], tuple[ast.stmt, Source] | None] = {}

    def add(self, source: Source) -> Scopes:
        """The scopes of a file."""
        if source.path not in self._scopes:
            self.sources[source.path] = source
            self._scopes[source.path] = read_scopes(source.tree, source.path, source.package)
        return self._scopes[source.path]

    def of(self, path: str) -> Scopes:
        """The scopes of a file that was added before."""
        return self._scopes[path]

    def imported(self, name: str, path: str) -> Function | Class | None:
        """The function or class of another file that the dotted ``name`` means in the file at ``path``."""
        key = (path, name)
        if key not in self._located:
            self._located[key] = self.sources[path].locate(name)
        found = self._located[key]
        if found is None:
            return None
        node, source = found
        if not _MAY_TRAIN.search(source.text):
            return None
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return self.add(source).function_of(node)
        return self.add(source).class_with(node) if isinstance(node, ast.ClassDef) else None

    def class_of(self, expr: ast.expr, scope: Scope, path: str) -> Class | None:
        """The class that an expression means, in this file or another."""
        scopes = self.of(path)
        found = scopes.class_of(expr, scope)
        if found is not None:
            return found
        name = scopes.dotted(expr, scope)
        elsewhere = self.imported(name, path) if name else None
        return elsewhere if isinstance(elsewhere, Class) else None

    def bases(self, cls: Class) -> Iterator[Class]:
        """The class and its bases in the project, nearest first."""
        seen: set[int] = set()
        work = [cls]
        while work:
            current = work.pop(0)
            if id(current) in seen:
                continue
            seen.add(id(current))
            yield current
            for base in current.node.bases:
                found = self.class_of(base, current.outer, current.path)
                if found is not None:
                    work.append(found)

    def base_names(self, cls: Class) -> set[str]:
        """The dotted names of all bases, of the project or not (``torch.nn.Module``)."""
        return {
            self.of(base.path).dotted(expr, base.outer) or spelled(expr) or ""
            for base in self.bases(cls)
            for expr in base.node.bases
        }

    def method(self, cls: Class, name: str, skip_own: bool = False) -> Function | None:
        """The method that a call on an instance of ``cls`` reaches, as far as the project tells."""
        for index, base in enumerate(self.bases(cls)):
            if name in base.methods and not (skip_own and index == 0):
                return base.methods[name]
        return None

    def kept_arguments(self, cls: Class) -> dict[str, str]:
        """The attributes that ``__init__`` binds to a parameter of its own, and nothing binds otherwise."""
        if cls not in self._kept:
            self._kept[cls] = _kept(self.method(cls, "__init__"), cls)
        return self._kept[cls]


def _kept(made: Function | None, cls: Class) -> dict[str, str]:
    if made is None or not made.parameters:
        return {}
    found: dict[str, str] = {}
    bound: dict[str, int] = {}
    for method in {made, *cls.methods.values()}:
        receiver = method.parameters[0] if method.parameters else ""
        for node in own_nodes(method.node.body):
            if not isinstance(node, ast.Assign):
                continue
            for target, value in (p for t in node.targets for p in pairs(t, node.value)):
                if not isinstance(target, ast.Attribute) or spelled(target.value) != receiver:
                    continue
                bound[target.attr] = bound.get(target.attr, 0) + 1
                if method is made and isinstance(value, ast.Name) and value.id in made.parameters[1:]:
                    found[target.attr] = value.id
    return {attribute: parameter for attribute, parameter in found.items() if bound[attribute] == 1}
