"""Which outer names a statement reads, and which it changes: the edges that a slice follows."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from gradlint.facts.names import FunctionNode, assigned, blocks, target_names

NOTHING: frozenset[str] = frozenset()

# Methods that change the object they are called on, where the result is thrown away.
# fmt: off
MUTATORS = frozenset({
    "append", "appendleft", "extend", "insert", "add", "update", "setdefault", "pop", "remove", "discard",
    "clear", "sort", "reverse", "register", "register_module", "register_buffer", "register_parameter",
    "register_forward_hook", "add_module", "apply", "requires_grad_", "add_argument", "add_argument_group",
    "add_subparsers", "add_mutually_exclusive_group", "set_defaults", "reset_parameters", "init_weights",
    "initialize_weights", "init_weight", "_init_weights", "initialize", "init_parameters", "weight_init",
    "load_state_dict", "freeze",
})
# fmt: on
TRAINING_CALLS = frozenset({"backward", "step", "zero_grad", "clip_grad_norm_", "clip_grad_value_", "fit"})


class Uses(NamedTuple):
    """What one statement needs from outside itself, bodies of the functions it defines included."""

    loads: dict[str, set[str]]
    """Free name -> the dotted attributes read from it; ``''`` where the name is used as it is."""
    imports: list[ast.Import | ast.ImportFrom]
    """Imports inside functions and blocks."""
    imported: dict[str, set[str]]
    """As ``loads``, for the names that those imports bind."""


def uses(node: ast.stmt, lazy_annotations: bool, walrus: bool = True) -> Uses:
    """The free names of ``node``. ``lazy_annotations``: the file has ``from __future__ import annotations``.

    ``walrus`` says whether the file holds a ``:=`` at all; looking for them costs a walk over each function.
    """
    reader = _Reader(lazy_annotations, walrus)
    reader.statement(node, NOTHING, set())
    return Uses(reader.loads, reader.imports, reader.imported)


class _Reader:
    """``local`` are the names of enclosing functions; ``seen`` those bound so far in a module or class body."""

    def __init__(self, lazy_annotations: bool, walrus: bool) -> None:
        self.lazy = lazy_annotations
        self.walrus = walrus
        self.loads: dict[str, set[str]] = {}
        self.imports: list[ast.Import | ast.ImportFrom] = []
        self.imported: dict[str, set[str]] = {}

    def record(self, name: str, tail: str, local: frozenset[str], seen: set[str] | None) -> None:
        if name in self.imported:
            self.imported[name].add(tail)
        if name in local or (seen is not None and name in seen):
            return
        self.loads.setdefault(name, set()).add(tail)

    def expr(self, node: ast.expr, local: frozenset[str], seen: set[str] | None) -> None:
        stack: list[ast.AST] = [node]
        while stack:
            here = stack.pop()
            kind = type(here)
            if kind is ast.Constant:
                continue
            if isinstance(here, ast.Name):
                if not isinstance(here.ctx, ast.Store):
                    self.record(here.id, "", local, seen)
            elif isinstance(here, ast.Attribute):
                tail = [here.attr]
                inner = here.value
                while isinstance(inner, ast.Attribute):
                    tail.append(inner.attr)
                    inner = inner.value
                if isinstance(inner, ast.Name):
                    self.record(inner.id, ".".join(reversed(tail)), local, seen)
                else:
                    stack.append(inner)
            elif isinstance(here, ast.Call):
                stack.append(here.func)
                stack += here.args
                stack += [k.value for k in here.keywords]
            elif isinstance(here, ast.Lambda):
                stack += [d for d in (*here.args.defaults, *here.args.kw_defaults) if d is not None]
                self.expr(here.body, local | set(_parameters(here.args)), seen)
            elif isinstance(here, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
                self._comprehension(here, local, seen)
            else:
                stack += ast.iter_child_nodes(here)

    def _comprehension(
        self,
        node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp,
        local: frozenset[str],
        seen: set[str] | None,
    ) -> None:
        inner = local
        for part in node.generators:
            self.expr(part.iter, inner, seen)
            inner = inner | set(target_names(part.target))
            for test in part.ifs:
                self.expr(test, inner, seen)
        if isinstance(node, ast.DictComp):
            self.expr(node.key, inner, seen)
            self.expr(node.value, inner, seen)
        else:
            self.expr(node.elt, inner, seen)

    def body(self, nodes: Iterable[ast.stmt], local: frozenset[str], seen: set[str] | None) -> None:
        for node in nodes:
            self.statement(node, local, seen)

    def statement(self, node: ast.stmt, local: frozenset[str], seen: set[str] | None) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            self._function(node, local, seen)
        elif isinstance(node, ast.ClassDef):
            self._class(node, local, seen)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            self.imports.append(node)
            for alias in node.names:
                name = alias.asname or alias.name.split(".")[0]
                self.imported.setdefault(name, set())
                if seen is not None:
                    seen.add(name)
        elif isinstance(node, ast.AnnAssign):
            if node.value is not None:
                self.expr(node.value, local, seen)
            if seen is not None and not self.lazy:
                self.expr(node.annotation, local, seen)
            self._target(node.target, local, seen)
        elif isinstance(node, (ast.Assign, ast.AugAssign)):
            self.expr(node.value, local, seen)
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(node, ast.AugAssign) and isinstance(target, ast.Name):
                    self.record(target.id, "", local, seen)
                self._target(target, local, seen)
        else:
            self._compound(node, local, seen)

    def _compound(self, node: ast.stmt, local: frozenset[str], seen: set[str] | None) -> None:
        if isinstance(node, (ast.For, ast.AsyncFor)):
            self.expr(node.iter, local, seen)
            self._target(node.target, local, seen)
        elif isinstance(node, (ast.With, ast.AsyncWith)):
            for item in node.items:
                self.expr(item.context_expr, local, seen)
                if item.optional_vars is not None:
                    self._target(item.optional_vars, local, seen)
        elif isinstance(node, ast.Match):
            self.expr(node.subject, local, seen)
            for case in node.cases:
                self._pattern(case.pattern, local, seen)
                if case.guard is not None:
                    self.expr(case.guard, local, seen)
        elif isinstance(node, ast.Try) or type(node).__name__ == "TryStar":
            for handler in getattr(node, "handlers", ()):
                if handler.type is not None:
                    self.expr(handler.type, local, seen)
        else:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.expr):
                    self.expr(child, local, seen)
        if seen is not None:
            seen.update(name for name, _ in assigned(node))
        for block, _ in blocks(node):
            self.body(block, local, seen)

    def _pattern(self, pattern: ast.pattern, local: frozenset[str], seen: set[str] | None) -> None:
        for part in ast.walk(pattern):
            if isinstance(part, ast.MatchValue):
                self.expr(part.value, local, seen)
            elif isinstance(part, ast.MatchClass):
                self.expr(part.cls, local, seen)

    def _target(self, target: ast.expr, local: frozenset[str], seen: set[str] | None) -> None:
        if isinstance(target, ast.Name):
            if seen is not None:
                seen.add(target.id)
        elif isinstance(target, (ast.Tuple, ast.List)):
            for part in target.elts:
                self._target(part, local, seen)
        elif isinstance(target, ast.Starred):
            self._target(target.value, local, seen)
        else:
            self.expr(target, local, seen)

    def _function(self, node: FunctionNode, local: frozenset[str], seen: set[str] | None) -> None:
        spec = node.args
        for expr in (*node.decorator_list, *spec.defaults, *spec.kw_defaults):
            if expr is not None:
                self.expr(expr, local, seen)
        # The annotations of a constructor tell the probe what to pass, so they stay even where Python ignores them.
        if not self.lazy or node.name == "__init__":
            for arg in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg):
                if arg is not None and arg.annotation is not None:
                    self.expr(arg.annotation, local, seen)
            if node.returns is not None and not self.lazy:
                self.expr(node.returns, local, seen)
        if seen is not None:
            seen.add(node.name)
        inner = local | _locals(node, self.walrus)
        self.body(node.body, inner, None)

    def _class(self, node: ast.ClassDef, local: frozenset[str], seen: set[str] | None) -> None:
        for expr in (*node.decorator_list, *node.bases, *(k.value for k in node.keywords)):
            self.expr(expr, local, seen)
        parameters = {p.name for p in getattr(node, "type_params", ())}
        inner = local | parameters if parameters else local
        # A dataclass or a pydantic model reads the annotations of its fields even where they are strings.
        lazy = self.lazy
        if node.decorator_list or any(_last(b) in ("BaseModel", "NamedTuple", "TypedDict") for b in node.bases):
            self.lazy = False
        own: set[str] = set() if seen is None else set(seen)
        for child in node.body:
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self.lazy, kept = lazy, self.lazy
                self.statement(child, inner, own)
                self.lazy = kept
            else:
                self.statement(child, inner, own)
        self.lazy = lazy
        if seen is not None:
            seen.add(node.name)


def _last(expr: ast.expr) -> str:
    return expr.attr if isinstance(expr, ast.Attribute) else expr.id if isinstance(expr, ast.Name) else ""


def _parameters(spec: ast.arguments) -> Iterator[str]:
    for arg in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg):
        if arg is not None:
            yield arg.arg


def _locals(node: FunctionNode, walrus: bool) -> set[str]:
    """The names that are local to a function: what Python's own scoping says."""
    names = set(_parameters(node.args))
    names.update(p.name for p in getattr(node, "type_params", ()))
    outer: set[str] = set()
    stack: list[ast.stmt] = list(node.body)
    while stack:
        here = stack.pop()
        if isinstance(here, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(here.name)
        elif isinstance(here, (ast.Import, ast.ImportFrom)):
            names.update(a.asname or a.name.split(".")[0] for a in here.names)
        elif isinstance(here, (ast.Global, ast.Nonlocal)):
            outer.update(here.names)
        else:
            names.update(name for name, _ in assigned(here))
            for block, _ in blocks(here):
                stack += block
    if walrus:
        names.update(n.target.id for n in ast.walk(node) if isinstance(n, ast.NamedExpr))
    return names - outer


def root(expr: ast.expr) -> str | None:
    """The name that ``a.b[0].c(...)`` starts from."""
    while True:
        if isinstance(expr, (ast.Attribute, ast.Subscript, ast.Starred)):
            expr = expr.value
        elif isinstance(expr, ast.Call):
            expr = expr.func
        else:
            return expr.id if isinstance(expr, ast.Name) else None


def mutated(node: ast.stmt) -> set[str]:
    """Names whose objects ``node`` plainly changes in place, without rebinding them.

    ``x[...] = v``, ``x.a = v``, ``x.append(v)``, in-place initialisers given ``x``, and loops, ``with`` blocks
    and branches that do so; a loop that trains is left out, it is what a slice exists to leave behind.
    """
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)):
        return set()
    inner = [s for block, _ in blocks(node) for s in block]
    if inner:
        if trains(node):
            return set()
        found = {name for s in inner for name in mutated(s)}
        if isinstance(node, (ast.For, ast.AsyncFor)) and found & set(target_names(node.target)):
            found -= set(target_names(node.target))
            found.update(n.id for n in ast.walk(node.iter) if isinstance(n, ast.Name))
        return found
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return _mutated_by_call(node.value)
    targets: list[ast.expr] = []
    if isinstance(node, (ast.Assign, ast.Delete)):
        targets = node.targets
    elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
        targets = [node.target]
    roots = {root(t) for t in targets if isinstance(t, (ast.Attribute, ast.Subscript))}
    value = getattr(node, "value", None)
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr in MUTATORS:
        roots.add(root(value.func))  # `group = parser.add_argument_group()`
    return {r for r in roots if r is not None}


def _mutated_by_call(call: ast.Call) -> set[str]:
    name = _last(call.func)
    in_place = name.endswith("_") and not name.endswith("__")
    found: set[str] = set()
    if isinstance(call.func, ast.Attribute) and (in_place or name in MUTATORS):
        owner = root(call.func)
        if owner is not None:
            found.add(owner)
    if in_place or "init" in name.lower() or name in ("setattr", "heappush"):
        found.update(r for r in map(root, call.args) if r is not None)
    return found


def trains(node: ast.AST) -> bool:
    """Whether a statement holds a call that belongs to training."""
    return any(isinstance(n, ast.Call) and _last(n.func) in TRAINING_CALLS for n in ast.walk(node))
