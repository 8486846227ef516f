"""The top level of a source file: what each of its names is bound to, found when asked for."""

from __future__ import annotations

import ast
import builtins
import functools
from collections.abc import Callable

from gradlint.facts.values import UNKNOWN, ClassValue, Env, FuncValue, Ref, Value

ResolveModule = Callable[[str], "ModuleEnv | None"]
"""From the full name of a module to its top level, or None where it is not part of the project."""

_BUILTINS = frozenset(dir(builtins))


class Evaluator:
    """Who evaluates expressions at the top level of files: the reading that is under way."""

    def __init__(self) -> None:
        self.current: Callable[[ast.expr, Env], Value] = lambda node, env: UNKNOWN


_ASKING = frozenset({"super", "isinstance", "issubclass", "hasattr", "print", "type", "id", "repr", "str"})
"""Functions that make nothing of a class they are given."""


class ModuleEnv:
    """One parsed file. ``resolve`` finds other files of the project by module name."""

    def __init__(
        self,
        tree: ast.Module,
        path: str,
        name: str,
        package: str,
        resolve: ResolveModule,
        text: str = "",
        evaluator: Evaluator | None = None,
    ) -> None:
        self.tree = tree
        self.lines = text.splitlines()
        self.path = path
        self.name = name
        self.package = package
        self.resolve = resolve
        self.evaluator = evaluator or Evaluator()
        self._bindings = _bindings(tree.body)
        self._values: dict[str, Value] = {}
        self._busy: set[str] = set()

    def lookup(self, name: str) -> Value:
        """What ``name`` stands for at the top level of this file; UNKNOWN where the text does not tell."""
        if name in self._values:
            return self._values[name]
        if name in self._busy:
            return UNKNOWN
        node = self._bindings.get(name)
        if node is None:
            return Ref(f"builtins.{name}") if name in _BUILTINS else self._from_star(name)
        self._busy.add(name)
        try:
            value = self._value(node, name)
        finally:
            self._busy.discard(name)
        self._values[name] = value
        return value

    def binds(self, name: str) -> bool:
        """Whether the file's top level binds ``name``."""
        return name in self._bindings

    @functools.cached_property
    def handed_over(self) -> frozenset[str]:
        """Names that are arguments of some call: a class among them is made where this file does not show it."""
        return frozenset(
            a.id
            for name, found in self.calls.items()
            if name not in _ASKING
            for _, call in found
            for a in (*call.args, *(k.value for k in call.keywords))
            if isinstance(a, ast.Name)
        )

    @functools.cached_property
    def calls(self) -> dict[str, list[tuple[ast.FunctionDef | None, ast.Call]]]:
        """Calls of plain names anywhere in the file, each with the innermost function around it."""
        found: dict[str, list[tuple[ast.FunctionDef | None, ast.Call]]] = {}
        todo: list[tuple[ast.AST, ast.FunctionDef | None]] = [(self.tree, None)]
        while todo:
            node, scope = todo.pop()
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                found.setdefault(node.func.id, []).append((scope, node))
            inner = node if isinstance(node, ast.FunctionDef) else scope
            todo.extend((child, inner) for child in ast.iter_child_nodes(node))
        return found

    def _value(self, node: ast.AST, name: str) -> Value:
        if isinstance(node, ast.ClassDef):
            return ClassValue(node, self)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return FuncValue(node, self)
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname == name:
                    return self._module_or_ref(alias.name)
                if alias.asname is None and alias.name.split(".")[0] == name:
                    return self._module_or_ref(name)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return self._imported(node, alias.name)
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            value = self.evaluator.current(node.value, Env(self))
            if isinstance(target, ast.Name) or (isinstance(node, ast.Assign) and len(node.targets) > 1):
                return value
            if isinstance(target, (ast.Tuple, ast.List)) and isinstance(value, (tuple, list)):
                for t, v in zip(target.elts, value, strict=False):
                    if isinstance(t, ast.Name) and t.id == name:
                        return v
        return UNKNOWN

    def _module_or_ref(self, dotted: str) -> Value:
        return Ref(dotted) if self.resolve(dotted) is None else ModuleRef(dotted, self.resolve)

    def _module_of(self, node: ast.ImportFrom) -> str:
        module = node.module or ""
        if node.level:
            parts = self.package.split(".") if self.package else []
            parts = parts[: len(parts) - (node.level - 1)] if node.level > 1 else parts
            module = ".".join([*parts, module] if module else parts)
        return module

    def _imported(self, node: ast.ImportFrom, name: str) -> Value:
        module = self._module_of(node)
        env = self.resolve(module)
        if env is not None and env is not self and env.binds(name):
            return env.lookup(name)
        inner = f"{module}.{name}" if module else name
        if self.resolve(inner) is not None:
            return ModuleRef(inner, self.resolve)
        return env.lookup(name) if env is not None and env is not self else Ref(inner)

    def _from_star(self, name: str) -> Value:
        for node in self.tree.body:
            if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
                found = self._imported(node, name)
                # a name of a file of the project is what that file binds it to, `nn` of its own imports too
                own = self.resolve(self._module_of(node)) is not None
                if found is not UNKNOWN and (own or not isinstance(found, Ref)):
                    return found
        return UNKNOWN


class ModuleRef:
    """A module of the project, met as a value."""

    def __init__(self, name: str, resolve: ResolveModule) -> None:
        self.name = name
        self.resolve = resolve

    def attribute(self, name: str) -> Value:
        """``module.name``."""
        env = self.resolve(self.name)
        if env is not None and env.binds(name):
            return env.lookup(name)
        inner = f"{self.name}.{name}"
        return ModuleRef(inner, self.resolve) if self.resolve(inner) is not None else UNKNOWN


def _bindings(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """Name -> the statement that binds it last; a definition wins over a placeholder in an ``except``."""
    found: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            found[node.name] = node
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                found[alias.asname or alias.name.split(".")[0]] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                for part in ast.walk(target):
                    if isinstance(part, ast.Name):
                        found[part.id] = node
        elif isinstance(node, ast.Try):
            inner = _bindings([s for h in node.handlers for s in h.body])
            inner.update(_bindings([*node.body, *node.orelse, *node.finalbody]))
            found.update(inner)
        elif isinstance(node, ast.If):
            inner = _bindings(node.orelse)
            inner.update(_bindings(node.body))
            found.update(inner)
        elif isinstance(node, (ast.With, ast.AsyncWith)):
            found.update(_bindings(node.body))
    return found
