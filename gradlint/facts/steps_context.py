"""What the reader of training steps carries along: the file, and the activation of a function it is in."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator, Mapping

from gradlint.facts.steps_events import Frame, Lines
from gradlint.facts.steps_iterators import binds_iterator, iterator_names
from gradlint.facts.steps_objects import Objects, read_objects
from gradlint.facts.steps_project import ScopeCache
from gradlint.facts.steps_scopes import Class, Function, FunctionNode, Scope, Scopes, own_nodes, spelled
from gradlint.facts.steps_words import BUILTINS, EVENTS, STRONG, callee, words

_UP_TO = (ast.GtE, ast.Gt, ast.Eq)


@dataclasses.dataclass(frozen=True)
class Unit:
    """One file as the reader sees it."""

    scopes: Scopes
    objects: Objects
    lines: Lines
    path: str
    touching: frozenset[FunctionNode]
    """The functions worth reading: the others touch no gradient."""
    training: frozenset[FunctionNode]
    """Those in which a call is named like a training event."""
    iterators: frozenset[str]
    """The names that are somewhere bound to an iterator of parameters."""
    counters: frozenset[str]
    """Names and attributes that tell micro-batches apart: somewhere assigned a condition with a remainder
    (``update = i % k == 0``), or set back to 0 where they reached a limit."""
    cache: ScopeCache
    """The files of the project that were read."""


@dataclasses.dataclass(frozen=True)
class Context:
    """One activation of a function: its scope, what its parameters stand for, and how it was reached."""

    unit: Unit
    scope: Scope
    names: Mapping[str, str]
    """Local names that stand for objects of the caller: ``opt`` for ``self.optimizer``; and attributes of helper
    objects that stand for what their constructors were given: ``engine.optimizer`` for ``optimizer``."""
    selves: Mapping[str, Class]
    """The names of ``self``, here and in enclosing methods, with the class of the object."""
    owner: Class | None
    """The class the running method was defined in, for ``super()``."""
    frames: tuple[Frame, ...]
    active: tuple[FunctionNode | ast.Lambda, ...]
    constants: Mapping[str, object] = dataclasses.field(default_factory=dict)
    """Parameters whose value the call tells."""
    iterators: frozenset[str] = frozenset()
    """The names of iterators of parameters in the files of the callers."""

    @property
    def watched(self) -> frozenset[str]:
        """The names of iterators of parameters that may be met here."""
        return self.unit.iterators | self.iterators

    def key(self, expr: ast.expr) -> str | None:
        """A stable name for the object an expression means, in the terms of the region's own scope."""
        if isinstance(expr, ast.Name):
            return self.names.get(expr.id, expr.id)
        if isinstance(expr, ast.Attribute):
            owner = self.key(expr.value)
            if not owner:
                return None
            whole = f"{owner}.{expr.attr}"
            return self.names.get(whole, whole)
        if isinstance(expr, ast.Subscript):
            owner = self.key(expr.value)
            return f"{owner}[{ast.unparse(expr.slice)}]" if owner else None
        if isinstance(expr, ast.Call):
            owner = self.key(expr.func)
            plain = not expr.args and not expr.keywords
            made = plain or self.unit.cache.class_of(expr.func, self.scope, self.unit.path)
            return f"{owner}()" if owner and made else None
        return None


class Units:
    """The reader's view of every file of a project that was entered: kept from file to file."""

    def __init__(self) -> None:
        self.cache = ScopeCache()
        self._units: dict[str, Unit] = {}

    def of(self, path: str) -> Unit:
        """The view of a file whose scopes are known."""
        if path not in self._units:
            self._units[path] = read_unit(self.cache, path)
        return self._units[path]


def read_unit(cache: ScopeCache, path: str) -> Unit:
    """The reader's view of one file."""
    scopes, lines = cache.of(path), Lines(cache.sources[path].text)
    calls: dict[Function, set[str]] = {}
    suspected: set[Function] = set()
    training: set[Function] = set()
    for function in scopes.functions:
        inner = [n for n in ast.walk(function.node) if isinstance(n, (ast.Call, ast.Attribute))]
        calls[function] = {callee(n, None) for n in inner if isinstance(n, ast.Call)}
        if any(_trains(n) for n in inner):
            training.add(function)
        elif any(_suggests(n) for n in inner):
            suspected.add(function)
    iterators = iterator_names(scopes, cache)
    training |= {
        function for function in scopes.functions if iterators and binds_iterator(function.scope, scopes, cache)
    }
    objects = read_objects(scopes, cache)
    selfmade = {n.rsplit(".", 1)[-1] for n, cls in objects.instances.items() if cls.methods.get("forward") in training}
    suspected |= {function for function in scopes.functions if calls[function] & selfmade}  # `maml(*batch)` trains
    touching = _callers(calls, suspected | training)
    return Unit(
        scopes,
        objects,
        lines,
        scopes.path,
        touching,
        _callers(calls, training),
        iterators,
        _counters(scopes),
        cache,
    )


def _counters(scopes: Scopes) -> frozenset[str]:
    found: set[str] = set()
    for scope in (scopes.module, *(f.scope for f in scopes.functions)):
        for node in own_nodes(scope.node.body):
            if isinstance(node, ast.If):
                found.update(_reset_counters(node))
                continue
            if not isinstance(node, ast.Assign) or not isinstance(node.value, (ast.Compare, ast.BoolOp, ast.UnaryOp)):
                continue
            if any(isinstance(n, ast.BinOp) and isinstance(n.op, ast.Mod) for n in ast.walk(node.value)):
                found.update(spelled(target) or "" for target in node.targets)
    return frozenset(name.rsplit(".", 1)[-1] for name in found if name)


def _reset_counters(node: ast.If) -> Iterator[str]:
    """What counts up to a limit and begins again: ``if seen >= batches: ...; seen = 0``."""
    tests = node.test.values if isinstance(node.test, ast.BoolOp) else [node.test]
    left = {spelled(t.left) for t in tests if isinstance(t, ast.Compare) and isinstance(t.ops[0], _UP_TO)}
    for inner in node.body:
        if isinstance(inner, ast.Assign) and isinstance(inner.value, ast.Constant) and inner.value.value == 0:
            yield from (p for p in map(spelled, inner.targets) if p is not None and p in left)


def aliases(scope: Scope, names: Mapping[str, str], unit: Unit) -> dict[str, str]:
    """``opt = self.optimizer``: the local name stands for the object, if it is bound once."""
    found = dict(names)
    for name, binding in scope.names.items():
        if len(binding.values) != 1 or binding.opaque or name in found:
            continue
        if isinstance(binding.values[0], ast.Call):
            for attribute, given in _handed_on(binding.values[0], scope, unit):
                root, _, rest = given.partition(".")
                root = found.get(root, root)
                found[f"{name}.{attribute}"] = f"{root}.{rest}" if rest else root
            continue
        chain = spelled(binding.values[0])
        if chain and chain != name and chain not in BUILTINS:
            root, _, rest = chain.partition(".")
            root = found.get(root, root)
            found[name] = f"{root}.{rest}" if rest else root
    return found


def _handed_on(call: ast.Call, scope: Scope, unit: Unit) -> Iterator[tuple[str, str]]:
    """``engine = Engine(model, optimizer)``: the attributes that are what the constructor was given, with that."""
    if not (call.args or call.keywords) or not callee(call)[:1].isupper():
        return
    cls = unit.cache.class_of(call.func, scope, unit.path)
    if cls is None or any(base.endswith("Module") for base in unit.cache.base_names(cls)):
        return
    kept = unit.cache.kept_arguments(cls)
    made = unit.cache.method(cls, "__init__")
    if not kept or made is None:
        return
    given = dict(zip(made.parameters[1:], call.args, strict=False))
    given.update({k.arg: k.value for k in call.keywords if k.arg})
    for attribute, parameter in kept.items():
        chain = spelled(given[parameter]) if parameter in given else None
        if chain and chain not in BUILTINS:
            yield attribute, chain


def _callers(calls: Mapping[Function, set[str]], found: set[Function]) -> frozenset[FunctionNode]:
    """These functions and all that call them, directly or not, going by names."""
    found = set(found)
    while True:
        names = {function.node.name for function in found}
        new = {function for function in calls if function not in found and calls[function] & names}
        if not new:
            return frozenset(function.node for function in found)
        found |= new


def _suggests(node: ast.AST) -> bool:
    """Whether a call or an attribute might touch gradients, going by its name."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Call) and callee(node.func, None) == "getattr":
        return True
    if isinstance(node, ast.Attribute) and node.attr == "grad":
        return True
    return _trains(node) or (isinstance(node, ast.Call) and bool(STRONG & set(words(callee(node, None)))))


def _trains(node: ast.AST) -> bool:
    """Whether a call is named like a training event."""
    if isinstance(node, ast.Attribute):
        return node.attr == "grad" and isinstance(node.ctx, ast.Store)
    return isinstance(node, ast.Call) and callee(node, None) in EVENTS
