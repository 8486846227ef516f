"""Calls become training events: the reader behind the control-flow graph of a training step."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Collection, Iterator, Sequence

from gradlint.facts.cfg import Guard, Splice, Stop
from gradlint.facts.steps_assign import (
    assigned_events,
    consumed,
    given_away,
    handed_over,
    iterator_arguments,
    reads_gradients,
)
from gradlint.facts.steps_calls import (
    backward_event,
    clip_event,
    doubtful_event,
    event_of,
    is_grad,
    is_module_call,
    loops_by_hand,
)
from gradlint.facts.steps_context import Context, Unit, Units, aliases
from gradlint.facts.steps_events import APEX, Event, Frame, Kind
from gradlint.facts.steps_guards import read_guards
from gradlint.facts.steps_iterators import loop_source, loops_over
from gradlint.facts.steps_objects import roots
from gradlint.facts.steps_project import Source
from gradlint.facts.steps_scopes import Class, Function, FunctionNode, Scope, own_nodes, spelled
from gradlint.facts.steps_words import (
    BACKWARDS,
    CLEARS,
    FUNCTION_CLEARS,
    PRECISION,
    SCALES,
    STANDARD,
    STOPS,
    callee,
    last_name,
    word_set,
    words,
)
from gradlint.rule import Location

MAX_DEPTH = 6
MAX_ACTIVE = 12
"""Helpers inside helpers are read to this depth."""


@dataclasses.dataclass(frozen=True)
class Target:
    """What a call runs: a function of the project (with the class and key of its ``self``), or a lambda."""

    function: Function | None
    cls: Class | None = None
    receiver: str | None = None
    expression: ast.Lambda | None = None
    scope: Scope | None = None
    arguments: tuple[ast.expr, ...] = ()
    """Arguments that a ``functools.partial`` gives ahead of those of the call."""
    keywords: tuple[ast.keyword, ...] = ()


class StepReader:
    """Reads the calls of one file, and of the helpers it uses from others, into events and splices."""

    def __init__(self, source: Source, known: Units) -> None:
        self.known = known
        self.cache = known.cache
        self.cache.add(source)
        self.units: dict[str, Unit] = {}
        """The files that were entered."""
        self.unit = self.unit_of(source.path)
        self.entered: set[FunctionNode] = set()
        """The functions that were spliced into some graph."""
        self.pruned: set[ast.AST] = set()
        """Functions of which the arguments of a call left out a branch."""
        self._silent: set[object] = set()
        """Functions in which nothing happened."""
        self._reads: dict[ast.AST, bool] = {}
        """Whether a statement uses the values of gradients."""
        self._in_clearing: set[ast.AST] = set()
        """Statements that are told as a part of the loop around them."""
        self._calls: dict[ast.AST, tuple[ast.Call, ...]] = {}
        self._loops: dict[ast.AST, tuple[ast.For, ...]] = {}
        self._as_loops: set[ast.AST] = set()
        """Comprehensions that are read as loops."""
        self._losses: dict[Scope, frozenset[str]] = {}

    def unit_of(self, path: str) -> Unit:
        """The reader's view of a file whose scopes are known."""
        if path not in self.units:
            self.units[path] = self.known.of(path)
        return self.units[path]

    def context_of(self, function: Function | None, cls: Class | None = None) -> Context:
        """The context of a region: a function run from outside, or the module's statements."""
        scopes = self.unit.scopes
        if function is None:
            frame = Frame("", self.unit.path, 1, None)
            return Context(self.unit, scopes.module, aliases(scopes.module, {}, self.unit), {}, None, (frame,), ())
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
        names = aliases(function.scope, {}, self.unit)
        return Context(self.unit, function.scope, names, selves, owner, (frame,), (function.node,))

    def was_silent(self, key: object) -> None:
        """See :class:`gradlint.facts.cfg.Reader`."""
        self._silent.add(key)

    def truth(self, test: ast.expr, frame: Context) -> bool | None:
        """Whether the arguments of the call that is read decide a test; None if not."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            inner = self.truth(test.operand, frame)
            return None if inner is None else not inner
        if isinstance(test, ast.BoolOp):
            found = [self.truth(value, frame) for value in test.values]
            decisive = isinstance(test.op, ast.Or)
            if decisive in found:
                return decisive
            return None if None in found else not decisive
        if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.left, ast.Name):
            right = test.comparators[0]
            if test.left.id in frame.constants and isinstance(right, ast.Constant) and right.value is None:
                none = frame.constants[test.left.id] is None
                return none if isinstance(test.ops[0], (ast.Is, ast.Eq)) else not none
            return None
        return bool(frame.constants[test.id]) if isinstance(test, ast.Name) and test.id in frame.constants else None

    def decided(self, test: ast.expr, frame: Context) -> bool | None:
        """See :class:`gradlint.facts.cfg.Reader`."""
        found = self.truth(test, frame)
        if found is not None and frame.active:
            self.pruned.add(frame.active[-1])
        return found

    def guards(self, test: ast.expr, truth: bool, frame: Context) -> Sequence[Guard]:
        """What holds where ``test`` came out as ``truth``."""
        return read_guards(test, truth, frame)

    def read(self, node: ast.expr | ast.stmt, frame: Context, room: bool) -> Sequence[Event | Splice[Context] | Stop]:
        """The items of one expression or statement header, in the order they run."""
        items: list[Event | Splice[Context] | Stop] = []
        if node in self._in_clearing:
            return items
        if isinstance(node, (ast.For, ast.AsyncFor)):
            items.extend(self._expression(node.iter, frame, room))
            items.extend(consumed(loop_source(node), node.iter, frame, "for"))
            for event, told in loops_by_hand(node, frame):
                items.append(event)
                self._in_clearing.update(told)
            return items
        alone = frame.unit.lines.location(node.value) if isinstance(node, ast.Expr) else None
        computed = self._computed_loss(node, frame)
        for item in self._expression(node, frame, room):
            if (
                computed is not None
                and isinstance(item, Event)
                and item.location == computed
                and item.kind == "unknown"
            ):
                if item.given:
                    item = dataclasses.replace(item, doubt="used", given=False)
                elif item.doubt in {"weak", "strong"}:
                    item = dataclasses.replace(item, kind="compute", doubt="")
            if isinstance(item, Event) and (item.doubt == "weak" or item.mild) and item.location != alone:
                if item.given:
                    items.append(dataclasses.replace(item, doubt="used", given=False, mild=False))
                continue  # a call whose result is used computes something, if its name says nothing else
            items.append(item)
        if frame.watched:
            items.extend(consumed(loops_over(node), node, frame, "comprehension"))
            items.extend(given_away(node, frame))
        if isinstance(node, ast.Expr) and isinstance(node.value, (ast.Yield, ast.YieldFrom)):
            items.append(event_of("unknown", node, frame, "yield", doubt="clearing"))
        happened = [item for item in items if isinstance(item, Event)]
        if not any(event.kind in {"zero_grad", "unscale"} or event.name == AVERAGED for event in happened):
            if node not in self._reads:
                self._reads[node] = reads_gradients(node)
            if self._reads[node]:
                items.append(event_of("read", node, frame, "grad"))
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Attribute) and is_grad(node.target):
            scales = isinstance(node.op, (ast.Mult, ast.Div))
            if not scales or not _is_count(node.value):
                items.append(
                    event_of("unscale" if scales else "unknown", node, frame, "grad", doubt="" if scales else "strong")
                )
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                items.extend(assigned_events(node, target, node.value, frame))
        return items

    def comprehensions(self, node: ast.expr | ast.stmt, frame: Context) -> Sequence[ast.For]:
        """See :class:`gradlint.facts.cfg.Reader`: ``losses = [train_batch(b) for b in loader]`` is a training loop."""
        whole = node.iter if isinstance(node, (ast.For, ast.AsyncFor)) else node
        if node not in self._loops:
            found = [n for n in _outside_functions(whole) if isinstance(n, (ast.ListComp, ast.GeneratorExp))]
            plain = [n for n in found if len(n.generators) == 1 and not n.generators[0].ifs]
            training = [n for n in plain if self._trains(n.elt, frame)]
            self._loops[node] = tuple(map(_as_loop, training))
            self._as_loops.update(training)
        return self._loops[node]

    def managed(self, node: ast.With | ast.AsyncWith, frame: Context, entering: bool) -> Sequence[Event]:
        """See :class:`gradlint.facts.cfg.Reader`: apex scales the loss for a block, and unscales as it ends."""
        found = []
        for item in node.items:
            call, name = item.context_expr, item.optional_vars
            if not isinstance(call, ast.Call) or callee(call) != "scale_loss" or not isinstance(name, ast.Name):
                continue
            if len(call.args) != 2 or call.keywords:
                continue  # `delay_unscale`
            optimizer = frame.key(call.args[1]) or ""
            kind: Kind = "scale" if entering else "unscale"
            key = (frame.key(name) or "") if entering else optimizer
            found.append(event_of(kind, call, frame, "scale_loss", key, scaler=APEX))
        return found

    def _trains(self, node: ast.AST, frame: Context) -> bool:
        """Whether a call in it leads to a function of the project that trains."""
        for call in _calls_in(node):
            target = self.target(call, frame, frame.unit.scopes.dotted(call.func, frame.scope))
            function = target.function if target is not None else None
            if function is not None and function.node in self.unit_of(function.path).training:
                return True
        return False

    def _computed_loss(self, node: ast.expr | ast.stmt, frame: Context) -> Location | None:
        """The call of ``loss = training_step(model, batch)``, where the function goes on to call ``loss.backward()``.

        It has not run backward itself: a second time would raise.
        """
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
            return None
        names = {n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
        if not names & self._propagated(frame.scope):
            return None
        objects = frame.unit.objects
        keys = [frame.key(a) for a in (*node.value.args, *(k.value for k in node.value.keywords))]
        if any(key and (objects.is_optimizer(key) or objects.is_scaler(key)) for key in keys):
            return None
        return frame.unit.lines.location(node.value)

    def _propagated(self, scope: Scope) -> frozenset[str]:
        """The local names that a function runs backward on."""
        if scope not in self._losses:
            found: set[str] = set()
            for call in own_nodes(scope.node.body):
                if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                    continue
                if call.func.attr in {"backward", "manual_backward"}:
                    given = (call.func.value, *call.args)
                    found.update(n.id for part in given for n in ast.walk(part) if isinstance(n, ast.Name))
            self._losses[scope] = frozenset(found)
        return self._losses[scope]

    def _expression(self, node: ast.AST, frame: Context, room: bool) -> Iterator[Event | Splice[Context] | Stop]:
        """Calls in the order they finish: receiver and arguments first."""
        calls = self._calls.get(node)
        if calls is None:
            calls = self._calls[node] = tuple(_calls_in(node, self._as_loops))
        for call in calls:
            yield from self._call(call, frame, room)

    def _call(self, call: ast.Call, frame: Context, room: bool) -> Iterator[Event | Splice[Context] | Stop]:
        name = frame.unit.scopes.dotted(call.func, frame.scope)
        if name is None:
            call, name = self._through_partial(call, frame)
        if (name or spelled(call.func)) in STOPS:
            yield Stop.STOP
            return
        target = self.target(call, frame, name)
        if target is not None:
            yield from self._enter_target(call, frame, target, room)
            return
        yield from self._direct(call, frame, name, room)

    def _through_partial(self, call: ast.Call, frame: Context) -> tuple[ast.Call, str | None]:
        """``clip = partial(clip_grad_norm_, max_norm=1)``: a call of ``clip`` as one of the imported function."""
        binding = frame.scope.lookup(call.func.id) if isinstance(call.func, ast.Name) else None
        value = binding.values[0] if binding and len(binding.values) == 1 and not binding.opaque else None
        if not isinstance(value, ast.Call) or not value.args:
            return call, None
        scopes = frame.unit.scopes
        if scopes.dotted(value.func, frame.scope) != "functools.partial":
            return call, None
        name = scopes.dotted(value.args[0], frame.scope)
        if name is None or name.split(".")[0] not in STANDARD:
            return call, None
        whole = ast.Call(call.func, [*value.args[1:], *call.args], [*value.keywords, *call.keywords])
        return ast.copy_location(whole, call), name

    def _enter_target(
        self, call: ast.Call, frame: Context, target: Target, room: bool
    ) -> Iterator[Event | Splice[Context] | Stop]:
        """A call of something that can be read: built in, or a forward, or too deep to say."""
        if target.expression is not None:
            if target.expression in frame.active or len(frame.active) > MAX_ACTIVE:
                return
            scope = target.scope or frame.scope
            inner = dataclasses.replace(frame, scope=scope, active=(*frame.active, target.expression))
            yield from self._expression(target.expression.body, inner, room)
            return
        function = target.function
        assert function is not None
        unit = self.unit_of(function.path)
        if function.node not in unit.touching or function.node in self._silent:
            yield from handed_over(call, frame)
            if is_module_call(call, frame):
                yield event_of("forward", call, frame, object=frame.key(call.func) or "")
            return
        if room and len(frame.frames) <= MAX_DEPTH and function.node not in frame.active:
            self.entered.add(function.node)
            if _decorated(function, unit):
                yield event_of("unknown", call, frame, doubt="clearing")
            inside = self._enter(call, frame, target)
            if unit.iterators and not target.arguments:
                yield from iterator_arguments(call, function, frame, inside, target.receiver is not None)
            yield Splice(function.node.body, inside, function.node)
        elif function.node in unit.training:
            yield event_of("unknown", call, frame, doubt="strong")

    def _direct(
        self, call: ast.Call, frame: Context, name: str | None, room: bool
    ) -> Iterator[Event | Splice[Context] | Stop]:
        """A call whose body cannot be read."""
        last = callee(call, name)
        yield from handed_over(call, frame, name)
        dynamic = isinstance(call.func, ast.Call) and name is None
        if dynamic and isinstance(call.func, ast.Call) and spelled(call.func.func) == "getattr":
            yield event_of("unknown", call, frame, doubt="clearing")  # `getattr(callback, event)(self)`
            return
        if any(isinstance(argument, ast.Attribute) and argument.attr == "backward" for argument in call.args):
            yield event_of("unknown", call, frame, doubt="strong")  # `map(torch.Tensor.backward, losses)`
            return
        if any(k.arg in _UPDATES for k in call.keywords) and len(call.args) > 1:
            yield from _callable_scaler(call, frame)
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
        elif attr in BACKWARDS and any("loss" in words(spelled(argument) or "") for argument in call.args):
            yield event_of("unknown", call, frame, doubt="clearing")
            yield backward_event(call, frame)
        elif attr in {"accumulate", "no_sync", "no_backward_sync"} and isinstance(call.func, ast.Attribute):
            made = objects.made_by.get(objects.own(owner), frozenset())
            if attr == "accumulate" and ("accelerator" in words(owner) or any(n.endswith("Accelerator") for n in made)):
                yield event_of("accumulate", call, frame, object=owner)
        elif attr in CLEARS:
            cleared = frozenset({owner}) if owner and objects.is_model(owner) else frozenset()
            yield event_of("zero_grad", call, frame, object=owner, roots=cleared)
        elif attr == "zero_" and isinstance(function.value, ast.Attribute) and is_grad(function.value):
            yield event_of("zero_grad", call, frame, object=owner.split(".grad")[0])
        elif attr in SCALES and isinstance(function.value, ast.Attribute) and is_grad(function.value):
            averaged = bool(call.args) and _is_count(call.args[0])
            yield event_of("compute" if averaged else "unscale", call, frame, AVERAGED if averaged else "")
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
            on = "" if objects.is_off(owner) else owner
            written = spelled(first) if first is not None else None
            holder = spelled(call.func.value) if isinstance(call.func, ast.Attribute) else None
            step = event_of(
                "step", call, frame, object=given or "", scaler=on, written=written or "", written_scaler=holder or ""
            )
        elif objects.is_optimizer(owner):
            closure = first
            wrapper = owner in objects.engines or "engine" in words(owner)
            holder = spelled(call.func.value) if isinstance(call.func, ast.Attribute) else None
            step = event_of("step", call, frame, object=owner, wrapper=wrapper, written=holder or "")
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
        bare = ast.copy_location(ast.Call(closure, [], []), call)
        target = self.target(bare, frame, None)
        readable = target is not None and (target.function is None or target.function.node not in frame.active)
        if target is not None and readable and room and len(frame.frames) <= MAX_DEPTH:
            yield from self._enter_target(bare, frame, target, room)
        elif not isinstance(closure, ast.Constant):
            yield event_of("unknown", call, frame, doubt="strong")

    # -- what a call leads to

    def target(self, call: ast.Call, frame: Context, name: str | None, hops: int = 0) -> Target | None:
        """The function a call runs; None if it cannot be read."""
        func = call.func
        if isinstance(func, ast.Name):
            found = self._named_target(func.id, frame, hops)
        elif isinstance(func, ast.Attribute):
            found = self._method_target(func, frame)
        elif isinstance(func, ast.Call):
            found = self._partial(func, frame, hops)
        else:
            found = None
        if found is None and name and name.split(".")[0] not in STANDARD:
            imported = self.cache.imported(name, frame.unit.path)
            if isinstance(imported, Function):
                found = Target(imported)
        return found if found is not None and _worth_reading(found.function) else None

    def _named_target(self, name: str, frame: Context, hops: int = 0) -> Target | None:
        binding = frame.scope.lookup(name)
        if binding and binding.functions and not binding.opaque and not binding.values:
            return Target(binding.functions[-1])
        if binding and len(binding.values) == 1 and not binding.opaque and hops < 3:
            value = binding.values[0]
            if isinstance(value, ast.Lambda):
                return Target(None, expression=value)
            if isinstance(value, ast.Call):
                found = self._partial(value, frame, hops)
                if found is not None:
                    return found
            elif isinstance(value, ast.Name) and value.id != name:
                return self._named_target(value.id, frame, hops + 1)
            elif isinstance(value, ast.Attribute):
                return self._method_target(value, frame)
        if binding and binding.opaque and name in frame.names and frame.names[name] != name:
            return self._handed_function(frame.names[name], frame)
        instances = frame.unit.objects.instances
        if name in instances and not frame.unit.objects.is_model(name):
            return self._instance_call(instances[name], name)
        if name in instances:
            forward = self.cache.method(instances[name], "forward")
            if forward is not None and forward.node in self.unit_of(forward.path).training:
                return Target(forward, instances[name], name)  # a model that trains itself
        return None

    def _handed_function(self, key: str, frame: Context) -> Target | None:
        """A parameter that stands for a function of the caller: ``run(train_step)``, ``run(self.one_step)``."""
        scopes = self.unit.scopes
        built = self._built(key)
        if built is not None:
            return self._instance_call(built, key)
        owner, _, attr = key.rpartition(".")
        if not owner:
            binding = scopes.module.names.get(key)
            return Target(binding.functions[-1]) if binding and binding.functions and not binding.opaque else None
        cls = frame.selves.get(owner) or self.unit.objects.instances.get(owner)
        method = self.cache.method(cls, attr) if cls is not None else None
        return Target(method, cls, owner) if method is not None else None

    def _partial(self, value: ast.Call, frame: Context, hops: int = 0) -> Target | None:
        """``functools.partial(train_step, model)``, as a call of the function with these arguments first."""
        name = frame.unit.scopes.dotted(value.func, frame.scope)
        if name not in {"functools.partial", "functools.partialmethod"} or not value.args:
            return None
        inner = ast.copy_location(ast.Call(value.args[0], [], []), value)
        found = self.target(inner, frame, frame.unit.scopes.dotted(value.args[0], frame.scope), hops + 1)
        if found is None or found.function is None:
            return None
        return dataclasses.replace(found, arguments=tuple(value.args[1:]), keywords=tuple(value.keywords))

    def _instance_call(self, cls: Class, key: str) -> Target | None:
        method = self.cache.method(cls, "__call__")
        return Target(method, cls, key) if method is not None else None

    def _method_target(self, func: ast.Attribute, frame: Context) -> Target | None:
        cache, value, objects = self.cache, func.value, frame.unit.objects
        if isinstance(value, ast.Name) and value.id in frame.selves:
            cls = frame.selves[value.id]
            method = cache.method(cls, func.attr)
            if method is not None:
                return Target(method, cls, frame.key(value))
            own = f"{value.id}.{func.attr}"
            made = objects.instances.get(own)
            return self._instance_call(made, own) if made is not None and not objects.is_model(own) else None
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "super":
            if frame.owner is None or not frame.selves:
                return None
            name = next(iter(frame.selves))
            method = cache.method(frame.owner, func.attr, skip_own=True)
            return Target(method, frame.selves[name], name) if method is not None else None
        if isinstance(value, ast.Call):
            built = cache.class_of(value.func, frame.scope, frame.unit.path)
            found = cache.method(built, func.attr) if built is not None else None
            return Target(found, built, f"{built.qualname}()") if built is not None and found is not None else None
        written = spelled(value)
        made = self._instance(written, frame) if written else None
        if made is None and written:
            made = self._handed_instance(frame.key(value) or "", written)
        if made is not None:
            method = cache.method(made, func.attr)
            return Target(method, made, frame.key(value)) if method is not None else None
        static = frame.unit.scopes.class_of(value, frame.scope)
        if static is not None:
            method = cache.method(static, func.attr)
            return Target(method, static) if method is not None else None
        return None

    def _instance(self, written: str, frame: Context) -> Class | None:
        """The class of an object that this file made: a class of its own, or an imported one of the project."""
        objects = frame.unit.objects
        if written in objects.instances:
            return objects.instances[written]
        names = objects.made_by.get(written, frozenset())
        if len(names) != 1 or {"accelerator", "fabric"} & set(words(last_name(written))):
            return None
        (name,) = names
        if "." not in name or name.split(".")[0] in STANDARD or not name.rsplit(".", 1)[-1][:1].isupper():
            return None
        found = self.cache.imported(name, frame.unit.path)
        return found if isinstance(found, Class) else None

    def _built(self, key: str) -> Class | None:
        """The class of ``Trainer()``, an object that is handed over where it is made."""
        if not re.fullmatch(r"[\w.]+\(\)", key):
            return None
        made = ast.parse(key, mode="eval").body
        assert isinstance(made, ast.Call)
        return self.cache.class_of(made.func, self.unit.scopes.module, self.unit.path)

    def _handed_instance(self, key: str, written: str) -> Class | None:
        """A parameter, or an attribute of a built-in helper, that stands for an object the entry file made."""
        if key == written or not key:
            return None
        built = self._built(key)
        if built is not None:
            return built
        entry = dataclasses.replace(self.context_of(None), scope=self.unit.scopes.module)
        return self._instance(key, entry)

    def _enter(self, call: ast.Call, frame: Context, target: Target) -> Context:
        """The context of a called helper: parameters stand for the caller's objects."""
        function = target.function
        assert function is not None
        unit = self.unit_of(function.path)
        inside = _encloses(function.scope, frame.scope)
        names = dict(frame.names) if inside else {n: key for n, key in frame.names.items() if "." in n}
        parameters = list(function.parameters)
        selves = dict(frame.selves) if inside else {}
        if function.receiver and target.cls is not None:
            selves[function.receiver] = target.cls
            if target.receiver is not None:
                names[function.receiver] = target.receiver
                parameters = parameters[1:]
        for parameter in function.parameters:
            if parameter != function.receiver:
                names.pop(parameter, None)
        positional = (*target.arguments, *call.args)
        keywords = ((k.arg, k.value) for k in (*target.keywords, *call.keywords) if k.arg)
        for parameter, argument in (*zip(parameters, positional, strict=False), *keywords):
            key = frame.key(argument)
            if key is not None and not isinstance(argument, ast.Starred):
                names[parameter] = key
        constants = _constants(function, parameters, positional, (*target.keywords, *call.keywords))
        entry = Frame(function.qualname, function.path, function.node.lineno, frame.unit.lines.location(call))
        return Context(
            unit,
            function.scope,
            aliases(function.scope, names, unit),
            selves,
            function.owner or frame.owner,
            (*frame.frames, entry),
            (*frame.active, function.node),
            constants,
            frame.watched if frame.unit is not unit else frame.iterators,
        )


AVERAGED = "averaged gradients"
_UPDATES = frozenset({"update_grad", "need_update"})


def _callable_scaler(call: ast.Call, frame: Context) -> Iterator[Event]:
    """timm's ``loss_scaler(loss, optimizer, clip_grad=..., update_grad=(i + 1) % n == 0)``: backward, and now and then
    the step."""
    update = next(k.value for k in call.keywords if k.arg in _UPDATES)
    written = spelled(call.func) or ""
    yield event_of("backward", call, frame, object=frame.key(call.args[0]) or "", scaler=written, wrapper=True)
    window = any(guard.counter for guard in read_guards(update, True, frame))
    yield event_of("step", call, frame, object=frame.key(call.args[1]) or "", wrapper=not window, window=window)


def _is_count(factor: ast.expr) -> bool:
    """Whether a factor is a number of micro-batches, machines or tokens, going by its name, and no loss scale."""
    said = set(words(ast.unparse(factor)))
    return bool(said & _COUNTS) and not said & PRECISION


_COUNTS = word_set(
    "count counts accum accumulation acc steps step num n world size batch batches bsz bs tokens length len micro"
)


def _decorated(function: Function, unit: Unit) -> bool:
    """Whether a decorator that cannot be read stands over a function."""
    for decorator in function.node.decorator_list:
        plain = decorator.func if isinstance(decorator, ast.Call) else decorator
        name = unit.scopes.dotted(plain, unit.scopes.module)
        if name is not None and name.split(".")[0] not in STANDARD and not set(words(name)) & _HARMLESS_DECORATORS:
            return True
    return False


_HARMLESS_DECORATORS = word_set(
    """property static staticmethod classmethod abstract abstractmethod override wraps jit compile profile timer time
    timed log main record typed overload cache register"""
)


def _as_loop(node: ast.ListComp | ast.GeneratorExp) -> ast.For:
    """A comprehension over one iterable as a loop whose body is its item."""
    body = ast.copy_location(ast.Expr(node.elt), node.elt)
    loop = ast.For(node.generators[0].target, node.generators[0].iter, [body], [])
    return ast.copy_location(loop, node)


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of an expression or statement that are in no function, class or comprehension inside of it."""
    if isinstance(node, (ast.Name, ast.Constant, ast.Lambda, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return
    yield node
    if not isinstance(node, (ast.ListComp, ast.GeneratorExp)):
        for inner in ast.iter_child_nodes(node):
            yield from _outside_functions(inner)


def _calls_in(node: ast.AST, without: Collection[ast.AST] = ()) -> Iterator[ast.Call]:
    """The calls of an expression, inner ones first; not those in lambdas, nor in the nodes ``without``."""
    if isinstance(node, (ast.Name, ast.Constant, ast.Lambda, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return
    if node in without:
        return
    for field in node._fields:
        value = getattr(node, field, None)
        if isinstance(value, ast.AST):
            yield from _calls_in(value, without)
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, ast.AST):
                    yield from _calls_in(item, without)
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


def _constants(
    function: Function, parameters: Sequence[str], given: Sequence[ast.expr], keywords: Sequence[ast.keyword]
) -> dict[str, object]:
    """The parameters that this call gives a constant, or leaves at a constant default."""
    if any(isinstance(argument, ast.Starred) for argument in given) or any(k.arg is None for k in keywords):
        return {}
    spec = function.node.args
    named = [*spec.posonlyargs, *spec.args]
    values: dict[str, ast.expr] = {}
    if spec.defaults:
        values.update(zip([a.arg for a in named[-len(spec.defaults) :]], spec.defaults, strict=True))
    values.update({a.arg: d for a, d in zip(spec.kwonlyargs, spec.kw_defaults, strict=True) if d is not None})
    values.update(zip(parameters, given, strict=False))
    values.update({k.arg: k.value for k in keywords if k.arg})
    rebound = {name for name, binding in function.scope.names.items() if binding.values or len(binding.opaque) > 1}
    return {n: v.value for n, v in values.items() if isinstance(v, ast.Constant) and n not in rebound}


def _worth_reading(function: Function | None) -> bool:
    """Whether a function has a body worth reading; an abstract one is as good as unknown."""
    if function is None:
        return True
    body = [s for s in function.node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    return bool(body) and not all(isinstance(s, (ast.Pass, ast.Raise)) for s in body)
