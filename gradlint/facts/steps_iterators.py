"""Iterators of parameters: where a name is bound to one, and which calls use it up."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from gradlint.facts.steps_project import ScopeCache
from gradlint.facts.steps_scopes import Function, Scope, Scopes, own_nodes, spelled
from gradlint.facts.steps_words import PARAMETER_WORDS, STANDARD, words

_LAZY_BUILTINS = frozenset({"filter", "map", "iter", "zip", "reversed"})
_LAZY_TOOLS = frozenset({"chain", "from_iterable", "islice", "filterfalse", "takewhile", "dropwhile"})
_LISTING = frozenset({"parameters", "named_parameters"})
_EAGER = frozenset({"list", "tuple", "set", "frozenset", "sum", "sorted", "max", "min", "dict"})
_EAGER_TORCH = frozenset({"parameters_to_vector", "vector_to_parameters"})


def iterator_names(scopes: Scopes, cache: ScopeCache) -> frozenset[str]:
    """The names and attributes of a file that some statement binds to an iterator, or a list, of parameters."""
    found: set[str] = set()
    bodies: list[Scope] = [scopes.module, *(f.scope for f in scopes.functions)]
    for scope in bodies:
        for node in own_nodes(scope.node.body):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                for target in node.targets:
                    found.update(_unpacked(target, node.value, scopes, scope, cache))
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
                if not makes_iterator(node.value, scopes, scope, cache) and not lists_parameters(node.value):
                    continue
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    key = spelled(target)
                    if key:
                        found.add(key)
            elif isinstance(node, ast.Call) and (node.args or node.keywords):
                for parameter, argument in _handed(node, scopes, scope):
                    if makes_iterator(argument, scopes, scope, cache):
                        found.add(parameter)
    return frozenset(found)


def _unpacked(target: ast.expr, call: ast.Call, scopes: Scopes, scope: Scope, cache: ScopeCache) -> Iterator[str]:
    """``optimizer, params = build(model)``: the names of what a function of the project may return an iterator for."""
    if not isinstance(target, (ast.Tuple, ast.List)):
        return
    wanted = {i: key for i, e in enumerate(target.elts) if (key := spelled(e)) and PARAMETER_WORDS & set(words(key))}
    function = _called(call.func, scopes, scope, cache, anywhere=True) if wanted else None
    if function is None:
        return
    home = cache.of(function.path)
    for node in own_nodes(function.node.body):
        if not isinstance(node, ast.Return) or not isinstance(node.value, ast.Tuple):
            continue
        for index, element in enumerate(node.value.elts):
            binding = function.scope.lookup(element.id) if isinstance(element, ast.Name) else None
            bound = binding.values if index in wanted and binding is not None else ()
            if any(makes_iterator(v, home, function.scope, cache, 2) for v in bound):
                yield wanted[index]


def _handed(call: ast.Call, scopes: Scopes, scope: Scope) -> Iterator[tuple[str, ast.expr]]:
    """The parameters of a function of this file with the calls that are handed over as their values."""
    if not any(isinstance(a, ast.Call) for a in (*call.args, *(k.value for k in call.keywords))):
        return
    binding = scope.lookup(call.func.id) if isinstance(call.func, ast.Name) else None
    if binding is not None and binding.functions and not binding.values and not binding.opaque:
        function = binding.functions[-1]
        positional = zip(function.parameters, call.args, strict=False)
        yield from ((p, a) for p, a in positional if isinstance(a, ast.Call))
        yield from ((k.arg, k.value) for k in call.keywords if k.arg and isinstance(k.value, ast.Call))


def binds_iterator(scope: Scope, scopes: Scopes, cache: ScopeCache) -> bool:
    """Whether a function binds a name to an iterator of parameters."""
    return any(
        isinstance(node, (ast.Assign, ast.AnnAssign))
        and node.value is not None
        and makes_iterator(node.value, scopes, scope, cache)
        for node in own_nodes(scope.node.body)
    )


def makes_iterator(value: ast.expr, scopes: Scopes, scope: Scope, cache: ScopeCache, depth: int = 0) -> bool:
    """Whether an expression gives an iterator over parameters that can be run through once."""
    if isinstance(value, ast.IfExp) and depth < 3:
        branches = (value.body, value.orelse)
        return any(makes_iterator(branch, scopes, scope, cache, depth + 1) for branch in branches)
    if isinstance(value, ast.Call) and depth < 3:
        function = _called(value.func, scopes, scope, cache)
        if function is not None:
            home = cache.of(function.path)
            returned = [
                n.value for n in own_nodes(function.node.body) if isinstance(n, ast.Return) and n.value is not None
            ]
            lazy = bool(returned) and all(makes_iterator(v, home, function.scope, cache, depth + 1) for v in returned)
            return lazy or _yields_parameters(function.node)
    if not _of_parameters(value):
        return False
    if isinstance(value, ast.GeneratorExp):
        return True
    if not isinstance(value, ast.Call):
        return False
    if isinstance(value.func, ast.Attribute) and value.func.attr in _LISTING:
        return not value.args and not _own_listing(value.func, scopes, scope)
    if isinstance(value.func, ast.Name):
        binding = scope.lookup(value.func.id)
        if binding is None and value.func.id in _LAZY_BUILTINS:
            return True
    name = scopes.dotted(value.func, scope) or ""
    return name.startswith("itertools.") and name.rsplit(".", 1)[-1] in _LAZY_TOOLS


def lists_parameters(value: ast.expr) -> bool:
    """Whether an expression gives a list of parameters, which can be run through again."""
    if isinstance(value, ast.Call):
        eager = isinstance(value.func, ast.Name) and value.func.id in {"list", "tuple", "sorted"}
        return eager and _of_parameters(value)
    return isinstance(value, ast.ListComp) and _of_parameters(value)


def _called(func: ast.expr, scopes: Scopes, scope: Scope, cache: ScopeCache, anywhere: bool = False) -> Function | None:
    """The plain function of the project that a call runs. ``anywhere``: whatever an imported one is called."""
    if isinstance(func, ast.Name):
        binding = scope.lookup(func.id)
        if binding is not None and binding.functions and not binding.values and not binding.opaque:
            return binding.functions[-1]
    name = scopes.dotted(func, scope)
    if name is None or name.split(".")[0] in STANDARD or not (anywhere or "param" in name.lower()):
        return None
    found = cache.imported(name, scopes.path)
    return found if isinstance(found, Function) else None


def _yields_parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function is a generator that walks the parameters of something."""
    inside = list(own_nodes(node.body))
    return any(isinstance(n, (ast.Yield, ast.YieldFrom)) for n in inside) and any(map(_lists, inside))


def _lists(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr in _LISTING


def _own_listing(func: ast.Attribute, scopes: Scopes, scope: Scope) -> bool:
    """Whether ``x.parameters()`` may be a method of the project's own, which may return a list."""
    named = [f for f in scopes.functions if f.node.name == func.attr and f.owner is not None]
    if named:
        return True
    return isinstance(func.value, ast.Call) and isinstance(func.value.func, ast.Name) and func.value.func.id == "super"


def _of_parameters(value: ast.expr) -> bool:
    for node in ast.walk(value):
        if isinstance(node, ast.Attribute) and node.attr in _LISTING:
            return True
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and PARAMETER_WORDS & set(words(node.id)):
            return True
    return False


def consumes(call: ast.Call, name: str | None) -> bool:
    """Whether a call runs through the iterators among its arguments (optimizers and clips apart)."""
    if isinstance(call.func, ast.Name) and name is None:
        return call.func.id in _EAGER
    if name == "deepspeed.initialize":
        return True
    return name is not None and name.rsplit(".", 1)[-1] in _EAGER_TORCH and name.startswith("torch.")


def loops_over(node: ast.AST) -> Iterator[ast.expr]:
    """What the comprehensions of an expression run over, where they are run through at once.

    A generator expression counts as such only as the sole argument of a call that runs through it.
    """
    for inner in ast.walk(node):
        if isinstance(inner, (ast.ListComp, ast.SetComp, ast.DictComp)):
            yield from (_source(g.iter) for g in inner.generators)
        elif isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name) and inner.func.id in _EAGER:
            for argument in inner.args:
                if isinstance(argument, ast.GeneratorExp):
                    yield from (_source(g.iter) for g in argument.generators)


def _source(expr: ast.expr) -> ast.expr:
    """What ``enumerate(params)`` runs over."""
    while isinstance(expr, ast.Call) and isinstance(expr.func, ast.Name) and expr.func.id in {"enumerate", "tqdm"}:
        if not expr.args:
            break
        expr = expr.args[0]
    return expr


def loop_source(node: ast.For | ast.AsyncFor) -> list[ast.expr]:
    """The iterators that a ``for`` runs through: ``for a, b in zip(p, q)`` gives both."""
    expr = _source(node.iter)
    if isinstance(expr, ast.Call) and isinstance(expr.func, ast.Name) and expr.func.id in {"zip", "filter", "map"}:
        return [_source(argument) for argument in expr.args]
    return [expr]
