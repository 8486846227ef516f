"""One file's share of a slice: its top-level statements, what binds and changes each name, and what is kept so far."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypedDict

from gradlint.facts.index import SourceFile
from gradlint.facts.names import assigned, blocks
from gradlint.facts.uses import Uses, mutated, root, uses
from gradlint.probe.blanking import Keep, blanked

ImportNode = ast.Import | ast.ImportFrom
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class Module(TypedDict):
    """A sliced module as the worker gets it."""

    name: str
    path: str
    source: str
    package: str
    is_package: bool


@dataclass(frozen=True, eq=False)
class Unit:
    """A statement that a slice keeps or leaves: at the top level, or in the branches of top-level ``if``s."""

    node: ast.stmt
    parents: tuple[ast.If, ...] = ()
    hidden: ast.If | None = None
    """The ``if __name__ == "__main__"`` or ``if TYPE_CHECKING`` that keeps an import from running this statement."""
    main: bool = False

    @cached_property
    def imports(self) -> tuple[ImportNode, ...]:
        """Imports at module level in this statement: itself, or those in its blocks."""
        return tuple(n for n in _flat(self.node) if isinstance(n, (ast.Import, ast.ImportFrom)))

    @cached_property
    def binds(self) -> frozenset[str]:
        """The module-level names that the statement binds."""
        names: set[str] = set()
        for node in _flat(self.node):
            if isinstance(node, _DEFINITIONS):
                names.add(node.name)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                names.update(bound(a) for a in node.names)
            else:
                names.update(name for name, _ in assigned(node))
        return frozenset(names - {"*"})


def bound(alias: ast.alias) -> str:
    """The name that an import binds for ``alias``; for ``from`` imports the same, since they hold no dots."""
    return alias.asname or alias.name.split(".")[0]


def _flat(node: ast.stmt) -> Iterator[ast.stmt]:
    yield node
    for block, _ in blocks(node):
        for inner in block:
            yield from _flat(inner)


def _compares_name(test: ast.expr) -> bool:
    return any(
        isinstance(n, ast.Compare)
        and any(isinstance(s, ast.Name) and s.id == "__name__" for s in (n.left, *n.comparators))
        for n in ast.walk(test)
    )


def _type_checking(test: ast.expr) -> bool:
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or):
        return any(map(_type_checking, test.values))
    return (test.id if isinstance(test, ast.Name) else getattr(test, "attr", "")) == "TYPE_CHECKING"


def _units(body: Iterable[ast.stmt], parents: tuple[ast.If, ...], hidden: ast.If | None, main: bool) -> Iterator[Unit]:
    for node in body:
        if not isinstance(node, ast.If):
            yield Unit(node, parents, hidden, main)
            continue
        is_main = _compares_name(node.test)
        hides = is_main or _type_checking(node.test)
        yield from _units(node.body, (*parents, node), node if hides else hidden, main or is_main)
        yield from _units(node.orelse, (*parents, node), hidden, main)


@dataclass(eq=False)
class Part:
    """What is kept of one module. Filled by :class:`gradlint.probe.dependencies.Slicer`."""

    file: SourceFile
    kept: dict[Unit, None] = field(default_factory=dict)
    needs: dict[ImportNode, set[str]] = field(default_factory=dict)
    """Bound names that are needed of an import; an import in a block that is not listed stays as it is."""
    forced: set[ast.If] = field(default_factory=set)
    """Conditions that are taken to hold, so that the statements they hide run."""
    extra: Keep | None = None
    """What is kept of a function's inside: see :mod:`gradlint.probe.locals`."""

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """The statements at module level, branches of ``if`` flattened."""
        return tuple(_units(self.file.tree.body, (), None, False))

    @cached_property
    def binders(self) -> Mapping[str, list[Unit]]:
        """Name -> the statements that bind it."""
        found: dict[str, list[Unit]] = {}
        for unit in self.units:
            for name in unit.binds:
                found.setdefault(name, []).append(unit)
        return found

    @cached_property
    def mutators(self) -> Mapping[str, list[Unit]]:
        """Name -> the statements that change its object in place."""
        found: dict[str, list[Unit]] = {}
        for unit in self.units:
            for name in mutated(unit.node):
                found.setdefault(name, []).append(unit)
        return found

    @cached_property
    def stars(self) -> tuple[tuple[Unit, ast.ImportFrom], ...]:
        """``from x import *`` at module level."""
        return tuple(
            (unit, node)
            for unit in self.units
            for node in unit.imports
            if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
        )

    @cached_property
    def _registering(self) -> tuple[tuple[str, Unit], ...]:
        """Top-level statements that are decorated by, or are a bare call of, a name bound in this module."""
        found: list[tuple[str, Unit]] = []
        for unit in self.units:
            calls: list[ast.expr] = list(getattr(unit.node, "decorator_list", ()))
            if isinstance(unit.node, ast.Expr) and isinstance(unit.node.value, ast.Call):
                calls.append(unit.node.value)
            for call in calls:
                name = root(call)
                if name is not None and any(not u.imports for u in self.binders.get(name, ())):
                    found.append((name, unit))
        return tuple(found)

    @cached_property
    def _registrars(self) -> Mapping[str, set[str]]:
        """Name -> functions of this module that change it: ``def register(f): MODELS[f.__name__] = f``."""
        found: dict[str, set[str]] = {}
        for function in {name for name, _ in self._registering}:
            for unit in self.binders[function]:
                if not isinstance(unit.node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    continue
                for node in ast.walk(unit.node):
                    for name in mutated(node) if isinstance(node, (ast.Assign, ast.Expr)) else ():
                        found.setdefault(name, set()).add(function)
        return found

    def registers(self, unit: Unit, name: str) -> bool:
        """Whether ``unit`` defines a function that enters things into ``name``."""
        return bool(self._registering and self._registrars.get(name, set()) & unit.binds)

    def registrations(self, name: str) -> Iterator[Unit]:
        """Statements that enter something into ``name`` by a function of this module or by a method of its own."""
        if self._registering:
            by = {*self._registrars.get(name, ()), name}
            yield from (unit for caller, unit in self._registering if caller in by)

    def read(self, node: ast.stmt) -> Uses:
        """The free names of one of this file's statements, remembered."""
        cache: dict[ast.stmt, Uses] = self.file.__dict__.setdefault("_uses", {})
        if node not in cache:
            cache[node] = uses(node, self.file.lazy_annotations, self._walrus)
        return cache[node]

    @cached_property
    def _walrus(self) -> bool:
        return ":=" in self.file.text

    def source(self) -> str:
        """The file's text with everything that is not kept blanked out."""
        whole: set[ast.stmt] = set()
        partly: set[ast.stmt] = set()
        replaced: dict[ast.stmt, str] = {}
        headers: dict[ast.stmt, str] = {}
        for unit in self.kept:
            whole.add(unit.node)
            partly.update(unit.parents)
        headers.update((condition, "if 1:") for condition in self.forced)
        for node, names in self.needs.items():
            text = narrowed(node, names)
            if text is not None:
                replaced[node] = text
        if self.extra is not None:
            whole.update(self.extra.whole)
            partly.update(self.extra.partly)
            replaced.update(self.extra.replaced)
            headers.update(self.extra.headers)
        if whole:
            whole.update(n for n in self.file.tree.body if isinstance(n, ast.ImportFrom) and n.module == "__future__")
        return blanked(self.file.text, self.file.tree.body, Keep(whole, partly, replaced, headers))

    def module(self) -> Module:
        """This part as the worker gets it."""
        file = self.file
        return {
            "name": file.module,
            "path": file.path,
            "source": self.source(),
            "package": file.package,
            "is_package": file.is_package,
        }


def narrowed(node: ImportNode, names: set[str]) -> str | None:
    """The import with only the aliases that bind one of ``names``; None where that is all of them, or none."""
    if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
        listed = ", ".join(sorted(names))
    else:
        kept = [a for a in node.names if bound(a) in names]
        if not kept or len(kept) == len(node.names):
            return None
        listed = ", ".join(f"{a.name} as {a.asname}" if a.asname else a.name for a in kept)
    if isinstance(node, ast.Import):
        return f"import {listed}"
    return f"from {'.' * node.level}{node.module or ''} import {listed}"
