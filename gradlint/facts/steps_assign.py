"""What assignments and handed-over arguments do: objects made anew, gradients written, iterators used up."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

from gradlint.facts.steps_calls import event_of
from gradlint.facts.steps_context import Context
from gradlint.facts.steps_events import Event
from gradlint.facts.steps_iterators import consumes, lists_parameters, makes_iterator
from gradlint.facts.steps_objects import roots
from gradlint.facts.steps_scopes import Function, own_nodes, pairs, spelled
from gradlint.facts.steps_words import OPTIMIZER_CLASSES, OPTIMIZERS, TORCH_CLIPS, callee, words


def assigned_events(
    node: ast.Assign | ast.AnnAssign, target: ast.expr, value: ast.expr, frame: Context
) -> Iterator[Event]:
    """The events of ``target = value``, tuples taken apart."""
    if isinstance(target, (ast.Tuple, ast.List)) and isinstance(value, ast.Call) and frame.unit.iterators:
        for index, element in enumerate(target.elts):
            if _tracked(element, frame):
                key = frame.key(element) or ""
                yield event_of("iterator", node, frame, "", key, written=_returned(index))
    for one, given in pairs(target, value):
        if isinstance(one, ast.Attribute) and one.attr == "grad":
            yield _gradient(node, one, given, frame)
            continue
        yield from _scaled(node, one, given, frame)
        yield from _made(node, one, given, frame)
        yield from _iterator(node, one, given, frame)


def _gradient(node: ast.Assign | ast.AnnAssign, target: ast.Attribute, value: ast.expr, frame: Context) -> Event:
    owner = frame.key(target.value) or ""
    if isinstance(value, ast.Constant) and value.value is None:
        return event_of("zero_grad", node, frame, "grad = None", owner)
    return event_of("unknown", node, frame, "grad =", owner, doubt="strong")


def _scaled(node: ast.stmt, target: ast.expr, value: ast.expr, frame: Context) -> Iterator[Event]:
    """``loss = scaler.scale(loss)``."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "scale":
        key, owner = frame.key(target), frame.key(value.func.value)
        if key and owner and value.args and frame.unit.objects.is_scaler(owner):
            yield event_of("scale", node, frame, "scale", key, scaler=owner)


def _made(node: ast.stmt, target: ast.expr, value: ast.expr, frame: Context) -> Iterator[Event]:
    """A model or an optimizer from a constructor that is not given the old one."""
    if not isinstance(value, ast.Call):
        return
    key = frame.key(target)
    objects = frame.unit.objects
    if not key or not (objects.is_optimizer(key) or objects.is_model(key)):
        return
    if not _builds(value):
        return
    if not any(frame.key(n) == key for n in ast.walk(value) if isinstance(n, (ast.Name, ast.Attribute))):
        listed = _given_parameters(value) if objects.is_optimizer(key) else None
        found = roots(listed, frame.key, frame.scope, objects) if listed is not None else frozenset()
        yield event_of("make", node, frame, "make", key, roots=found)


def _given_parameters(call: ast.Call) -> ast.expr | None:
    """What an optimizer's constructor is given."""
    if callee(call) not in OPTIMIZER_CLASSES:
        return None
    return call.args[0] if call.args else next((k.value for k in call.keywords if k.arg == "params"), None)


def _builds(call: ast.Call) -> bool:
    """Whether a call may make a new object: a constructor, a builder, a copy."""
    while isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Call):
        call = call.func.value  # `Net().to(device)`
    name = callee(call)
    return name[:1].isupper() or bool(_BUILDERS & set(words(name)))


_BUILDERS = frozenset({"build", "create", "make", "get", "init", "load", "copy", "deepcopy", "clone", "new", "setup"})


def _iterator(node: ast.stmt, target: ast.expr, value: ast.expr, frame: Context) -> Iterator[Event]:
    written = spelled(target)
    if written is None or written not in frame.unit.iterators:
        return
    key = frame.key(target) or written
    if makes_iterator(value, frame.unit.scopes, frame.scope, frame.unit.cache):
        found = roots(value, frame.key, frame.scope, frame.unit.objects)
        where = frame.unit.lines.location(value)
        yield event_of("iterator", node, frame, written, key, roots=found or frozenset({key}), value=where)
    else:
        listed = frame.unit.lines.location(value) if lists_parameters(value) else None
        yield event_of("iterator", node, frame, written, key, value=listed)


def iterator_arguments(
    call: ast.Call, function: Function, frame: Context, inner: Context, bound: bool = False
) -> Iterator[Event]:
    """Parameters of a helper that this call gives an iterator: ``fit(net, net.parameters())``.

    ``bound``: it is a method of an object, which is its first parameter.
    """
    keywords = [(k.arg, k.value) for k in call.keywords if k.arg]
    parameters = function.parameters[1:] if bound else function.parameters
    for parameter, argument in (*zip(parameters, call.args, strict=False), *keywords):
        if parameter not in inner.unit.iterators or not isinstance(argument, ast.Call):
            continue
        if makes_iterator(argument, frame.unit.scopes, frame.scope, frame.unit.cache):
            key = inner.key(ast.Name(parameter, ast.Load())) or parameter
            found = roots(argument, frame.key, frame.scope, frame.unit.objects)
            where = frame.unit.lines.location(argument)
            yield event_of("iterator", argument, frame, parameter, key, roots=found or frozenset({key}), value=where)


def handed_over(call: ast.Call, frame: Context, name: str | None = None) -> Iterator[Event]:
    """Iterators among the arguments of a call: used up by one that is known to, else out of sight."""
    if not frame.watched:
        return
    optimizer = _makes_optimizer(call, name)
    clips = callee(call, name) in TORCH_CLIPS
    nested = optimizer or consumes(call, name)
    for argument in (*call.args, *(k.value for k in call.keywords)):
        inner = argument.value if isinstance(argument, ast.Starred) else argument
        if _tracked(inner, frame):
            if nested or clips or isinstance(argument, ast.Starred):
                yield _consumed(inner, call, frame, callee(call, name), optimizer)
            elif not _harmless(call):
                yield event_of("iterator", call, frame, "", frame.key(inner) or "")
        elif optimizer:
            for node in ast.walk(inner):
                if isinstance(node, (ast.Name, ast.Attribute)) and _tracked(node, frame):
                    yield _consumed(node, call, frame, callee(call, name), optimizer)


def consumed(sources: Iterable[ast.expr], node: ast.AST, frame: Context, name: str) -> Iterator[Event]:
    """The iterators that a loop or a comprehension runs through."""
    if not frame.watched:
        return
    for source in sources:
        if _tracked(source, frame):
            yield _consumed(source, source, frame, name, False)


def _returned(index: int) -> str:
    """What a value goes by on its way from a ``return`` with several values to the names of the caller."""
    return f"return {index}"


def given_away(node: ast.AST, frame: Context) -> Iterator[Event]:
    """Iterators that are stored elsewhere, returned or wrapped: what happens to them then is out of sight.

    Of several values that are returned each goes on under the name that the caller gives it.
    """
    if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
        for index, element in enumerate(node.value.elts):
            if _tracked(element, frame):
                yield event_of("iterator", node, frame, "", _returned(index), written=frame.key(element) or "")
        return
    if isinstance(node, (ast.Assign, ast.AnnAssign, ast.Return)) and node.value is not None:
        value = node.value
        if isinstance(value, ast.Call):
            return
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(target, ast.Name) and frame.names.get(target.id) == frame.key(value):
            return  # another name for it
        for inner in own_nodes([ast.Expr(value)]):
            if isinstance(inner, (ast.Name, ast.Attribute)) and _tracked(inner, frame):
                yield event_of("iterator", node, frame, "", frame.key(inner) or "")


_MEASURES = frozenset(
    {"norm", "abs", "isnan", "isinf", "isfinite", "any", "all", "is_sparse", "shape", "numel", "dtype"}
)
"""What is asked of a gradient that is only looked at."""


def reads_gradients(node: ast.AST) -> bool:
    """Whether a statement uses the values of gradients: ``total.add_(p.grad)``, ``[p.grad.clone() for p in ps]``."""
    if not isinstance(node, ast.stmt) or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return False
    if not any(isinstance(n, ast.Attribute) and n.attr == "grad" for n in ast.walk(node)):
        return False
    asked: set[int] = set()
    found = False
    for inner in own_nodes([node]):
        if isinstance(inner, ast.Attribute) and inner.attr in _MEASURES:
            asked.update(id(n) for n in ast.walk(inner.value))
        elif isinstance(inner, ast.Call) and callee(inner) in _MEASURES | {"vector_norm", "len", "print"}:
            asked.update(id(n) for argument in inner.args for n in ast.walk(argument))
        elif isinstance(inner, ast.Compare):
            asked.update(id(n) for n in ast.walk(inner))
        if isinstance(inner, ast.Attribute) and inner.attr == "grad" and isinstance(inner.ctx, ast.Load):
            found = found or id(inner) not in asked
    return found


def _tracked(expr: ast.expr, frame: Context) -> bool:
    if not isinstance(expr, (ast.Name, ast.Attribute)):
        return False
    if (spelled(expr) or "") in frame.unit.iterators:
        return True
    key = frame.key(expr)
    handed = isinstance(expr, ast.Name) and frame.names.get(expr.id) in frame.iterators
    return handed or (key is not None and key in frame.unit.iterators)


def _consumed(expr: ast.expr, node: ast.expr, frame: Context, name: str, raises: bool) -> Event:
    return event_of("consume", node, frame, name, frame.key(expr) or "", raises=raises)


def _makes_optimizer(call: ast.Call, name: str | None) -> bool:
    last = callee(call, name)
    if last[:1].isupper():
        return True  # whatever is built from parameters keeps them
    return (name or "").startswith("torch.optim.") or last in OPTIMIZER_CLASSES or bool(OPTIMIZERS & set(words(last)))


def _harmless(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id in {"print", "id", "type", "isinstance", "repr"}
