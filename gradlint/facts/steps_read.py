"""Calls become training events: the reader behind the control-flow graph of a training step."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from gradlint.facts.cfg import Splice, Stop
from gradlint.facts.steps_events import Event, Frame, Kind, Lines
from gradlint.facts.steps_objects import Objects, last_name, read_objects, roots, words
from gradlint.facts.steps_scopes import (
    Class,
    Function,
    FunctionNode,
    Scope,
    Scopes,
    own_nodes,
    read_scopes,
    spelled,
)
from gradlint.rule import Location

Resolve = Callable[[str], "tuple[FunctionNode, str] | None"]
"""From the dotted name of an imported function to its definition and the path of its file."""

MAX_DEPTH = 4
"""Helpers inside helpers are read to this depth."""

LOGGING_LIMIT = 1e6
"""A literal clip limit from here on never acts: it is there to measure the norm."""

TORCH_CLIPS = frozenset({"clip_grad_norm_", "clip_grad_norm", "clip_grad_value_", "clip_grad_value"})
_METHOD_CLIPS = TORCH_CLIPS | {"clip_gradients", "clip_grads", "clip_master_grads"}
_CLEARS = frozenset({"zero_grad", "reset_grad", "zero_grads", "reset_grads", "clear_grad", "clear_gradients"})
_FUNCTION_CLEARS = _CLEARS | {"zero_gradients", "clear_grads"}
_EVENTS = _CLEARS | _METHOD_CLIPS | {"backward", "manual_backward", "step", "unscale_"}
_STOPS = frozenset({"sys.exit", "os._exit", "exit", "quit"})

_STRONG = frozenset(
    "backward backwards backprop backpropagate train training trainer learn optimize optimise optimization step steps "
    "update updates fit accumulate apply hook hooks callback callbacks closure grad grads gradient gradients reinforce "
    "finetune pretrain iteration iterate clip event trigger dispatch".split()
)
_HARMLESS = frozenset(
    "loss losses criterion forward prepare set get log logger print save load checkpoint eval evaluate validate valid "
    "validation test device preprocess compute sample augment mixup collate encode decode predict metric metrics "
    "accuracy adjust lr rate schedule scheduler warmup decay init initialize build create make is has check to cuda "
    "move format write plot show dump read fetch next state restore resume count size len mask pad embed tokenize "
    "transform normalize denormalize reset freeze unfreeze toggle requires summary summarize display visualize report "
    "optimizers schedulers broadcast reduce gather barrier synchronize wait seed time timer tic toc start stop mean sum stack cat".split()
)
_TRAINING_OWNERS = frozenset(
    "agent policy trainer learner algo algorithm solver model engine runner ppo sac dqn ddpg td3 optim optimizer opt".split()
)
_STANDARD = frozenset(sys.stdlib_module_names) | frozenset(
    "torch numpy np tqdm wandb einops scipy pandas matplotlib sklearn cv2 PIL tensorboardX torchvision torchaudio yaml "
    "omegaconf hydra rich loguru absl cupy".split()
)
_BUILTINS = frozenset(dir(builtins))


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


@dataclasses.dataclass(frozen=True)
class Context:
    """One activation of a function: its scope, what its parameters stand for, and how it was reached."""

    unit: Unit
    scope: Scope
    names: Mapping[str, str]
    """Local names that stand for objects of the caller: ``opt`` for ``self.optimizer``."""
    selves: Mapping[str, Class]
    """The names of ``self``, here and in enclosing methods, with the class of the object."""
    owner: Class | None
    """The class the running method was defined in, for ``super()``."""
    frames: tuple[Frame, ...]
    active: tuple[FunctionNode, ...]

    def key(self, expr: ast.expr) -> str | None:
        """A stable name for the object an expression means, in the terms of the region's own scope."""
        if isinstance(expr, ast.Name):
            return self.names.get(expr.id, expr.id)
        if isinstance(expr, ast.Attribute):
            owner = self.key(expr.value)
            return f"{owner}.{expr.attr}" if owner else None
        if isinstance(expr, ast.Subscript):
            owner = self.key(expr.value)
            return f"{owner}[{ast.unparse(expr.slice)}]" if owner else None
        if isinstance(expr, ast.Call) and not expr.args and not expr.keywords:
            owner = self.key(expr.func)
            return f"{owner}()" if owner else None
        return None


class StepReader:
    """Reads the calls of one file (and of the helpers a ``resolve`` callback finds) into events and splices."""

    def __init__(self, unit: Unit, resolve: Resolve | None) -> None:
        self.unit = unit
        self.resolve = resolve
        self.entered: set[FunctionNode] = set()
        """The functions that were spliced into some graph."""
        self._imported: dict[str, Function | None] = {}

    def context_of(self, function: Function | None, cls: Class | None = None) -> Context:
        """The context of a region: a function run from outside, or the module's statements."""
        scopes = self.unit.scopes
        if function is None:
            frame = Frame("", self.unit.path, 1, None)
            return Context(self.unit, scopes.module, _aliases(scopes.module, {}), {}, None, (frame,), ())
        selves: dict[str, Class] = {}
        owner = function.owner
        enclosing: Scope | None = function.scope
        while enclosing is not None:
            outer = next((f for f in scopes.functions if f.scope is enclosing), None)
            if outer is not None and outer.receiver and outer.owner:
                selves.setdefault(outer.receiver, cls if cls and outer is function else outer.owner)
                owner = owner or outer.owner
            enclosing = enclosing.parent
        frame = Frame(function.qualname, self.unit.path, function.node.lineno, None)
        names = _aliases(function.scope, {})
        return Context(self.unit, function.scope, names, selves, owner, (frame,), (function.node,))

    def read(
        self, node: ast.expr | ast.stmt, frame: Context, room: bool
    ) -> Sequence[Event | Splice[Context] | Stop]:
        """The items of one expression or statement header, in the order they run."""
        items: list[Event | Splice[Context] | Stop] = []
        if isinstance(node, (ast.For, ast.AsyncFor)):
            items.extend(self._expression(node.iter, frame, room))
            items.extend(_clearing_loop(node, frame))
            return items
        for item in self._expression(node, frame, room):
            if isinstance(item, Event) and item.doubt == "weak" and not isinstance(node, ast.Expr):
                continue  # a call whose result is used computes something: its name is its only suspicion
            items.append(item)
        if isinstance(node, ast.Assign):
            cleared = isinstance(node.value, ast.Constant) and node.value.value is None
            for target in node.targets:
                if isinstance(target, ast.Attribute) and target.attr == "grad":
                    owner = frame.key(target.value) or ""
                    if cleared:
                        items.append(_event("zero_grad", node, frame, "grad = None", owner))
                    else:
                        items.append(_event("unknown", node, frame, "grad =", owner, doubt="strong"))
        return items

    def _expression(
        self, node: ast.AST, frame: Context, room: bool
    ) -> Iterator[Event | Splice[Context] | Stop]:
        """Calls in the order they finish: receiver and arguments first."""
        if isinstance(node, (ast.Lambda, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            return
        for child in ast.iter_child_nodes(node):
            yield from self._expression(child, frame, room)
        if isinstance(node, ast.Call):
            yield from self._call(node, frame, room)

    def _call(self, call: ast.Call, frame: Context, room: bool) -> Iterator[Event | Splice[Context] | Stop]:
        name = frame.unit.scopes.dotted(call.func, frame.scope)
        if (name or spelled(call.func)) in _STOPS:
            yield Stop.STOP
            return
        target = self.target(call, frame, name)
        if target is not None:
            function, cls, receiver = target
            if function.path == frame.unit.path and function.node not in frame.unit.touching:
                if _is_module_call(call, frame):
                    yield _event("forward", call, frame, object=frame.key(call.func) or "")
                return
            if room and len(frame.frames) <= MAX_DEPTH and function.node not in frame.active:
                self.entered.add(function.node)
                yield Splice(function.node.body, self._enter(call, frame, function, cls, receiver))
            elif function.path != frame.unit.path or function.node in frame.unit.training:
                yield _event("unknown", call, frame, doubt="strong")
            return
        yield from self._direct(call, frame, name, room)

    def _direct(
        self, call: ast.Call, frame: Context, name: str | None, room: bool
    ) -> Iterator[Event | Splice[Context] | Stop]:
        """A call whose body cannot be read."""
        last = _last(call, name)
        clip = _clip(call, frame, name, last)
        if clip is not None:
            yield clip
        elif isinstance(call.func, ast.Attribute):
            yield from self._method(call, call.func, frame, name, room)
        elif name in {"torch.autograd.backward", "torch.distributed.autograd.backward"}:
            yield _backward(call, frame)
        elif last in _FUNCTION_CLEARS and call.args:
            found = roots(call.args[0], frame.key, frame.scope, frame.unit.objects)
            yield _event("zero_grad", call, frame, object=frame.key(call.args[0]) or "", roots=found)
        elif _is_module_call(call, frame):
            yield _event("forward", call, frame, object=frame.key(call.func) or "")
        else:
            yield from _doubtful(call, frame, name, last)

    def _method(
        self, call: ast.Call, function: ast.Attribute, frame: Context, name: str | None, room: bool
    ) -> Iterator[Event | Splice[Context] | Stop]:
        objects = frame.unit.objects
        owner = frame.key(function.value) or ""
        attr = function.attr
        if attr in {"backward", "manual_backward"}:
            yield _backward(call, frame)
        elif attr in _CLEARS:
            cleared = frozenset({owner}) if owner and objects.is_model(owner) else frozenset()
            yield _event("zero_grad", call, frame, object=owner, roots=cleared)
        elif attr == "zero_" and isinstance(function.value, ast.Attribute) and _is_grad(function.value):
            yield _event("zero_grad", call, frame, object=owner.split(".grad")[0])
        elif attr == "unscale_" or (attr == "unscale" and objects.is_scaler(owner)):
            given = (frame.key(call.args[0]) or "") if call.args else ""
            yield _event("unscale", call, frame, object=given, scaler=owner)
        elif attr == "update" and objects.is_scaler(owner):
            yield _event("scaler_update", call, frame, object=owner)
        elif attr in {"step", "first_step", "second_step"}:
            yield from self._step(call, owner, attr, frame, room)
        elif _is_module_call(call, frame):
            yield _event("forward", call, frame, object=frame.key(function) or "")
        else:
            yield from _doubtful(call, frame, name, attr)

    def _step(
        self, call: ast.Call, owner: str, attr: str, frame: Context, room: bool
    ) -> Iterator[Event | Splice[Context] | Stop]:
        objects = frame.unit.objects
        first = call.args[0] if call.args else None
        given = frame.key(first) if first is not None else None
        closure: ast.expr | None
        if objects.is_scaler(owner):
            closure = call.args[1] if len(call.args) > 1 else None
            step = _event("step", call, frame, object=given or "", scaler=owner)
        elif objects.is_optimizer(owner):
            closure = first
            step = _event("step", call, frame, object=owner)
        elif given and first is not None and objects.is_optimizer(given) and not objects.never_steps(owner):
            closure = None
            step = _event("step", call, frame, object=given, scaler=owner)
        else:
            if not objects.never_steps(owner):
                yield _event("unknown", call, frame, doubt="strong")
            return
        closure = closure or next((k.value for k in call.keywords if k.arg == "closure"), None)
        if closure is not None and not (isinstance(closure, ast.Constant) and closure.value is None):
            yield from self._closure(closure, call, frame, room)
        yield step
        if any(k.arg == "zero_grad" and isinstance(k.value, ast.Constant) and k.value.value for k in call.keywords):
            yield _event("zero_grad", call, frame, object=owner)

    def _closure(
        self, closure: ast.expr, call: ast.Call, frame: Context, room: bool
    ) -> Iterator[Event | Splice[Context] | Stop]:
        if isinstance(closure, ast.Lambda):
            yield from self._expression(closure.body, frame, room)
            return
        target = self.target(ast.copy_location(ast.Call(closure, [], []), call), frame, None)
        if target is not None and room and len(frame.frames) <= MAX_DEPTH and target[0].node not in frame.active:
            self.entered.add(target[0].node)
            bare = ast.copy_location(ast.Call(closure, [], []), call)
            yield Splice(target[0].node.body, self._enter(bare, frame, *target))
        elif not isinstance(closure, ast.Constant):
            yield _event("unknown", call, frame, doubt="strong")

    def target(
        self, call: ast.Call, frame: Context, name: str | None
    ) -> tuple[Function, Class | None, str | None] | None:
        """The function a call runs, the class and the key of its ``self``; None if it cannot be read."""
        func, scopes = call.func, frame.unit.scopes
        if isinstance(func, ast.Name):
            binding = frame.scope.lookup(func.id)
            if binding and binding.functions and not binding.opaque:
                return _concrete(binding.functions[-1], None, None)
            if func.id in frame.unit.objects.instances and not frame.unit.objects.is_model(func.id):
                cls = frame.unit.objects.instances[func.id]
                return _concrete(scopes.method(cls, "__call__"), cls, func.id)
        elif isinstance(func, ast.Attribute):
            found = self._method_target(func, frame)
            if found is not None:
                return found
        if name and self.resolve is not None and name.split(".")[0] not in _STANDARD:
            return _concrete(self._import(name), None, None)
        return None

    def _method_target(
        self, func: ast.Attribute, frame: Context
    ) -> tuple[Function, Class | None, str | None] | None:
        scopes, value = frame.unit.scopes, func.value
        if isinstance(value, ast.Name) and value.id in frame.selves:
            cls = frame.selves[value.id]
            found = _concrete(scopes.method(cls, func.attr), cls, frame.key(value))
            if found is None:
                own = f"{value.id}.{func.attr}"
                made = frame.unit.objects.instances.get(own)
                if made is not None and not frame.unit.objects.is_model(own):
                    return _concrete(scopes.method(made, "__call__"), made, own)
            return found
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "super":
            if frame.owner is None or not frame.selves:
                return None
            name = next(iter(frame.selves))
            return _concrete(scopes.method(frame.owner, func.attr, skip_own=True), frame.selves[name], name)
        written = spelled(value)
        made = frame.unit.objects.instances.get(written) if written else None
        if made is not None:
            return _concrete(scopes.method(made, func.attr), made, frame.key(value))
        static = scopes.class_of(value, frame.scope)
        if static is not None:
            return _concrete(scopes.method(static, func.attr), static, None)
        return None

    def _import(self, name: str) -> Function | None:
        if name not in self._imported:
            found = self.resolve(name) if self.resolve else None
            self._imported[name] = _foreign(*found) if found else None
        return self._imported[name]

    def _enter(
        self, call: ast.Call, frame: Context, function: Function, cls: Class | None, receiver: str | None
    ) -> Context:
        """The context of a called helper: parameters stand for the caller's objects."""
        unit = frame.unit
        if function.path != unit.path:
            unit = _foreign_unit(function)
        names = dict(frame.names) if _encloses(function.scope, frame.scope) else {}
        parameters = list(function.parameters)
        selves = dict(frame.selves) if _encloses(function.scope, frame.scope) else {}
        if function.receiver and cls is not None:
            selves[function.receiver] = cls
            if receiver is not None:
                names[function.receiver] = receiver
                parameters = parameters[1:]
        for parameter in function.parameters:
            if parameter != function.receiver:
                names.pop(parameter, None)
        given = [*zip(parameters, call.args, strict=False), *((k.arg, k.value) for k in call.keywords if k.arg)]
        for parameter, argument in given:
            key = frame.key(argument)
            if key is not None and not isinstance(argument, ast.Starred):
                names[parameter] = key
        entry = Frame(function.qualname, function.path, function.node.lineno, frame.unit.lines.location(call))
        return Context(
            unit,
            function.scope,
            _aliases(function.scope, names),
            selves,
            function.owner or frame.owner,
            (*frame.frames, entry),
            (*frame.active, function.node),
        )


def _encloses(inner: Scope, outer: Scope) -> bool:
    """Whether ``inner`` is a nested function that sees the names of ``outer``."""
    scope = inner.parent
    while scope is not None:
        if scope is outer and scope.parent is not None:
            return True
        scope = scope.parent
    return False


def _foreign(node: FunctionNode, path: str) -> Function | None:
    scopes = read_scopes(ast.Module([node], []), path)
    return scopes.functions[0] if scopes.functions else None


def _foreign_unit(function: Function) -> Unit:
    return read_unit(read_scopes(ast.Module([function.node], []), function.path), Lines(""))


def _aliases(scope: Scope, names: Mapping[str, str]) -> dict[str, str]:
    """``opt = self.optimizer``: the local name stands for the object, if it is bound once."""
    found = dict(names)
    for name, binding in scope.names.items():
        if len(binding.values) != 1 or binding.opaque or name in found:
            continue
        chain = spelled(binding.values[0])
        if chain and chain != name and chain not in _BUILTINS:
            root, _, rest = chain.partition(".")
            root = found.get(root, root)
            found[name] = f"{root}.{rest}" if rest else root
    return found


def _concrete(
    function: Function | None, cls: Class | None, receiver: str | None
) -> tuple[Function, Class | None, str | None] | None:
    """A function with a body worth reading; an abstract one is as good as unknown."""
    if function is None:
        return None
    body = [s for s in function.node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    if not body or all(isinstance(s, (ast.Pass, ast.Raise)) for s in body):
        return None
    return function, cls, receiver


def read_unit(scopes: Scopes, lines: Lines) -> Unit:
    """The reader's view of one file."""
    return Unit(
        scopes, read_objects(scopes), lines, scopes.path, _reaching(scopes, _suggests), _reaching(scopes, _trains)
    )


def _reaching(scopes: Scopes, found_in: Callable[[ast.AST], bool]) -> frozenset[FunctionNode]:
    """The functions with such a node inside, or inside what they call, going by names."""
    calls: dict[Function, set[str]] = {}
    found: set[Function] = set()
    for function in scopes.functions:
        inner = [n for n in ast.walk(function.node) if isinstance(n, (ast.Call, ast.Attribute))]
        calls[function] = {_last(n, None) for n in inner if isinstance(n, ast.Call)}
        if any(found_in(n) for n in inner):
            found.add(function)
    while True:
        names = {function.node.name for function in found}
        new = {function for function in scopes.functions if function not in found and calls[function] & names}
        if not new:
            return frozenset(function.node for function in found)
        found |= new


def _suggests(node: ast.AST) -> bool:
    """Whether a call might touch gradients, going by its name."""
    return _trains(node) or (isinstance(node, ast.Call) and bool(_STRONG & set(words(_last(node, None)))))


def _trains(node: ast.AST) -> bool:
    """Whether a call is named like a training event."""
    if isinstance(node, ast.Attribute):
        return node.attr == "grad" and isinstance(node.ctx, ast.Store)
    return isinstance(node, ast.Call) and _last(node, None) in _EVENTS


def _last(call: ast.Call, name: str | None) -> str:
    if name:
        return name.rsplit(".", 1)[-1]
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _event(
    kind: Kind,
    node: ast.expr | ast.stmt,
    frame: Context,
    name: str = "",
    object: str = "",
    **details: object,
) -> Event:
    written = name or (spelled(node.func) or _last(node, None) if isinstance(node, ast.Call) else "")
    location: Location = frame.unit.lines.location(node)
    return Event(kind, written, location, frame.unit.path, object, frames=frame.frames, **details)  # type: ignore[arg-type]


def _backward(call: ast.Call, frame: Context) -> Event:
    """Any form of backward; the loss is the receiver, or the argument where the receiver is a wrapper."""
    receiver = call.func.value if isinstance(call.func, ast.Attribute) else None
    loss = call.args[0] if call.args else receiver
    if receiver is not None and isinstance(receiver, ast.Call):
        loss = receiver
    scaler = _scaled_by(receiver, frame)
    if isinstance(loss, ast.Call) and scaler and loss.args:
        loss = loss.args[0]
    return _event("backward", call, frame, object=(frame.key(loss) or "") if loss else "", scaler=scaler)


def _scaled_by(expr: ast.expr | None, frame: Context) -> str:
    """The scaler of ``scaler.scale(loss)``, written in place or one assignment earlier."""
    if isinstance(expr, ast.Name):
        binding = frame.scope.lookup(expr.id)
        found = {_scaled_by(v, frame) for v in binding.values if isinstance(v, ast.Call)} - {""} if binding else set()
        return found.pop() if len(found) == 1 else ""
    if isinstance(expr, ast.Call) and isinstance(expr.func, ast.Attribute) and expr.func.attr == "scale":
        return frame.key(expr.func.value) or ""
    return ""


def _clip(call: ast.Call, frame: Context, name: str | None, last: str) -> Event | None:
    """A gradient clip: torch's own, a method of a wrapper, or (in doubt) a helper with the name and arguments of one."""
    method = isinstance(call.func, ast.Attribute) and name is None
    objects, first = frame.unit.objects, call.args[0] if call.args else None
    certain = last in (_METHOD_CLIPS if method else TORCH_CLIPS)
    listed = next((k.value for k in call.keywords if k.arg in {"parameters", "params"}), first)
    found = roots(listed, frame.key, frame.scope, objects) if listed is not None else frozenset()
    if not certain:
        doubtful = "clip" in words(last) and listed is not None and _takes_parameters(listed, objects, frame)
        return _event("clip", call, frame, roots=found, doubt="strong") if doubtful else None
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
    return _event(
        "clip",
        call,
        frame,
        object=next((r.partition(":")[2] for r in found if r.startswith("optimizer:")), ""),
        roots=found,
        limit=ast.unparse(limit) if limit is not None else "",
        by_value="value" in words(last),
        logging=limit is not None and _is_infinite(limit, frame),
    )


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


def _is_grad(expr: ast.Attribute) -> bool:
    return expr.attr == "grad" or (
        expr.attr == "data" and isinstance(expr.value, ast.Attribute) and expr.value.attr == "grad"
    )


def _is_module_call(call: ast.Call, frame: Context) -> bool:
    """``model(x)``, ``self.net(x)``, ``self(x)`` inside a module."""
    key = spelled(call.func)
    if key is None or key[:1].isupper():
        return False
    if key in frame.selves:
        return True
    return key in frame.unit.objects.models or (
        frame.unit.objects.is_model(key) and not (set(words(last_name(key))) & _STRONG)
    )


def _clearing_loop(node: ast.For | ast.AsyncFor, frame: Context) -> Iterator[Event]:
    """``for p in model.parameters(): p.grad = None`` clears on every path, whatever the ``if`` inside."""
    for inner in own_nodes(node.body):
        found: ast.stmt | ast.expr | None = None
        if isinstance(inner, ast.Assign) and isinstance(inner.value, ast.Constant) and inner.value.value is None:
            if any(isinstance(t, ast.Attribute) and t.attr == "grad" for t in inner.targets):
                found = inner
        elif isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute) and inner.func.attr == "zero_":
            if isinstance(inner.func.value, ast.Attribute) and _is_grad(inner.func.value):
                found = inner
        if found is not None:
            reached = roots(node.iter, frame.key, frame.scope, frame.unit.objects)
            yield _event("zero_grad", found, frame, "grad = None", roots=reached)
            return


def _doubtful(call: ast.Call, frame: Context, name: str | None, last: str) -> Iterator[Event]:
    """An unreadable call: nothing, or an unknown that may touch gradients."""
    if name is not None and name.split(".")[0] in _STANDARD:
        return
    if last.startswith("__") or (isinstance(call.func, ast.Name) and name is None and _is_plain(last, frame)):
        return
    known = set(words(last))
    objects = frame.unit.objects
    touching = known & _STRONG
    harmless = bool(known & _HARMLESS) and not touching & {"backward", "backprop"}
    if harmless:
        return
    keys = [frame.key(argument) for argument in (*call.args, *(k.value for k in call.keywords))]
    if any(key and (objects.is_optimizer(key) or objects.is_scaler(key)) for key in keys):
        yield _event("unknown", call, frame, doubt="strong")
        return
    if isinstance(call.func, ast.Attribute) and not _on_self(call.func, frame):
        owner = frame.key(call.func.value) or ""
        trains = bool(_TRAINING_OWNERS & set(words(last_name(owner))))
        if touching & {"update", "updates", "apply", "accumulate", "fit", "clip"} == touching and not trains:
            return
        if last == "train" and (objects.is_model(owner) or not trains):
            return
        if touching:
            yield _event("unknown", call, frame, doubt="strong")
        return
    if last == "train" and all(isinstance(argument, ast.Constant) for argument in call.args):
        return
    if objects.is_scaler(spelled(call.func) or ""):
        touching = {"step"}
    yield _event("unknown", call, frame, doubt="strong" if touching else "weak")


def _is_plain(name: str, frame: Context) -> bool:
    """Builtins and constructors."""
    binding = frame.scope.lookup(name)
    if binding is None:
        return name in _BUILTINS or name[:1].isupper()
    return bool(binding.classes) or (name[:1].isupper() and not name.isupper())


def _on_self(func: ast.expr, frame: Context) -> bool:
    if not isinstance(func, ast.Attribute):
        return False
    value = func.value
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "super":
        return True
    return isinstance(value, ast.Name) and value.id in frame.selves
