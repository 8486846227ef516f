"""Which objects of a file are optimizers, gradient scalers, models: by how they are made, used, and named."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from gradlint.facts.steps_project import ScopeCache
from gradlint.facts.steps_scopes import Class, Scope, Scopes, own_nodes, pairs, spelled
from gradlint.facts.steps_words import (
    MODEL_METHODS,
    MODELS,
    OPTIMIZER_CLASSES,
    OPTIMIZERS,
    OTHER_STEPS,
    PARAMETER_METHODS,
    PARAMETER_WORDS,
    SCHEDULERS,
    last_name,
    word_set,
    words,
)

Key = Callable[[ast.expr], str | None]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Objects:
    """What is known of the objects of one file, by their key: the name they are called by."""

    optimizers: Mapping[str, frozenset[str]]
    """Optimizers, with the roots of the parameters they were given (empty: not known)."""
    scalers: frozenset[str]
    models: frozenset[str]
    engines: frozenset[str]
    instances: Mapping[str, Class]
    """Objects made from a class of this file."""
    others: frozenset[str]
    """Objects made from a class that has a ``step`` and trains nothing: schedulers, meters, profilers."""
    scalers_off: frozenset[str] = frozenset()
    """Scalers that are made with a literal ``enabled=False``, and never otherwise."""
    built: Mapping[str, frozenset[str]] = dataclasses.field(default_factory=dict)
    """Objects that only constructors are assigned to, with the objects those are given: ``{"ddp": {"model"}}``."""
    made_by: Mapping[str, frozenset[str]] = dataclasses.field(default_factory=dict)
    """The dotted names of the constructors behind an object."""

    def of_torch(self, key: str) -> bool:
        """Whether an optimizer is made from a class of ``torch.optim``, or from one of that name."""
        names = self.made_by.get(self.own(key), frozenset())
        return bool(names) and all(map(_is_torch, names))

    def may_be_of_torch(self, key: str) -> bool:
        """Whether no other class than one of PyTorch is known to have made an optimizer: others may step without
        gradients."""
        names = self.made_by.get(self.own(key), frozenset())
        made = {n for n in names if re.fullmatch(r"[A-Z][A-Za-z0-9]*", n.rsplit(".", 1)[-1])}
        return all(_is_torch(name) for name in made)

    def distinct(self, one: str, other: str) -> bool:
        """Whether two modules are surely two: both are constructed here, and neither is given the other."""
        one, other = self.own(one), self.own(other)
        if one == other or one not in self.built or other not in self.built:
            return False
        if PARAMETER_WORDS & {*words(last_name(one)), *words(last_name(other))}:
            return False  # a list of parameters may hold those of any module
        return other not in self._given(one) and one not in self._given(other)

    def _given(self, key: str) -> set[str]:
        found: set[str] = set()
        work = [key]
        while work:
            for inner in self.built.get(work.pop(), ()):
                if inner not in found:
                    found.add(inner)
                    work.append(inner)
        return found

    def own(self, key: str) -> str:
        """The name by which an object's own class knows it: ``agent.actor`` is ``self.actor`` in ``Agent``."""
        prefix, _, rest = key.partition(".")
        return f"self.{rest}" if rest and (prefix in self.instances or prefix.endswith("()")) else key

    def is_scaler(self, key: str) -> bool:
        """Whether this is a gradient scaler (``torch.amp.GradScaler`` or its like)."""
        key = self.own(key)
        said = set(words(last_name(key)))
        return key in self.scalers or bool({"scaler", "scalers"} & said and not _OF_DATA & said)

    def is_off(self, key: str) -> bool:
        """Whether this is a scaler that is surely disabled."""
        return self.own(key) in self.scalers_off

    def is_model(self, key: str) -> bool:
        """Whether this is a module that is trained."""
        key = self.own(key)
        return key in self.models or bool(MODELS & set(words(last_name(key))))

    def is_optimizer(self, key: str) -> bool:
        """Whether ``key.step()`` updates parameters, as far as can be told."""
        key = self.own(key)
        if key in self.others:
            return False
        if key in self.optimizers or key in self.engines:
            return True
        said = words(last_name(key))
        kinds = [w for w in said if w in OPTIMIZERS | SCHEDULERS | OTHER_STEPS]
        # `opt_params` and `optimizer_grouped_parameters` are what an optimizer is given.
        return bool(kinds) and kinds[-1] in OPTIMIZERS and not PARAMETER_WORDS & set(said)

    def never_steps(self, key: str) -> bool:
        """Whether ``key.step()`` surely updates no parameters."""
        key = self.own(key)
        known = set(words(last_name(key)))
        return key in self.others or bool(known & (SCHEDULERS | OTHER_STEPS))


_OF_DATA = word_set("in out input output x y data standard std robust feature features target targets min max norm")
"""Beside ``scaler``: what standardizes data."""


def _is_torch(name: str) -> bool:
    return name.startswith("torch.optim.") or name.rsplit(".", 1)[-1] in OPTIMIZER_CLASSES


def merged(every: Sequence[Objects]) -> Objects:
    """The objects of several files as one: ``self.optimizer`` may be made in the file of a base class."""
    first, *others = every
    optimizers = {key: set(found) for key, found in first.optimizers.items()}
    built = dict(first.built)
    made_by = dict(first.made_by)
    instances = dict(first.instances)
    for one in others:
        for key, found in one.optimizers.items():
            if key.startswith("self."):  # a local name of a helper's file is another object here
                optimizers.setdefault(key, set()).update(found)
        built |= {key: given for key, given in one.built.items() if key.startswith("self.") and key not in built}
        made_by |= {key: names for key, names in one.made_by.items() if key.startswith("self.") and key not in made_by}
        instances |= {
            key: cls for key, cls in one.instances.items() if key.startswith("self.") and key not in instances
        }
    return Objects(
        {key: frozenset(found) for key, found in optimizers.items()},
        frozenset().union(*(o.scalers for o in every)),
        frozenset().union(*(o.models for o in every)),
        frozenset().union(*(o.engines for o in every)),
        instances,
        frozenset().union(*(o.others for o in every)) - frozenset(optimizers),
        frozenset().union(*(o.scalers_off for o in every)),
        built,
        made_by,
    )


def _attributes(of: Mapping[str, T]) -> dict[str, T]:
    return {key: value for key, value in of.items() if key.startswith("self.")}


def read_objects(scopes: Scopes, cache: ScopeCache) -> Objects:
    """Collect the evidence of one file in one walk."""
    reader = _Reader(scopes, cache)
    reader.walk(scopes.module)
    for cls in scopes.classes:
        reader.walk(cls.scope)
    for function in scopes.functions:
        reader.walk(function.scope)
    return reader.result()


def roots(expr: ast.expr, key: Key, scope: Scope, objects: Objects | None, depth: int = 0) -> frozenset[str]:
    """The objects whose parameters an expression lists: ``chain(a.parameters(), b.parameters())`` gives a and b.

    ``optimizer.param_groups`` and ``amp.master_params(optimizer)`` give ``optimizer:`` and the optimizer's key.
    """

    def inner(node: ast.expr) -> frozenset[str]:
        return roots(node, key, scope, objects, depth + 1)

    if depth > 12:
        return frozenset()
    if isinstance(expr, ast.Call):
        return _roots_of_call(expr, key, inner, objects)
    if isinstance(expr, ast.Subscript):
        return inner(expr.value)
    if isinstance(expr, ast.Starred):
        return inner(expr.value)
    if isinstance(expr, (ast.List, ast.Tuple, ast.Set)):
        return _union(inner(item) for item in expr.elts)
    if isinstance(expr, ast.Dict):
        return _union(
            inner(value)
            for name, value in zip(expr.keys, expr.values, strict=True)
            if not (isinstance(name, ast.Constant) and name.value != "params")
        )
    if isinstance(expr, (ast.ListComp, ast.GeneratorExp, ast.SetComp)):
        return _union(inner(generator.iter) for generator in expr.generators)
    if isinstance(expr, ast.BinOp):
        return inner(expr.left) | inner(expr.right)
    if isinstance(expr, ast.Attribute) and expr.attr == "param_groups":
        owner = key(expr.value)
        return frozenset({f"optimizer:{owner}"}) if owner else frozenset()
    if isinstance(expr, ast.Name):
        binding = scope.lookup(expr.id)
        if binding and len(binding.values) == 1 and not binding.opaque and _lists_parameters(binding.values[0]):
            return inner(binding.values[0])
    own = key(expr)
    return frozenset({own}) if own else frozenset()


def _roots_of_call(
    call: ast.Call, key: Key, inner: Callable[[ast.expr], frozenset[str]], objects: Objects | None
) -> frozenset[str]:
    function = call.func
    if isinstance(function, ast.Attribute) and function.attr in PARAMETER_METHODS:
        owner = key(function.value)
        return frozenset({owner}) if owner else frozenset()
    if isinstance(function, ast.Attribute) and not call.args and words(function.attr)[-1:] == ["parameters"]:
        part = key(function)  # `model.actor_parameters()`
        return frozenset({f"{part}()"}) if part else frozenset()
    found = set()
    for argument in call.args:
        if isinstance(argument, ast.Lambda):
            continue
        own = key(argument)
        if own and objects is not None and objects.is_optimizer(own):
            found.add(f"optimizer:{own}")
        else:
            found |= inner(argument)
    return frozenset(found)


def _lists_parameters(value: ast.expr) -> bool:
    return any(
        isinstance(node, ast.Attribute) and node.attr in {"parameters", "named_parameters", "param_groups"}
        for node in ast.walk(value)
    )


def _union(sets: Iterator[frozenset[str]]) -> frozenset[str]:
    found: frozenset[str] = frozenset()
    for part in sets:
        found |= part
    return found


_NEW_TENSORS = word_set(
    "randn rand zeros ones empty full tensor randn_like rand_like zeros_like ones_like empty_like full_like"
)


def written(expr: ast.expr) -> str | None:
    """A chain of names and items as written: ``self.opt``, ``nets['g']``."""
    if isinstance(expr, ast.Subscript):
        owner = written(expr.value)
        return f"{owner}[{ast.unparse(expr.slice)}]" if owner else None
    if isinstance(expr, ast.Attribute):
        owner = written(expr.value)
        return f"{owner}.{expr.attr}" if owner else None
    return expr.id if isinstance(expr, ast.Name) else None


def _here(key: str, scope: Scope) -> tuple[int, str]:
    """A local name belongs to its scope, an attribute to its object."""
    return (0 if key.startswith("self.") else id(scope)), key


def _moved(call: ast.Call) -> ast.Call:
    """``Net()`` of ``Net().to(device)``."""
    while isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Call) and call.func.attr in _MOVES:
        call = call.func.value
    return call


_MOVES = word_set("to cuda cpu half float double bfloat16 train")


def _is_off(call: ast.Call) -> bool:
    return any(
        k.arg == "enabled" and isinstance(k.value, ast.Constant) and k.value.value is False for k in call.keywords
    )


def _speaks_of_weights(expr: ast.expr) -> bool:
    """Whether an argument lists parameters, or is a model by its name."""
    named = set(words(last_name(spelled(expr) or "")))
    return _lists_parameters(expr) or bool(named & (MODELS | PARAMETER_WORDS))


def _is_named(key: str) -> bool:
    """Whether a name is that of an optimizer: apex's own runs backward too, and holds nothing back."""
    return bool(OPTIMIZERS & set(words(last_name(key))))


def _given_parameters(call: ast.Call) -> bool:
    """``table[args.optimizer](model.parameters(), lr=1e-3)``."""
    first = call.args[0] if call.args else None
    if not isinstance(first, ast.Call) or not isinstance(first.func, ast.Attribute):
        return False
    return first.func.attr in PARAMETER_METHODS


class _Reader:
    def __init__(self, scopes: Scopes, cache: ScopeCache) -> None:
        self.scopes = scopes
        self.cache = cache
        self.on: set[str] = set()
        self.off: set[str] = set()
        self.built: dict[tuple[int, str], set[str]] = {}
        self.unbuilt: set[tuple[int, str]] = set()
        self.made_by: dict[str, set[str]] = {}
        self.optimizers: dict[str, set[str]] = {}
        self.scalers: set[str] = set()
        self.models: set[str] = set()
        self.cleared: set[str] = set()
        self.backward: set[str] = set()
        self.stepped: set[str] = set()
        self.instances: dict[str, Class | None] = {}
        self.others: set[str] = set()

    def result(self) -> Objects:
        for key in self.cleared - self.models - self.others:
            if key in self.stepped:
                self.optimizers.setdefault(key, set())
        return Objects(
            {key: frozenset(found) for key, found in self.optimizers.items()},
            frozenset(self.scalers),
            frozenset(self.models),
            frozenset(
                key
                for key in (self.backward & self.stepped) - self.others
                if key not in self.cleared or not _is_named(key)
            ),
            {key: cls for key, cls in self.instances.items() if cls is not None},
            frozenset(self.others - set(self.optimizers)),
            frozenset(self.off - self.on),
            {key[1]: frozenset(given) for key, given in self.built.items() if key not in self.unbuilt},
            {key: frozenset(names) for key, names in self.made_by.items()},
        )

    def walk(self, scope: Scope) -> None:
        for node in own_nodes(scope.node.body):
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    for one, value in pairs(target, node.value):
                        if isinstance(value, ast.Dict):
                            self.made_items(one, value, scope)
                        elif isinstance(value, ast.Call):
                            self.made(one, value, scope)
                        elif isinstance(value, ast.IfExp):
                            for branch in (value.body, value.orelse):
                                if isinstance(branch, ast.Call):
                                    self.made(one, branch, scope)
                        else:
                            self.unbuilt.add(_here(spelled(one) or "", scope))
            elif isinstance(node, ast.withitem) and isinstance(node.context_expr, ast.Call) and node.optional_vars:
                self.made(node.optional_vars, node.context_expr, scope)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                self.used(node, node.func)

    def made(self, target: ast.expr, call: ast.Call, scope: Scope) -> None:
        """``target = Something(...)``."""
        if isinstance(target, ast.Tuple) and isinstance(call.func, ast.Attribute) and call.func.attr == "optimizers":
            for one in target.elts:
                self.made(one, call, scope)  # `opt_g, opt_d = self.optimizers()`
            return
        key = written(target)
        name = self.scopes.dotted(call.func, scope) or spelled(call.func) or ""
        last = name.rsplit(".", 1)[-1]
        if key is None:
            return
        self.constructed(key, call, scope)
        self.made_by.setdefault(key, set()).add(name)
        cls = self.scopes.class_of(_moved(call).func, scope)
        if cls is not None:
            same = key not in self.instances or self.instances[key] is cls
            self.instances[key] = cls if same else None
        named = set(words(last))
        optimizing = last in OPTIMIZER_CLASSES or bool(named & OPTIMIZERS and last[:1].isupper())
        if (
            "lr_scheduler" in name
            or (not optimizing and named & SCHEDULERS)
            or named & ({"scheduler", "lr"} | {"meter", "ema", "profile", "profiler"})
        ):
            self.others.add(key)
        elif last.endswith("GradScaler") or "scaler" in named:
            self.scalers.add(key)
            (self.off if _is_off(call) else self.on).add(key)
        elif (
            (name.startswith("torch.optim.") and "swa_utils" not in name)
            or last in OPTIMIZER_CLASSES
            or named & {"optim", "optimizer", "optimiser", "adam", "sgd"}
            or (OPTIMIZERS & set(words(last_name(key))) and _given_parameters(call))
        ):
            listed = call.args[0] if call.args else next((k.value for k in call.keywords if k.arg == "params"), None)
            found = self.optimizers.setdefault(key, set())
            if not last[:1].isupper() and not (listed is not None and _speaks_of_weights(listed)):
                # `build_optimizer(cfg, model)`: what it is given first need not be the parameters
                others = [*call.args, *(k.value for k in call.keywords)]
                listed = next((a for a in others if _speaks_of_weights(a)), listed if len(others) == 1 else None)
            if listed is not None:
                found |= roots(listed, written, scope, None)
        elif cls is not None and any(base.endswith("Module") for base in self.cache.base_names(cls)):
            self.models.add(key)

    def made_items(self, target: ast.expr, value: ast.Dict, scope: Scope) -> None:
        """``optim = {"G": Adam(...), "D": Adam(...)}``."""
        for name, item in zip(value.keys, value.values, strict=True):
            if isinstance(name, ast.Constant) and isinstance(item, ast.Call):
                where = ast.copy_location(ast.Subscript(target, name, ast.Load()), target)
                self.made(where, item, scope)

    def constructed(self, key: str, call: ast.Call, scope: Scope) -> None:
        """Note what a constructor is given; a method that returns an object built elsewhere makes no new one."""
        inner = call
        while isinstance(inner.func, ast.Attribute) and isinstance(inner.func.value, ast.Call):
            inner = inner.func.value  # `Net().to(device)`
        named = (spelled(inner.func) or "").rsplit(".", 1)[-1]
        if named in _MOVES and spelled(inner.func) == f"{key}.{named}":
            return  # `model = model.to(device)`
        if named in _NEW_TENSORS or named in {"deepcopy", "clone"}:
            self.built.setdefault(_here(key, scope), set())
            return
        function = scope.lookup(named) if isinstance(inner.func, ast.Name) else None
        owner = (spelled(inner.func) or "").rpartition(".")[0].rpartition(".")[2]
        loaded = named in {"from_pretrained", "load_from_checkpoint", "from_config"} and owner[:1].isupper()
        if not named[:1].isupper() and not loaded and not (function and function.functions and not function.opaque):
            self.unbuilt.add(_here(key, scope))
            return
        given = {
            chain
            for argument in (*inner.args, *(k.value for k in inner.keywords))
            for node in ast.walk(argument)
            if isinstance(node, (ast.Name, ast.Attribute)) and (chain := spelled(node))
        }
        self.built.setdefault(_here(key, scope), set()).update(given)

    def used(self, call: ast.Call, function: ast.Attribute) -> None:
        """``key.method(...)``."""
        key = spelled(function.value)
        if key is None:
            return
        moved = function.attr in {"cuda", "cpu"} or (function.attr == "train" and not call.args)
        mode = moved and bool(MODELS & set(words(last_name(key))))
        if function.attr in MODEL_METHODS or mode:
            self.models.add(key)
        elif function.attr == "zero_grad":
            self.cleared.add(key)
        elif function.attr == "step":
            self.stepped.add(key)
        elif function.attr == "backward" and call.args:
            self.backward.add(key)
        if function.attr in {"step", "unscale_"} and call.args and "scaler" in words(key):
            given = spelled(call.args[0])
            if given:
                self.optimizers.setdefault(given, set())
