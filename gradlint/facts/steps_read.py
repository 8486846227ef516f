"""Calls become training events: the reader behind the control-flow graph of a training step."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence

from gradlint.facts.cfg import Splice, Stop
from gradlint.facts.steps_calls import (
    backward_event,
    clearing_loop,
    clip_event,
    doubtful_event,
    event_of,
    is_grad,
    is_module_call,
)
from gradlint.facts.steps_context import Context, Unit, aliases, read_unit
from gradlint.facts.steps_events import Event, Frame, Lines
from gradlint.facts.steps_objects import roots
from gradlint.facts.steps_scopes import Class, Function, FunctionNode, Scope, read_scopes, spelled
from gradlint.facts.steps_words import CLEARS, FUNCTION_CLEARS, STANDARD, STOPS, callee

Resolve = Callable[[str], "tuple[FunctionNode, str] | None"]
"""From the dotted name of an imported function to its definition and the path of its file."""

MAX_DEPTH = 4
"""Helpers inside helpers are read to this depth."""


class StepReader:
    """Reads the calls of one file (and of the helpers a ``resolve`` callback finds) into events and splices."""

    def __init__(self, unit: Unit, resolve: Resolve | None) -> None:
        self.unit = unit
        self.resolve = resolve
        self.entered: set[FunctionNode] = set()
        """The functions that were spliced into some graph."""
        self._imported: dict[str, Function | None] = {}
        self._calls: dict[ast.AST, tuple[ast.Call, ...]] = {}

    def context_of(self, function: Function | None, cls: Class | None = None) -> Context:
        """The context of a region: a function run from outside, or the module's statements."""
        scopes = self.unit.scopes
        if function is None:
            frame = Frame("", self.unit.path, 1, None)
            return Context(self.unit, scopes.module, aliases(scopes.module, {}), {}, None, (frame,), ())
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
        names = aliases(function.scope, {})
        return Context(self.unit, function.scope, names, selves, owner, (frame,), (function.node,))

    def read(self, node: ast.expr | ast.stmt, frame: Context, room: bool) -> Sequence[Event | Splice[Context] | Stop]:
        """The items of one expression or statement header, in the order they run."""
        items: list[Event | Splice[Context] | Stop] = []
        if isinstance(node, (ast.For, ast.AsyncFor)):
            items.extend(self._expression(node.iter, frame, room))
            items.extend(clearing_loop(node, frame))
            return items
        alone = frame.unit.lines.location(node.value) if isinstance(node, ast.Expr) else None
        for item in self._expression(node, frame, room):
            if isinstance(item, Event) and item.doubt == "weak" and item.location != alone:
                continue  # a call whose result is used computes something, if its name says nothing else
            items.append(item)
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Attribute) and is_grad(node.target):
            items.append(event_of("unknown", node, frame, "grad +=", doubt="strong"))
        if isinstance(node, ast.Assign):
            cleared = isinstance(node.value, ast.Constant) and node.value.value is None
            for target in node.targets:
                if isinstance(target, ast.Attribute) and target.attr == "grad":
                    owner = frame.key(target.value) or ""
                    if cleared:
                        items.append(event_of("zero_grad", node, frame, "grad = None", owner))
                    else:
                        items.append(event_of("unknown", node, frame, "grad =", owner, doubt="strong"))
        return items

    def _expression(self, node: ast.AST, frame: Context, room: bool) -> Iterator[Event | Splice[Context] | Stop]:
        """Calls in the order they finish: receiver and arguments first."""
        calls = self._calls.get(node)
        if calls is None:
            calls = self._calls[node] = tuple(_calls_in(node))
        for call in calls:
            yield from self._call(call, frame, room)

    def _call(self, call: ast.Call, frame: Context, room: bool) -> Iterator[Event | Splice[Context] | Stop]:
        name = frame.unit.scopes.dotted(call.func, frame.scope)
        if (name or spelled(call.func)) in STOPS:
            yield Stop.STOP
            return
        target = self.target(call, frame, name)
        if target is not None:
            function, cls, receiver = target
            if function.path == frame.unit.path and function.node not in frame.unit.touching:
                if is_module_call(call, frame):
                    yield event_of("forward", call, frame, object=frame.key(call.func) or "")
                return
            if room and len(frame.frames) <= MAX_DEPTH and function.node not in frame.active:
                self.entered.add(function.node)
                yield Splice(function.node.body, self._enter(call, frame, function, cls, receiver))
            elif function.path != frame.unit.path or function.node in frame.unit.training:
                yield event_of("unknown", call, frame, doubt="strong")
            return
        yield from self._direct(call, frame, name, room)

    def _direct(
        self, call: ast.Call, frame: Context, name: str | None, room: bool
    ) -> Iterator[Event | Splice[Context] | Stop]:
        """A call whose body cannot be read."""
        last = callee(call, name)
        if any(isinstance(argument, ast.Attribute) and argument.attr == "backward" for argument in call.args):
            yield event_of("unknown", call, frame, doubt="strong")  # `map(torch.Tensor.backward, losses)`
            return
        clip = clip_event(call, frame, name, last)
        if clip is not None:
            yield clip
        elif isinstance(call.func, ast.Attribute):
            yield from self._method(call, call.func, frame, name, room)
        elif name in {"torch.autograd.backward", "torch.distributed.autograd.backward"}:
            yield backward_event(call, frame)
        elif last in FUNCTION_CLEARS and call.args:
            found = roots(call.args[0], frame.key, frame.scope, frame.unit.objects)
            yield event_of("zero_grad", call, frame, object=frame.key(call.args[0]) or "", roots=found)
        elif is_module_call(call, frame):
            yield event_of("forward", call, frame, object=frame.key(call.func) or "")
        else:
            yield from doubtful_event(call, frame, name, last)

    def _method(
        self, call: ast.Call, function: ast.Attribute, frame: Context, name: str | None, room: bool
    ) -> Iterator[Event | Splice[Context] | Stop]:
        objects = frame.unit.objects
        owner = frame.key(function.value) or ""
        attr = function.attr
        if attr in {"backward", "manual_backward"}:
            yield backward_event(call, frame)
        elif attr in CLEARS:
            cleared = frozenset({owner}) if owner and objects.is_model(owner) else frozenset()
            yield event_of("zero_grad", call, frame, object=owner, roots=cleared)
        elif attr == "zero_" and isinstance(function.value, ast.Attribute) and is_grad(function.value):
            yield event_of("zero_grad", call, frame, object=owner.split(".grad")[0])
        elif attr.endswith("_") and isinstance(function.value, ast.Attribute) and is_grad(function.value):
            yield event_of("unknown", call, frame, doubt="strong")  # `p.grad.add_(g)`: gradients made by hand
        elif attr == "unscale_" or (attr == "unscale" and objects.is_scaler(owner)):
            given = (frame.key(call.args[0]) or "") if call.args else ""
            yield event_of("unscale", call, frame, object=given, scaler=owner)
        elif attr == "update" and objects.is_scaler(owner):
            yield event_of("scaler_update", call, frame, object=owner)
        elif attr in {"step", "first_step", "second_step"}:
            yield from self._step(call, owner, attr, frame, room)
        elif is_module_call(call, frame):
            yield event_of("forward", call, frame, object=frame.key(function) or "")
        else:
            yield from doubtful_event(call, frame, name, attr)

    def _step(
        self, call: ast.Call, owner: str, attr: str, frame: Context, room: bool
    ) -> Iterator[Event | Splice[Context] | Stop]:
        objects = frame.unit.objects
        first = call.args[0] if call.args else None
        given = frame.key(first) if first is not None else None
        closure: ast.expr | None
        if objects.is_scaler(owner):
            closure = call.args[1] if len(call.args) > 1 else None
            step = event_of("step", call, frame, object=given or "", scaler=owner)
        elif objects.is_optimizer(owner):
            closure = first
            step = event_of("step", call, frame, object=owner)
        elif given and first is not None and objects.is_optimizer(given) and not objects.never_steps(owner):
            closure = None
            step = event_of("step", call, frame, object=given, scaler=owner)
        else:
            if not objects.never_steps(owner):
                yield event_of("unknown", call, frame, doubt="strong")
            return
        closure = closure or next((k.value for k in call.keywords if k.arg == "closure"), None)
        if closure is not None and not (isinstance(closure, ast.Constant) and closure.value is None):
            yield from self._closure(closure, call, frame, room)
        yield step
        if any(k.arg == "zero_grad" and isinstance(k.value, ast.Constant) and k.value.value for k in call.keywords):
            yield event_of("zero_grad", call, frame, object=owner)

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
            yield event_of("unknown", call, frame, doubt="strong")

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
        if name and self.resolve is not None and name.split(".")[0] not in STANDARD:
            return _concrete(self._import(name), None, None)
        return None

    def _method_target(self, func: ast.Attribute, frame: Context) -> tuple[Function, Class | None, str | None] | None:
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
            aliases(function.scope, names),
            selves,
            function.owner or frame.owner,
            (*frame.frames, entry),
            (*frame.active, function.node),
        )


def _calls_in(node: ast.AST) -> Iterator[ast.Call]:
    """The calls of an expression, inner ones first; not those in lambdas."""
    if isinstance(node, (ast.Name, ast.Constant, ast.Lambda, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return
    for field in node._fields:
        value = getattr(node, field, None)
        if isinstance(value, ast.AST):
            yield from _calls_in(value)
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, ast.AST):
                    yield from _calls_in(item)
    if isinstance(node, ast.Call):
        yield node


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
