"""Which name is a model, which an optimizer, which a gradient scaler: read from how the text uses it.

A name or attribute path (``model``, ``self.netG``, ``nets[]``) gets a role from the methods called on it. Roles
travel along ``self.model = model`` and along arguments of calls between functions of the slice.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from typing import Any, Dict, FrozenSet, Iterable, List, Optional, Set, Tuple, Union

from ghost import words
from step_nodes import dotted
from step_text import nodes_of

MODEL = "model"
OPTIMIZER = "optimizer"
SCALER = "scaler"
ACCELERATOR = "accelerator"
FABRIC = "fabric"
MANY = "many "
"""Prefix of the role of a collection: ``many optimizer``."""

OPTIMIZER_NAME = re.compile(r"opt(im|imi[sz]ers?|s|$|_|\[|[A-Z])|solver|^sgd$|^adamw?$|optim", re.IGNORECASE)
_NOT_OPTIMIZER = re.compile(
    r"sched|^lr|_lr|ema|env|metric|prof|pbar|bar$|progress|engine|timer|meter|writer|warm|anneal|accelerator|^self$",
    re.IGNORECASE,
)
_MODEL_NAME = re.compile(r"model|net(work)?$|^net|encoder|decoder|generator|discriminator|critic|actor", re.IGNORECASE)
_COPY = re.compile(r"copy|clone|target|ema|averag|teacher|old|ref|frozen|collect|eval|best|swa", re.IGNORECASE)
_PLAIN = re.compile(
    r"(^|[._])(loss|losses|epoch|step|batch|data|args?|cfg|config|state|split|device|lr|name|path|params?|x|y)$"
)
"""Names of plain values, whatever they are handed to."""
_SURE_MODEL_NAME = re.compile(r"^(model|net|network)$")
_FRAMEWORKS = (
    (ACCELERATOR, "backward prepare accumulate clip_grad_norm_ clip_grad_value_ unwrap_model gather no_sync"),
    (FABRIC, "backward setup clip_gradients setup_module setup_optimizers no_backward_sync setup_dataloaders"),
)
"""Objects of frameworks: what their name ends with, and methods that show it."""
_STEPS_OTHERWISE = frozenset({"first_step", "second_step", "step_and_update_lr", "clip_master_grads"})
_PARAMETER_METHODS = frozenset({"parameters", "named_parameters", "modules", "named_modules", "children"})
_AFFINITY_WORDS = re.compile(
    r"optimi[sz]ers?|optims?|opts?|solver|loss(es)?|backward|models?|network|nets?|self|module|the|[^a-zA-Z0-9]",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class OptimizerCall:
    """A constructor of an optimizer as the text has it."""

    target: str
    name: str
    keywords: Tuple[Tuple[str, Any], ...]
    models: Tuple[str, ...]


@dataclass
class Roles:
    """Paths with a role, and what the text says about how they hang together."""

    by_path: Dict[str, str] = field(default_factory=dict)
    children: Dict[str, List[str]] = field(default_factory=dict)
    """Submodules whose parameters are taken apart: ``model`` -> [``encoder``, ``head``]."""
    optimizers: List[OptimizerCall] = field(default_factory=list)
    aliases: Dict[str, str] = field(default_factory=dict)
    """Models that are another one in a wrapper: ``self.learn_model = wrap(self.model)``."""
    called: FrozenSet[str] = frozenset()
    """Paths that are called."""
    late: FrozenSet[str] = frozenset()
    """Paths that begin as None, and are given an object later on."""
    comes_prepared: bool = False
    """Whether an accelerator comes from outside, with what it prepared."""

    def of(self, path: str) -> Optional[str]:
        """The role of a path; an item of which nothing is known is like the others (``nets[]``)."""
        return self.by_path.get(path) or self.by_path.get(re.sub(r"\[[^\]]*\]", "[]", path))


@dataclass
class _Use:
    methods: Set[str] = field(default_factory=set)
    called: int = 0
    scales_loss: bool = False
    holds_optimizer: bool = False
    groups: bool = False


def infer(trees: Iterable[ast.Module]) -> Roles:
    """Roles for all paths in ``trees``."""
    trees = list(trees)
    uses: Dict[str, _Use] = {}
    for tree in trees:
        _collect(tree, uses)
    _mark_scaler_arguments(trees, uses)
    roles = Roles(called=frozenset(path for path, use in uses.items() if use.called))
    for path, use in uses.items():
        role = _role(path, use)
        if role is not None:
            roles.by_path[path] = role
    _more_models(roles.by_path, uses)
    if OPTIMIZER not in roles.by_path.values():
        for path, use in uses.items():
            if "step" in use.methods and not _NOT_OPTIMIZER.search(path) and path not in roles.by_path:
                roles.by_path[path] = OPTIMIZER
    classes = {p for p, use in uses.items() if use.called and not use.methods}
    _travel(trees, roles.by_path, classes)
    _fold_children(roles)
    for tree in trees:
        roles.optimizers.extend(_optimizer_calls(tree))
        roles.aliases.update(_aliases(tree, roles.by_path))
    roles.late = frozenset(_late(trees))
    prepares = any("prepare" in use.methods or "prepare_optimizer" in use.methods for use in uses.values())
    roles.comes_prepared = ACCELERATOR in roles.by_path.values() and not prepares
    return roles


def _late(trees: Iterable[ast.Module]) -> Set[str]:
    none: Set[str] = set()
    made: Set[str] = set()
    for tree in trees:
        for assign in nodes_of(tree).assigns:
            paths = {path for target in assign.targets for path in [dotted(target)] if path is not None}
            if isinstance(assign.value, ast.Constant) and assign.value.value is None:
                none |= paths
            elif isinstance(assign.value, ast.Call):
                made |= paths
    return {path for path in none & made if path.startswith("self.")}


def _more_models(by_path: Dict[str, str], uses: Dict[str, _Use]) -> None:
    """Models that are only called: ``model(x)``, or ``model`` above ``model.head.parameters()``."""
    anywhere = MODEL in by_path.values()
    for path in [p for p, role in by_path.items() if role == MODEL]:
        base = path.rpartition(".")[0]
        if base and base != "self" and base in uses and uses[base].called:
            by_path.setdefault(base, MODEL)
    for path, use in uses.items():
        name = _MODEL_NAME if not anywhere else _SURE_MODEL_NAME
        if use.called and name.search(path.rsplit(".", 1)[-1]):
            by_path.setdefault(path, MODEL)


def _collect(tree: ast.Module, uses: Dict[str, _Use]) -> None:
    nodes = nodes_of(tree)
    for attribute in nodes.attributes:
        if attribute.attr == "param_groups":
            path = dotted(attribute.value)
            if path is not None:
                uses.setdefault(path, _Use()).groups = True
    for node in nodes.calls:
        whole = dotted(node.func)
        if whole is not None:
            uses.setdefault(whole, _Use()).called += 1
        if isinstance(node.func, ast.Attribute):
            path = dotted(node.func.value)
            if path is not None:
                uses.setdefault(path, _Use()).methods.add(node.func.attr)
            inner = node.func.value
            if node.func.attr == "backward" and isinstance(inner, ast.Call):
                scaled = inner.func
                if isinstance(scaled, ast.Attribute) and scaled.attr == "scale":
                    holder = dotted(scaled.value)
                    if holder is not None:
                        uses.setdefault(holder, _Use()).scales_loss = True


def _mark_scaler_arguments(trees: Iterable[ast.Module], uses: Dict[str, _Use]) -> None:
    for tree in trees:
        for node in nodes_of(tree).calls:
            if not (isinstance(node.func, ast.Attribute) and node.args):
                continue
            holder, argument = dotted(node.func.value), dotted(node.args[0])
            if holder is None or argument is None or node.func.attr not in ("unscale_", "step"):
                continue
            if node.func.attr == "unscale_" or _is_scaler(holder, uses.get(holder, _Use())):
                uses.setdefault(argument, _Use()).holds_optimizer = True


def _is_scaler(path: str, use: _Use) -> bool:
    named = "scaler" in path.lower()
    return (
        use.scales_loss
        or "unscale_" in use.methods
        or (named and bool(use.methods & {"scale", "step", "update"}) and "parameters" not in use.methods)
    )


def _role(path: str, use: _Use) -> Optional[str]:
    last = path.rsplit(".", 1)[-1]
    for role, methods in _FRAMEWORKS:
        if last.lower().endswith(role) and use.methods & words(methods):
            return role
    if _is_scaler(path, use):
        return SCALER
    if use.holds_optimizer:
        return OPTIMIZER
    if use.methods & _STEPS_OTHERWISE:
        return OPTIMIZER
    steps, clears = "step" in use.methods, "zero_grad" in use.methods
    named = bool(OPTIMIZER_NAME.search(last))
    if _NOT_OPTIMIZER.search(last) and not (steps and clears):
        steps = named = False
    if last == "self" or path == "self":
        return None
    if (steps and (clears or named or use.groups)) or (named and (clears or use.groups)):
        return OPTIMIZER
    if use.methods & _PARAMETER_METHODS or (clears and not steps):
        return None if named else MODEL
    if use.methods & {"train", "eval"} and (use.called or _MODEL_NAME.search(last)):
        return MODEL
    return None


def _travel(trees: List[ast.Module], by_path: Dict[str, str], classes: Set[str]) -> None:
    """Carry roles along plain assignments, loops over collections and arguments of known functions.

    ``classes``: paths that are only called, so that an optimizer of that name is a class.
    """
    links: Set[Tuple[str, str]] = set()
    passed: Set[Tuple[str, str]] = set()
    functions = _functions(trees)
    for tree in trees:
        for assign in nodes_of(tree).assigns:
            right = dotted(assign.value)
            for target in assign.targets:
                left = dotted(target)
                if left and right:
                    links.add((left, right))
        for call in nodes_of(tree).calls:
            passed.update(_argument_links(call, functions))
        for loop in nodes_of(tree).iterations:
            _loop_role(loop, by_path)
    own = frozenset(by_path)
    for _ in range(4):
        for left, right in links:
            _carry(left, right, by_path, classes)
            _carry(right, left, by_path, classes)
        for parameter, argument in passed:
            _carry(argument, parameter, by_path, classes)
            if parameter in own:  # not from one call of ``exists(value)`` to the next
                _carry(parameter, argument, by_path, classes)


def _carry(source: str, target: str, by_path: Dict[str, str], classes: Set[str]) -> None:
    if source not in by_path or target in by_path or _NOT_OPTIMIZER.search(target) or _PLAIN.search(target):
        return
    if by_path[source] != OPTIMIZER or target not in classes:
        by_path[target] = by_path[source]


def _functions(trees: Iterable[ast.Module]) -> Dict[str, List[str]]:
    """Names of functions, methods and classes (for ``__init__``) with their parameters, ``self`` left out."""
    found: Dict[str, List[str]] = {}
    for tree in trees:
        for node in nodes_of(tree).classes:
            for item in node.body:
                if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                    found.setdefault(node.name, _parameters(item))
        for function in nodes_of(tree).functions:
            if function.name != "__init__":
                found.setdefault(function.name, _parameters(function))
    return found


def _parameters(node: Union[ast.FunctionDef, ast.AsyncFunctionDef]) -> List[str]:
    names = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def _argument_links(node: ast.Call, functions: Dict[str, List[str]]) -> Iterable[Tuple[str, str]]:
    name = (dotted(node.func) or "").rsplit(".", 1)[-1]
    if name not in functions:
        return
    parameters = functions[name]
    for number, argument in enumerate(node.args[: len(parameters)]):
        path = dotted(argument)
        if path:
            yield parameters[number], path
    for keyword in node.keywords:
        path = dotted(keyword.value)
        if keyword.arg and path and keyword.arg in functions[name]:
            yield keyword.arg, path


def _loop_role(node: Union[ast.For, ast.comprehension], by_path: Dict[str, str]) -> None:
    """A collection whose items have a role: ``for o in opts``, ``for m, o in zip(nets, opts)``, ``.values()``."""
    for target, source in _paired(node.target, node.iter):
        name, path = dotted(target), dotted(source)
        if name in by_path and path and path not in by_path and not by_path[name].startswith(MANY):
            by_path[path] = MANY + by_path[name]


def _paired(target: ast.expr, source: ast.expr) -> Iterable[Tuple[ast.expr, ast.expr]]:
    """Targets of a loop with the collections that their values come from."""
    parts = target.elts if isinstance(target, (ast.Tuple, ast.List)) else []
    if isinstance(source, ast.Call) and isinstance(source.func, ast.Attribute) and not source.args:
        if source.func.attr == "values":
            yield target, source.func.value
        elif source.func.attr == "items" and len(parts) == 2:
            yield parts[1], source.func.value
    elif isinstance(source, ast.Call) and isinstance(source.func, ast.Name):
        if source.func.id == "zip" and len(parts) == len(source.args):
            for part, argument in zip(parts, source.args):
                yield from _paired(part, argument)
        elif source.func.id == "enumerate" and len(parts) == 2 and source.args:
            yield from _paired(parts[1], source.args[0])
        elif source.func.id in ("list", "reversed", "tuple") and source.args:
            yield from _paired(target, source.args[0])
    else:
        yield target, source


def _fold_children(roles: Roles) -> None:
    """``model.encoder`` beside ``model``: a submodule of the stand-in, not a model of its own."""
    for path in sorted(roles.by_path, key=len):
        base, _, child = path.rpartition(".")
        if base and roles.by_path.get(base) == MODEL and roles.by_path[path] == MODEL and "[" not in child:
            roles.children.setdefault(base, []).append(child)


def _aliases(tree: ast.Module, by_path: Dict[str, str]) -> Iterable[Tuple[str, str]]:
    """``a = wrap(b)``, ``self.a = self.b.c``, where both are models, and ``a`` is not a copy by its name."""
    for node in nodes_of(tree).assigns:
        source, maker = dotted(node.value), ""
        if isinstance(node.value, ast.Call) and node.value.args:
            source, maker = dotted(node.value.args[0]), dotted(node.value.func) or ""
        elif source is None or not source.startswith("self.") or "[" in source:
            continue
        for target in node.targets:
            path = dotted(target)
            if not path or not source or path == source or _COPY.search(f"{path} {maker}"):
                continue
            if by_path.get(path) == MODEL and by_path.get(source) == MODEL and by_path.get(maker) != MODEL:
                yield path, source


def _optimizer_calls(tree: ast.Module) -> Iterable[OptimizerCall]:
    for node in nodes_of(tree).assigns:
        if not isinstance(node.value, ast.Call):
            continue
        name = (dotted(node.value.func) or "").rsplit(".", 1)[-1]
        if not re.fullmatch(r"SGD|Adam\w*|RMSprop|Adagrad|Adadelta|LBFGS|NAdam|RAdam|Rprop|ASGD|Adamax|Muon", name):
            continue
        keywords = tuple(
            (k.arg, _literal(k.value)) for k in node.value.keywords if k.arg and _literal(k.value) is not None
        )
        given = [*node.value.args[:1], *(k.value for k in node.value.keywords if k.arg == "params")]
        models = tuple(_models_in(given))
        for target in node.targets:
            path = dotted(target)
            if path:
                yield OptimizerCall(path, name, keywords, models)


def _models_in(arguments: List[ast.expr]) -> Iterable[str]:
    for argument in arguments:
        for node in ast.walk(argument):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                path = dotted(node.func.value)
                if path and node.func.attr in _PARAMETER_METHODS:
                    yield path


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def tag(path: str) -> str:
    """What tells one of several models or optimizers apart: ``optimizer_G`` -> ``g``, ``netD`` -> ``d``."""
    if path.endswith("]"):
        return _AFFINITY_WORDS.sub("", path).lower()
    for part in reversed(path.partition("(")[0].split(".")):
        mark = _AFFINITY_WORDS.sub("", part).lower()
        if mark:
            return mark  # ``actor.optimizer`` is the actor's
    return ""


def goes_with(optimizer: str, models: Iterable[str]) -> List[str]:
    """The models an optimizer belongs to by its name; all of them when the name does not say."""
    models = list(models)
    mark = tag(optimizer)
    if not mark:
        return models
    same = [m for m in models if tag(m) == mark]
    if same:
        return same
    close = [m for m in models if tag(m) and (tag(m).startswith(mark) or mark.startswith(tag(m)))]
    return close or models
