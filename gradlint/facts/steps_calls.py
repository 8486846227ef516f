"""Single calls that become training events, and those that may be one."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator, Sequence

from gradlint.facts.steps_context import Context
from gradlint.facts.steps_events import Event, Kind
from gradlint.facts.steps_objects import Objects, roots
from gradlint.facts.steps_scopes import own_nodes, spelled
from gradlint.facts.steps_words import (
    BOOKKEEPING,
    BUILTINS,
    COMPUTING,
    GRADIENTS,
    HARMLESS,
    HOOK_WORDS,
    METHOD_CLIPS,
    OF_ANYTHING,
    OF_WEIGHTS,
    OTHER_STEPS,
    PASSIVE,
    PASSIVE_OWNERS,
    PREPARES,
    REDUCES,
    SCHEDULERS,
    STANDARD,
    STRONG,
    TORCH_CLIPS,
    TRAINING_OWNERS,
    WATCHERS,
    WRAPPERS,
    WRITES,
    callee,
    last_name,
    words,
)
from gradlint.rule import Location

SHORT = 40
"""Characters of a callee that a message can take."""
LOGGING_LIMIT = 1e6
"""A literal clip limit from here on never acts: it is there to measure the norm."""


def event_of(
    kind: Kind,
    node: ast.expr | ast.stmt,
    frame: Context,
    name: str = "",
    object: str = "",
    **details: object,
) -> Event:
    written = name or (_written(node) if isinstance(node, ast.Call) else "")
    location: Location = frame.unit.lines.location(node)
    return Event(kind, written, location, frame.unit.path, object, frames=frame.frames, **details)  # type: ignore[arg-type]


def _written(call: ast.Call) -> str:
    """What is called, as written if that is short: ``scaler.scale(loss).backward``."""
    text = spelled(call.func) or ast.unparse(call.func)
    return text if len(text) <= SHORT else callee(call)


def backward_event(call: ast.Call, frame: Context) -> Event:
    """Any form of backward; the loss is the receiver, or the argument where the receiver is a wrapper."""
    receiver = call.func.value if isinstance(call.func, ast.Attribute) else None
    loss = call.args[0] if call.args else receiver
    if receiver is not None and isinstance(receiver, ast.Call):
        loss = receiver
    scaler = _scaled_by(receiver, frame)
    if isinstance(loss, ast.Call) and scaler and loss.args:
        loss = loss.args[0]
    owner = set(words(last_name((frame.key(receiver) or "") if receiver is not None else "")))
    return event_of(
        "backward",
        call,
        frame,
        object=(frame.key(loss) or "") if loss else "",
        scaler=scaler,
        wrapper=bool(owner & WRAPPERS) or (bool(call.args) and receiver is not None and loss is not receiver),
    )


def _scaled_by(expr: ast.expr | None, frame: Context) -> str:
    """The scaler of ``scaler.scale(loss)``, written in place or in every assignment of the name."""
    if isinstance(expr, ast.Name):
        binding = frame.scope.lookup(expr.id)
        if binding is None or binding.opaque:
            return ""
        found = {_scaled_by(value, frame) if isinstance(value, ast.Call) else "" for value in binding.values}
        return found.pop() if len(found) == 1 else ""
    if isinstance(expr, ast.Call) and isinstance(expr.func, ast.Attribute) and expr.func.attr == "scale":
        owner = frame.key(expr.func.value) or ""
        return "" if frame.unit.objects.is_off(owner) else owner
    return ""


def clip_event(call: ast.Call, frame: Context, name: str | None, last: str) -> Event | None:
    """A gradient clip: torch's own, a method of a wrapper, or (in doubt) a helper with a clip's name and arguments."""
    method = isinstance(call.func, ast.Attribute) and name is None
    objects, first = frame.unit.objects, call.args[0] if call.args else None
    certain = last in (METHOD_CLIPS if method else TORCH_CLIPS)
    if not certain and "clip" in words(last) and _made_to_clip(call.func, frame):
        certain, method = True, False
    listed = next((k.value for k in call.keywords if k.arg in {"parameters", "params"}), first)
    found = roots(listed, frame.key, frame.scope, objects) if listed is not None else frozenset()
    if not certain:
        named = "clip" in words(last) and not last[:1].isupper()
        doubtful = named and listed is not None and _takes_parameters(listed, objects, frame)
        return event_of("clip", call, frame, roots=found, doubt="strong") if doubtful else None
    of_model = False
    if method and isinstance(call.func, ast.Attribute):
        owner = frame.key(call.func.value) or ""
        of_model = objects.is_model(owner) and not (first is not None and _takes_parameters(first, objects, frame))
        if of_model:
            found = frozenset({owner})
        elif objects.is_optimizer(owner):
            found = frozenset({f"optimizer:{owner}"})
    given = frame.key(listed) if listed is not None else None
    if given and objects.is_optimizer(given):
        found = frozenset({f"optimizer:{given}"})
    limit = _limit(call, 0 if of_model else 1)
    return event_of(
        "clip",
        call,
        frame,
        object=next((r.partition(":")[2] for r in found if r.startswith("optimizer:")), ""),
        roots=found,
        limit=ast.unparse(limit) if limit is not None else "",
        by_value="value" in words(last),
        logging=limit is not None and _is_infinite(limit, frame),
        own_scale=limit is not None and _takes_the_scale(limit, frame),
        wrapper=method and not of_model,
    )


def _made_to_clip(func: ast.expr, frame: Context) -> bool:
    """Whether what is called was made by a function of the file that hands out PyTorch's own clip:
    ``self.clip_fn = build_clipper(cfg)``, which returns ``partial(clip_grad_norm_, max_norm=...)``."""
    made = frame.unit.objects.made_by.get(frame.key(func) or "", frozenset())
    makers = [f for f in frame.unit.scopes.functions if f.qualname in made]
    return bool(makers) and all(
        any((getattr(n, "attr", None) or getattr(n, "id", None)) in TORCH_CLIPS for n in ast.walk(f.node))
        for f in makers
    )


def _takes_the_scale(limit: ast.expr, frame: Context) -> bool:
    """Whether a limit is multiplied by the scale of a scaler, here or where its name is bound."""
    binding = frame.scope.lookup(limit.id) if isinstance(limit, ast.Name) else None
    bound = binding.values if binding is not None else []
    return any("scale" in words(ast.unparse(value)) for value in (limit, *bound))


def _limit(call: ast.Call, position: int) -> ast.expr | None:
    for keyword in call.keywords:
        if keyword.arg in {"max_norm", "clip_value", "clip_val", "gradient_clip_val", "max_grad_norm", "value"}:
            return keyword.value
    return call.args[position] if len(call.args) > position else None


def _is_infinite(expr: ast.expr, frame: Context, depth: int = 0) -> bool:
    if isinstance(expr, ast.Constant):
        return isinstance(expr.value, (int, float)) and expr.value >= LOGGING_LIMIT
    if isinstance(expr, ast.Call) and isinstance(expr.func, ast.Name) and expr.func.id == "float" and expr.args:
        text = expr.args[0]
        return isinstance(text, ast.Constant) and str(text.value).lower() in {"inf", "infinity", "+inf"}
    if isinstance(expr, ast.Attribute):
        return expr.attr in {"inf", "Inf", "infty"}
    if isinstance(expr, ast.Name) and depth < 3:
        if (frame.unit.scopes.dotted(expr, frame.scope) or "").endswith(".inf"):
            return True
        binding = frame.scope.lookup(expr.id)
        if binding and len(binding.values) == 1 and not binding.opaque:
            return _is_infinite(binding.values[0], frame, depth + 1)
    return False


def _takes_parameters(expr: ast.expr, objects: Objects, frame: Context) -> bool:
    if any(isinstance(n, ast.Attribute) and n.attr in {"parameters", "param_groups"} for n in ast.walk(expr)):
        return True
    key = frame.key(expr)
    return key is not None and (
        objects.is_model(key) or objects.is_optimizer(key) or bool({"params", "parameters"} & set(words(key)))
    )


def is_grad(expr: ast.Attribute) -> bool:
    return expr.attr == "grad" or (
        expr.attr == "data" and isinstance(expr.value, ast.Attribute) and expr.value.attr == "grad"
    )


def is_module_call(call: ast.Call, frame: Context) -> bool:
    """``model(x)``, ``self.net(x)``, ``self(x)`` inside a module."""
    key = spelled(call.func)
    if key is None or key[:1].isupper():
        return False
    if key in frame.selves:
        return True
    said = words(last_name(key))
    return key in frame.unit.objects.models or (
        frame.unit.objects.is_model(key) and not set(said) & STRONG and said[:1] not in _DOING
    )


_DOING = (["run"], ["do"], ["process"], ["handle"], ["perform"])
"""What a method that is no module begins with: ``self.run_generator(...)``."""


def loops_by_hand(node: ast.For | ast.AsyncFor, frame: Context) -> Iterator[tuple[Event, list[ast.stmt]]]:
    """What a loop over parameters does to their gradients: ``p.grad = None`` clears on every path, whatever the ``if``
    inside; ``p.grad.data.clamp_(-1, 1)`` is a clip by value, written by hand.

    Gives the first event of each kind, on the line of the loop, with the statements inside that it speaks for.
    """
    found: set[str] = set()
    for inner in _own_part(node):
        kind = "zero_grad" if _clears_by_hand(inner) else "clip" if _clamps_by_hand(inner) else ""
        if not kind or kind in found:
            continue
        found.add(kind)
        reached = roots(node.iter, frame.key, frame.scope, frame.unit.objects)
        if kind == "zero_grad":
            where = frame.unit.lines.location(inner)  # type: ignore[arg-type]
            event = event_of("zero_grad", node, frame, "grad = None", roots=reached, value=where)
        else:
            limit = _upper(inner)
            text = ast.unparse(limit) if limit is not None else ""
            owner = next((r.partition(":")[2] for r in reached if r.startswith("optimizer:")), "")
            event = event_of("clip", node, frame, "clamp_", owner, roots=reached, limit=text, by_value=True)
        head = frame.unit.lines.location(node.iter)
        at = dataclasses.replace(event.location, end_line=head.end_line, end_column=head.end_column)
        yield dataclasses.replace(event, location=at), _statement_of(inner, node)


def _clamps_by_hand(node: ast.AST) -> bool:
    """``p.grad.data.clamp_(-1, 1)``."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr != "clamp_":
        return False
    return isinstance(node.func.value, ast.Attribute) and is_grad(node.func.value)


def _upper(clamp: ast.AST) -> ast.expr | None:
    """The upper limit of a clamp."""
    if not isinstance(clamp, ast.Call):
        return None
    return next((k.value for k in clamp.keywords if k.arg == "max"), clamp.args[1] if clamp.args[1:] else None)


def _own_part(loop: ast.For | ast.AsyncFor) -> Iterator[ast.AST]:
    """The nodes of a loop that are in no loop inside of it; one that does nothing but loop further is one with it."""
    if len(loop.body) == 1 and isinstance(loop.body[0], (ast.For, ast.AsyncFor)):
        yield from _own_part(loop.body[0])
        return
    inner = {
        id(n)
        for nested in own_nodes(loop.body)
        if isinstance(nested, (ast.For, ast.AsyncFor, ast.While))
        for n in ast.walk(nested)
    }
    yield from (n for n in own_nodes(loop.body) if id(n) not in inner)


def _statement_of(inner: ast.AST, loop: ast.For | ast.AsyncFor) -> list[ast.stmt]:
    """The innermost statement of a loop's body that holds a node, and the loops round it that do nothing else."""
    found: ast.stmt = loop.body[0]
    for one in own_nodes(loop.body):
        if isinstance(one, ast.stmt) and any(n is inner for n in ast.walk(one)):
            found = one
    nested: list[ast.stmt] = []
    body = loop.body
    while len(body) == 1 and isinstance(body[0], (ast.For, ast.AsyncFor)):
        nested.append(body[0])
        body = body[0].body
    return [*nested, found]


def _clears_by_hand(node: ast.AST) -> bool:
    """``p.grad = None``, ``p.grad.zero_()``."""
    if isinstance(node, ast.Assign):
        none = isinstance(node.value, ast.Constant) and node.value.value is None
        return none and any(isinstance(t, ast.Attribute) and t.attr == "grad" for t in node.targets)
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr != "zero_":
        return False
    return isinstance(node.func.value, ast.Attribute) and is_grad(node.func.value)


def doubtful_event(call: ast.Call, frame: Context, name: str | None, last: str) -> Iterator[Event]:
    """An unreadable call: nothing, or an unknown that may touch gradients."""
    if name is not None and name.split(".")[0] in STANDARD:
        return
    if last.startswith("__") or (isinstance(call.func, ast.Name) and name is None and _is_plain(last, frame)):
        return
    objects = frame.unit.objects
    known = set(words(last))
    key = spelled(call.func) or ""
    if any(name.startswith("torch.nn.") for name in objects.made_by.get(key, ())):
        yield event_of("forward", call, frame, object=key)
        return
    keys = [frame.key(argument) for argument in (*call.args, *(k.value for k in call.keywords))]
    given = any(key and (objects.is_optimizer(key) or objects.is_scaler(key)) for key in keys)
    if last in HARMLESS or last[:1].isupper() or (known & REDUCES and known & GRADIENTS):
        if last[:1].isupper() and given:
            yield event_of("unknown", call, frame, doubt="clearing")  # `with GradientGuard(optimizer):`
        return
    if known & PASSIVE and "update" in known:
        return
    scaler = any(key and objects.is_scaler(key) for key in keys) and bool(known & PREPARES)
    if objects.is_scaler(spelled(call.func) or "") or scaler or (given and not known & BOOKKEEPING):
        yield event_of("unknown", call, frame, doubt="strong")
        return
    if _may_clear(call, known, keys, frame):
        yield event_of("unknown", call, frame, doubt="clearing")
    if known & GRADIENTS and known & WRITES and "requires" not in known:
        yield event_of("unknown", call, frame, doubt="strong")  # `net.set_gradients(...)`
        return
    if given or (known & (BOOKKEEPING | COMPUTING) and not known & {"backward", "backprop"}):
        if known & COMPUTING and (isinstance(call.func, ast.Name) or _on_self(call.func, frame)):
            yield event_of("compute", call, frame)
        return
    if isinstance(call.func, ast.Attribute) and not _on_self(call.func, frame):
        doubt = _doubt_of_method(call.func, known, frame)
    elif last == "train" and all(isinstance(argument, ast.Constant) for argument in call.args):
        doubt = ""
    else:
        doubt = "strong" if known & STRONG else "weak"
    if doubt:
        mild = (known & STRONG) <= OF_ANYTHING
        touched = any(key and (objects.is_model(key) or "loss" in words(last_name(key))) for key in keys)
        yield event_of("unknown", call, frame, doubt=doubt, given=touched, mild=mild)
    elif any(key and objects.is_model(key) for key in keys):
        yield event_of("unknown", call, frame, doubt="used")


def _may_clear(call: ast.Call, known: set[str], keys: Sequence[str | None], frame: Context) -> bool:
    """Whether a call that cannot be read may be what clears the gradients: an event of a trainer's callbacks, or a
    preparation that is given the model or the optimizer or belongs to it."""
    objects = frame.unit.objects
    func = call.func
    owner = (frame.key(func.value) or "") if isinstance(func, ast.Attribute) else ""
    named = set(words(last_name(owner)))
    if named & (OTHER_STEPS | SCHEDULERS | WATCHERS) or known & (WATCHERS | SCHEDULERS):
        return False
    trains = any(key and (objects.is_optimizer(key) or objects.is_model(key) or key in frame.selves) for key in keys)
    trains = trains or bool(owner and (objects.is_optimizer(owner) or objects.is_model(owner)))
    if known & PREPARES and not known & {"mode", "train", "eval", "requires", "weights", "hidden", "state"}:
        return trains or _on_self(func, frame)
    return bool(known & HOOK_WORDS) and (isinstance(func, ast.Attribute) or trains)


def _doubt_of_method(func: ast.Attribute, known: set[str], frame: Context) -> str:
    """The doubt about a method of another object: ``meter.update`` is harmless, ``agent.update`` is not."""
    owner = frame.key(func.value) or ""
    named = set(words(last_name(owner)))
    trains = bool(TRAINING_OWNERS & named) and not named & PASSIVE_OWNERS
    if (func.attr == "train" and (frame.unit.objects.is_model(owner) or not trains)) or "logger" in named:
        return ""
    touching = known & STRONG - ({"clip"} if known & OF_WEIGHTS else set())
    return "strong" if touching and (trains or not touching <= OF_ANYTHING) else ""


def _is_plain(name: str, frame: Context) -> bool:
    """Builtins and constructors."""
    binding = frame.scope.lookup(name)
    if binding is None:
        return name in BUILTINS or name[:1].isupper()
    return bool(binding.classes) or (name[:1].isupper() and not name.isupper())


def _on_self(func: ast.expr, frame: Context) -> bool:
    if not isinstance(func, ast.Attribute):
        return False
    value = func.value
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "super":
        return True
    return isinstance(value, ast.Name) and value.id in frame.selves
