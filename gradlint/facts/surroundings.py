"""What the file around a model says of it: which optimizer trains it, what initialises it from outside."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from gradlint.facts.models import ModelFacts
from gradlint.facts.torch_ops import ADAM_FAMILY, SGD_FAMILY
from gradlint.facts.vanishing import Optimizer

_INITIALISING_WORDS = ("init", "weights", "pretrain", "checkpoint", "xavier", "kaiming", "orthogonal")
_LOADING_METHODS = frozenset({"load_state_dict", "load_weights", "load_pretrained", "from_pretrained", "load_from"})


@dataclass
class Surroundings:
    """One file's statements about objects it makes, keyed by the name of the class or function that makes them."""

    optimizers: dict[str, set[Optimizer]] = field(default_factory=dict)
    families: set[Optimizer] = field(default_factory=set)
    initialised: set[str] = field(default_factory=set)
    derivatives_taken: bool = False


def read_surroundings(tree: ast.Module) -> Surroundings:
    """One walk over the file; variables are followed by name within a function or the module."""
    found = Surroundings()
    for scope in _scopes(tree):
        _read_scope(scope, found)
    return found


def placed(models: Sequence[ModelFacts], around: Surroundings) -> tuple[ModelFacts, ...]:
    """The models with what the file says of them."""
    out = []
    for model in models:
        maker = model.qualname
        families = around.optimizers.get(maker) or around.families
        optimizer: Optimizer = next(iter(families)) if len(families) == 1 else "none"
        out.append(
            replace(
                model,
                optimizer=optimizer,
                initialised_elsewhere=maker in around.initialised,
                derivatives_taken=around.derivatives_taken,
            )
        )
    return tuple(out)


def _scopes(tree: ast.Module) -> Iterator[list[ast.AST]]:
    """The nodes of the module's own statements, then those of each class and each top-level function."""
    own: list[ast.AST] = []
    for stmt in tree.body:
        if isinstance(stmt, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield list(_in_order(stmt))
        else:
            own.extend(_in_order(stmt))
    yield own


def _in_order(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _in_order(child)


def _read_scope(nodes: Sequence[ast.AST], found: Surroundings) -> None:
    makers: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            name = _dotted(node.targets[0])
            maker = name if _is_sequential(node.value) else _maker(node.value, makers)
            if name and maker:
                makers[name] = maker
        if isinstance(node, ast.Call):
            _read_call(node, makers, found, conditional=False)
    _read_loads(nodes, makers, found)


def _read_call(node: ast.Call, makers: dict[str, str], found: Surroundings, conditional: bool) -> None:
    short = _short(node.func)
    family = _family(short)
    if family is not None and (node.args or node.keywords):
        found.families.add(family)
        for model in _models_in([*node.args, *(k.value for k in node.keywords)]):
            if model in makers:
                found.optimizers.setdefault(makers[model], set()).add(family)
    if short == "grad" or any(k.arg == "create_graph" for k in node.keywords):
        found.derivatives_taken = True
    owner = _dotted(node.func.value) if isinstance(node.func, ast.Attribute) else None
    if short == "apply" and owner in makers:
        found.initialised.add(makers[owner])
    if any(word in short.lower() for word in _INITIALISING_WORDS) and not short[:1].isupper():
        for arg in node.args:
            for part in ast.walk(arg):
                name = _dotted(part)
                if name in makers:
                    found.initialised.add(makers[name])


def _read_loads(nodes: Sequence[ast.AST], makers: dict[str, str], found: Surroundings) -> None:
    """Weights loaded unconditionally, before anything in the scope is trained."""
    conditional = {id(n) for node in nodes if isinstance(node, (ast.If, ast.IfExp, ast.Try)) for n in ast.walk(node)}
    trained = False
    for node in nodes:
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr == "backward":
            trained = True
        owner = _dotted(node.func.value)
        if node.func.attr in _LOADING_METHODS and owner in makers and not trained and id(node) not in conditional:
            found.initialised.add(makers[owner])


def _maker(value: ast.expr, makers: dict[str, str]) -> str | None:
    """``Net(...)``, ``Net(...).to(device)``, ``nn.DataParallel(net)``, another name of the same object."""
    while isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr in _FLUENT:
        value = value.func.value
    name = _dotted(value)
    if name is not None:
        return makers.get(name)
    if isinstance(value, ast.Call):
        if isinstance(value.func, ast.Name):
            if value.func.id in ("DataParallel", "DistributedDataParallel", "DDP") and value.args:
                return makers.get(_dotted(value.args[0]) or "")
            return value.func.id
        if _short(value.func) in ("DataParallel", "DistributedDataParallel", "compile") and value.args:
            return makers.get(_dotted(value.args[0]) or "")
        if isinstance(value.func, ast.Attribute) and value.func.attr[:1].isupper():
            return value.func.attr
    return None


_FLUENT = frozenset({"to", "cuda", "cpu", "float", "double", "half", "train", "eval"})


def _is_sequential(value: ast.expr) -> bool:
    while isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr in _FLUENT:
        value = value.func.value
    return isinstance(value, ast.Call) and _short(value.func) == "Sequential"


def _models_in(args: Sequence[ast.expr]) -> Iterator[str]:
    """Names whose ``parameters()`` are taken."""
    for arg in args:
        for part in ast.walk(arg):
            if (
                isinstance(part, ast.Call)
                and isinstance(part.func, ast.Attribute)
                and part.func.attr in ("parameters", "named_parameters")
            ):
                name = _dotted(part.func.value)
                if name:
                    yield name


def _family(short: str) -> Optimizer | None:
    if short in SGD_FAMILY:
        return "sgd"
    return "adam" if short in ADAM_FAMILY else None


def _short(func: ast.expr) -> str:
    return func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""


def _dotted(node: ast.AST) -> str | None:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return ".".join([node.id, *reversed(parts)])
