"""Following names from statement to statement and from file to file, until everything needed is kept."""

from __future__ import annotations

import ast
import builtins
from collections import deque

from gradlint.facts.index import ProjectIndex, SourceFile, exports
from gradlint.facts.names import absolute
from gradlint.probe.parts import ImportNode, Part, Unit, bound

MAX_NAMES = 4000  # a slice that needs more is not one
_MODULE_NAMES = frozenset(
    {"__name__", "__file__", "__doc__", "__package__", "__path__", "__spec__", "__loader__", "__builtins__", "__all__"}
)
_BUILTINS = frozenset(dir(builtins))
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class Slicer:
    """Collects the parts of one slice. ``rescue``: statements of the ``__main__`` block may serve as definitions."""

    def __init__(self, index: ProjectIndex, rescue: bool = True) -> None:
        self.index = index
        self.rescue = rescue
        self.parts: dict[str, Part] = {}
        self.missing: dict[str, None] = {}
        self._seen: set[tuple[Part, str, str | None, bool]] = set()
        self._todo: deque[tuple[Part, str, str | None, Unit | None]] = deque()

    def part(self, file: SourceFile) -> Part:
        """The part for ``file``, an empty one at first."""
        if file.module not in self.parts:
            self.parts[file.module] = Part(file)
        return self.parts[file.module]

    def want(self, part: Part, name: str, tail: str | None = "", by: Unit | None = None) -> None:
        """``name`` (and its dotted attribute ``tail``) of a module is needed, by the statement ``by``.

        ``tail`` is ``""`` where the name is used as it is, None where it only has to be there. ``by`` is None
        where the need comes from outside the module.
        """
        key = (part, name, tail, by is None or not part.registers(by, name))
        if key not in self._seen and len(self._seen) < MAX_NAMES:
            self._seen.add(key)
            self._todo.append((part, name, tail, by))

    def want_all(self, part: Part, names: dict[str, set[str]]) -> None:
        """Several names at once, as :class:`gradlint.facts.uses.Uses` lists them."""
        for name, tails in names.items():
            for tail in tails:
                self.want(part, name, tail)

    def run(self) -> None:
        """Follows everything that is wanted."""
        while self._todo:
            self._follow(*self._todo.popleft())

    # -- one name

    def _follow(self, part: Part, name: str, tail: str | None, by: Unit | None) -> None:
        units = part.binders.get(name, [])
        chosen = [u for u in units if u.hidden is None]
        if not chosen and units:
            chosen = [u for u in units if u.main] if self.rescue else []
            if by is None and part.file.is_package:  # a package that loads its parts lazily lists them there
                chosen = chosen or units
            if not chosen:
                return
        if not chosen:
            self._outside(part, name, tail)
            return
        plain = False
        for unit in chosen:
            self.keep(part, unit, name)
            imports = [(n, a) for n in unit.imports for a in n.names if bound(a) == name]
            for node, alias in imports:
                self.alias(part, node, alias, tail)
            plain = plain or not imports
        if plain or self._is_imported_object(part, name):
            self._changes(part, name, tail, by, any(u.main for u in chosen))

    def _is_imported_object(self, part: Part, name: str) -> bool:
        """Whether ``name`` is an object of another file of the project that this file changes."""
        if name not in part.mutators:
            return False
        found = self.index.definition(part.file, name)
        return found is not None and isinstance(found[1], (ast.Assign, ast.AnnAssign))

    def _changes(self, part: Part, name: str, tail: str | None, by: Unit | None, in_main: bool) -> None:
        """Statements that fill ``name`` after it was made."""
        for unit in part.mutators.get(name, ()):
            if unit.hidden is None or (in_main and unit.main):
                self.keep(part, unit, name)
                for made in unit.binds if isinstance(unit.node, ast.Assign) else ():
                    self.want(part, made, "", unit)  # a part of the object, which may be filled by that name
        if (tail or "").startswith("regist") or (by is not None and part.registers(by, name)):
            return
        if any(isinstance(u.node, (ast.Assign, ast.AnnAssign)) for u in part.binders[name]):
            for unit in part.registrations(name):
                if unit is not by and unit.hidden is None:
                    self.keep(part, unit, name)

    def keep(self, part: Part, unit: Unit, name: str = "") -> None:
        """``unit`` stays, and what it reads is wanted; ``name`` is the name it is kept for."""
        if unit not in part.kept:
            part.kept[unit] = None
            for condition in unit.parents:
                if condition is unit.hidden:
                    part.forced.add(condition)
                else:
                    self._test(part, condition, unit)
            if not isinstance(unit.node, (ast.Import, ast.ImportFrom)):
                self._reads(part, unit.node, unit)
        for node in unit.imports if not isinstance(unit.node, (ast.Import, ast.ImportFrom)) else ():
            mine = [a for a in node.names if bound(a) == name] or ([] if node in part.needs else node.names)
            for alias in mine:
                if alias.name != "*":
                    self.alias(part, node, alias, None)

    def _test(self, part: Part, condition: ast.If, unit: Unit) -> None:
        probe = ast.copy_location(ast.Expr(condition.test), condition)
        for name, tails in part.read(probe).loads.items():
            for tail in tails:
                self.want(part, name, tail, unit)

    def _reads(self, part: Part, node: ast.stmt, unit: Unit) -> None:
        used = part.read(node)
        for name, tails in used.loads.items():
            for tail in tails:
                self.want(part, name, tail, unit)
        at_top = set(unit.imports)
        for inner in used.imports:
            if inner not in at_top:
                self.inner_import(part, inner, used.imported)
        if "globals" in used.loads or ("__name__" in used.loads and "modules" in used.loads.get("sys", ())):
            self.everything(part)

    def inner_import(self, part: Part, node: ImportNode, tails: dict[str, set[str]]) -> None:
        """An import inside a function: it stays as it is, so all it names is wanted."""
        for alias in node.names:
            for tail in tails.get(bound(alias), ()) or {""}:
                self.alias(part, node, alias, tail, narrow=False)

    def everything(self, part: Part) -> None:
        """A module that is looked into by names the text does not tell: all its definitions and re-exports."""
        for name, units in part.binders.items():
            if any(isinstance(u.node, (*_DEFINITIONS, ast.ImportFrom)) and u.hidden is None for u in units):
                self.want(part, name)

    # -- imports

    def alias(self, part: Part, node: ImportNode, alias: ast.alias, tail: str | None, narrow: bool = True) -> None:
        """One name of an import is needed. ``tail`` None: needed to be there, nothing of it is read yet."""
        if narrow:
            part.needs.setdefault(node, set()).add(bound(alias))
        near = part.file.real
        if isinstance(node, ast.Import):
            self._ensure(alias.name, near)
            if tail is not None:
                start = alias.name if alias.asname else alias.name.split(".")[0]
                self._enter(start, tail, near)
            return
        base = absolute(node, part.file.package)
        home = self._ensure(base, near)
        if home is not None and home is not part and alias.name in home.binders:
            self.want(home, alias.name, tail)
        elif self._ensure(f"{base}.{alias.name}" if base else alias.name, near) is not None:
            if tail is not None:
                self._enter(f"{base}.{alias.name}" if base else alias.name, tail, near)
        elif home is not None and home is not part:
            self.want(home, alias.name, tail)
        elif home is None and node.level:
            self.missing[f"{base}.{alias.name}"] = None

    def _ensure(self, module: str, near: str) -> Part | None:
        """The part for ``module`` if that is a file of the project: an import of it must find it, even empty."""
        file = self.index.module(module, near)
        return self.part(file) if file is not None else None

    def _enter(self, module: str, tail: str, near: str) -> None:
        """``module.tail`` is read, where ``module`` is a module."""
        parts = tail.split(".") if tail else []
        here = self._ensure(module, near)
        for number, name in enumerate(parts):
            rest = ".".join(parts[number + 1 :])
            if here is not None and name in here.binders:
                self.want(here, name, rest)
                return
            module = f"{module}.{name}"
            inner = self._ensure(module, near)
            if inner is None:
                if here is not None and name not in _MODULE_NAMES:
                    self.want(here, name, rest)
                    return
                continue  # a folder without a file of its own, or not of the project
            here = inner
        if here is not None:
            self.everything(here)

    def _outside(self, part: Part, name: str, tail: str | None) -> None:
        """A name that no statement of the module binds: a star import, a builtin, or missing."""
        foreign: list[Unit] = []
        for unit, node in part.stars:
            home = self.index.module(absolute(node, part.file.package), part.file.real)
            if home is None:
                foreign.append(unit)
            elif home.real != part.file.real and exports(home, name) and self._has(home, name):
                self.keep(part, unit)
                part.needs.setdefault(node, set()).add(name)
                self.want(self.part(home), name, tail)
                return
        if name in _BUILTINS or name in _MODULE_NAMES:
            return
        for unit in foreign:
            self.keep(part, unit)
        if foreign:
            return
        if "__getattr__" in part.binders:
            self.want(part, "__getattr__")
            return
        self.missing[f"{part.file.module}.{name}"] = None

    def _has(self, home: SourceFile, name: str) -> bool:
        if name in home.names.top.bindings or self.index.definition(home, name) is not None:
            return True
        return any(self.index.module(module, home.real) is None for _, module in home.names.stars)
