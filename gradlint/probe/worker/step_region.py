"""Starts the region: the entry module's own statements, a function, or a method of an instance made for it."""

from __future__ import annotations

import ast
import contextlib
import inspect
import itertools
import re
import sys
import types
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Union

import torch
from ghost import UNKNOWN_DEVICE, Ghost
from ghost_math import combine
from ghost_modules import attribute_of
from ghost_world import MISSING
from probe_errors import ProbeError
from step_globals import DEVICE, fill_globals
from step_imports import StepModules
from step_nodes import dotted
from step_record import MAX_GATHERING, MAX_STEPS, Loop, Stop
from step_roles import MODEL
from step_same import seed
from step_trainers import trainer_of
from step_world import RunWorld

MAX_YIELDED = 200
"""Items taken from a region that is a generator."""

_COUNTER = re.compile(r"^(batch_|iter_|step_)?(i|idx|index|it|n|epoch|step|iter|iteration|batch_idx|global_step)$")
Definition = Union[ast.FunctionDef, ast.AsyncFunctionDef]


def call_region(
    modules: StepModules, entry: str, region: str, trees: Mapping[str, ast.Module], world: RunWorld
) -> Optional[str]:
    """Run the region; the text of the error that ended it, if one did."""
    recorder = world.recorder
    recorder.recording = not region
    try:
        module = modules.load(entry)
        if region:
            recorder.loops.clear()
            recorder.steps = recorder.backwards = 0
            recorder.recording = True
            _run_function(module, region.split(".<locals>")[0], trees[entry], world)
            if "<locals>" in region and not recorder.steps:
                _run_nested(region, trees[entry], world)
    except Stop:
        return None
    except (SystemExit, KeyboardInterrupt) as error:
        return f"{type(error).__name__}: {error}"[:200]
    except ProbeError:
        raise
    except Exception as error:
        # the program's own: how it ended is part of the answer
        return f"{type(error).__name__}: {error}"[:200]
    return None


def _run_function(module: types.ModuleType, region: str, tree: ast.Module, world: RunWorld) -> None:
    fill_globals(module, tree, world)
    parts = region.split(".")
    node = _definition(tree, parts)
    if node is None:
        raise ProbeError("not-sliced", f"{region} is not in the slice")
    owner: Any = module
    for part in parts[:-1]:
        owner = getattr(owner, part, None)
    if isinstance(owner, type):
        function = _method(owner, parts[-1], tree, parts[:-1], world)
        skipped = 1 if not _is_static(node) else 0
    else:
        function, skipped = getattr(module, parts[-1], None), 0
    if not callable(function):
        raise ProbeError("not-sliced", f"{region} could not be defined")
    _call_repeatedly(function, node, skipped, world)


def _run_nested(region: str, tree: ast.Module, world: RunWorld) -> None:
    """A nested function that its outer function only made, and did not call: called here."""
    node = _definition(tree, [p for p in region.split(".") if p != "<locals>"])
    if node is not None and callable(world.captured):
        _call_repeatedly(world.captured, node, 0, world)


def _call_repeatedly(function: Any, node: Definition, skipped: int, world: RunWorld) -> None:
    """Once if it loops over training steps itself; else as often as a loop around it would."""
    once = node.name in world.flow.loops or _nested_loop(node, world)
    arguments = _Arguments(node, skipped, world)
    instance = getattr(function, "__self__", None)
    trainer = trainer_of(instance, node.name, world)
    recorder, around = world.recorder, Loop("", 0, 0)
    for number in range(1 if once else MAX_GATHERING * MAX_STEPS):
        recorder.call = number
        if recorder.same is not None:
            seed()
        progress, steps, backwards = recorder.progress, recorder.steps, recorder.backwards
        given = arguments.at(number)
        if trainer is not None:
            trainer.before(given, number)
        result = function(**given)
        _exhaust(result)
        if trainer is not None:
            trainer.after(result, given, number)
        if recorder.steps > steps:
            around.steps += 1
            around.idle = around.gathering = 0
        else:
            around.idle += 1
            around.gathering += recorder.backwards > backwards
        if recorder.progress == progress or around.steps >= MAX_STEPS or around.hopeless:
            return


def _nested_loop(node: Definition, world: RunWorld) -> bool:
    """Whether the region itself loops over something that trains, or calls a function that does."""
    names = {
        (c.func.attr if isinstance(c.func, ast.Attribute) else getattr(c.func, "id", ""))
        for c in ast.walk(node)
        if isinstance(c, ast.Call)
    }
    return bool(names & (world.flow.loops - {"train", "eval"} if "self" in names else world.flow.loops))


def _exhaust(result: Any) -> None:
    """A region that is a generator runs as it is consumed; a coroutine is run as far as it goes by itself."""
    if inspect.iscoroutine(result):
        with contextlib.suppress(StopIteration):
            result.send(None)
        result.close()
    if isinstance(result, types.GeneratorType):
        for _ in itertools.islice(result, MAX_YIELDED):
            continue


def _definition(tree: ast.Module, parts: List[str]) -> Optional[Definition]:
    body: List[ast.stmt] = tree.body
    found: Optional[Definition] = None
    for part in parts:
        found = None
        for node in _flat(body):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name == part:
                body = node.body
                found = None if isinstance(node, ast.ClassDef) else node
    return found


def _flat(body: List[ast.stmt]) -> List[ast.stmt]:
    """Statements of a body and of the ``if`` and ``try`` blocks in it."""
    found: List[ast.stmt] = []
    for node in body:
        found.append(node)
        if isinstance(node, (ast.If, ast.Try, ast.With)):
            found.extend(_flat([*node.body, *getattr(node, "orelse", [])]))
    return found


def _is_static(node: Definition) -> bool:
    return any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)


def _method(owner: type, name: str, tree: ast.Module, path: List[str], world: RunWorld) -> Any:
    written, name = name, f"_{owner.__name__.lstrip('_')}{name}" if _is_private(name) else name
    raw = inspect.getattr_static(owner, name, None)
    if isinstance(raw, (staticmethod, classmethod)):
        return getattr(owner, name)
    _open_class(owner, world, _Preparations(tree, path, written, world))
    instance = _instance(owner, _definition(tree, [*path, "__init__"]), world)
    return getattr(instance, name, None)


def _instance(owner: type, init: Optional[Definition], world: RunWorld) -> Any:
    """An instance of the region's class: by its own ``__init__`` if that works; what it lacks is unknown."""
    _make_concrete(owner)
    try:
        arguments = _Arguments(init, 1, world).at(0) if init is not None else {}
        instance = owner(**arguments)
    except Exception as error:
        world.recorder.note(f"{owner.__name__}(): {type(error).__name__}: {error}")
        instance = object.__new__(owner)
        if isinstance(instance, torch.nn.Module):
            torch.nn.Module.__init__(instance)
    _unsettle(instance, owner, world)
    if isinstance(instance, torch.nn.Module):
        world.standins.bound.setdefault("self", instance)
        if not any(True for _ in instance.parameters()):  # its constructor failed: what it would have made
            for path, role in list(world.roles.by_path.items()):
                if role == MODEL and re.fullmatch(r"self\.\w+", path):
                    getattr(instance, path[5:], None)
    return instance


def _unsettle(instance: Any, owner: type, world: RunWorld) -> None:
    """What ``__init__`` leaves at None and another method sets is unknown: that method has run, or it has not."""
    for name in world.flow.bound_later.get(owner.__name__, ()):
        held = f"_{owner.__name__.lstrip('_')}{name}" if _is_private(name) else name
        if vars(instance).get(held, instance) is None:
            path = f"self.{name}"
            known = world.roles.of(path) is not None
            object.__setattr__(instance, held, world.standins.value(path) if known else Ghost(path, hint=None))


def _is_private(name: str) -> bool:
    return name.startswith("__") and not name.endswith("__")


def _make_concrete(owner: type) -> None:
    """Abstract methods are unknown calls: what they return depends on what they are given."""
    for name in getattr(owner, "__abstractmethods__", ()):

        def unknown(*args: Any, _name: str = name, **kwargs: Any) -> Any:
            return combine(_name, args[1:], kwargs)

        setattr(owner, name, unknown)
    if getattr(owner, "__abstractmethods__", None):
        owner.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]


_PREPARES = re.compile(
    r"^_*(maybe_)?(build|set_?up|init|initiali[sz]e|configure|create|make|prepare|compile)(_|$)", re.IGNORECASE
)


class _Preparations:
    """Methods of the class that bind what ``__init__`` does not: somebody calls them ahead of the region."""

    def __init__(self, tree: ast.Module, path: List[str], region: str, world: RunWorld) -> None:
        self.world = world
        self.methods: Dict[str, Definition] = {}
        """The method that binds an attribute."""
        self.done: Set[str] = {region, "__init__"}
        body: List[ast.stmt] = tree.body
        for part in path:
            body = next((n.body for n in _flat(body) if isinstance(n, ast.ClassDef) and n.name == part), [])
        for method in body:
            if isinstance(method, ast.FunctionDef) and _PREPARES.match(method.name):
                for node in ast.walk(method):
                    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                        self.methods.setdefault(node.attr, method)

    def bind(self, owner: Any, name: str) -> bool:
        """Call the method that binds ``owner.name``; whether it did."""
        method = self.methods.get(name)
        if method is None or method.name in self.done or method.name in self.world.flow.eventful:
            return False
        self.done.add(method.name)
        try:
            getattr(owner, method.name)(**_Arguments(method, 1, self.world).at(0))
        except Exception as error:
            self.world.recorder.note(f"{method.name}(): {type(error).__name__}: {error}")
        return name in vars(owner) or name in vars(owner).get("_modules", {})


def _open_class(owner: type, world: RunWorld, preparations: _Preparations) -> None:
    """Attributes the class does not set (a base or another file does): stand-ins by role, else ghosts."""
    inherited = getattr(owner, "__getattr__", None)

    def __getattr__(self: Any, name: str) -> Any:
        if inherited is not None:
            try:
                value = inherited(self, name)
            except AttributeError:
                if name.startswith("__"):
                    raise
            else:
                if not isinstance(value, Ghost):
                    return value
        if name.startswith("__") or name in ("_forward_hooks", "_parameters", "_modules", "_buffers"):
            raise AttributeError(name)
        if sys._getframe(1).f_code.co_name in ("register_buffer", "register_parameter", "add_module"):
            raise AttributeError(name)  # it asks whether the name is taken
        if preparations.bind(self, name):
            return getattr(self, name)
        path = f"self.{name}"
        if world.roles.of(path) is not None:
            value = world.standins.value(path)
            if isinstance(self, torch.nn.Module) and isinstance(value, torch.nn.Module):
                self._modules.setdefault(name, value)  # its parameters are those of the object
            else:
                object.__setattr__(self, name, value)
            return value
        return attribute_of(self, name)

    setattr(owner, "__getattr__", __getattr__)  # noqa: B010


class _Arguments:
    """The arguments of a region's call: stand-ins by role, the function's own defaults, else ghosts."""

    def __init__(self, node: Definition, skipped: int, world: RunWorld) -> None:
        self.world = world
        args = node.args
        positional = [*args.posonlyargs, *args.args][skipped:]
        self.names = [a.arg for a in (*positional, *args.kwonlyargs)]
        self.defaults: Dict[str, ast.expr] = {}
        if positional:
            for number, default in enumerate(reversed(args.defaults[-len(positional) :]), 1):
                self.defaults[positional[-number].arg] = default
        for number, keyword_default in enumerate(args.kw_defaults):
            if keyword_default is not None:
                self.defaults[args.kwonlyargs[number].arg] = keyword_default
        self.kwargs: Dict[str, str] = {}
        """Names that the function takes out of its ``**kwargs``, with the paths they have there."""
        if args.kwarg is not None:
            self.kwargs = {name: f"{args.kwarg.arg}[{name!r}]" for name in _taken_from(node, args.kwarg.arg)}
            self.kwargs.update(_stored(node, args.kwarg.arg, [*world.roles.by_path, *world.roles.called]))
        self.values: Dict[str, Any] = {}

    def at(self, number: int) -> Dict[str, Any]:
        """Keyword arguments of call ``number``; all but counters are the same objects each time."""
        if not self.values:
            order = sorted(self.names, key=lambda n: 0 if self.world.roles.of(n) == MODEL else 1)
            self.values = {n: v for n in order for v in [self._value(n)] if v is not _USE_DEFAULT}
            for name, path in self.kwargs.items():
                known = self.world.roles.of(path) is not None
                self.values.setdefault(name, self.world.standins.value(path) if known else Ghost(path))
        counters = {n: number for n in self.values if _COUNTER.match(n)}
        return {**self.values, **counters}

    def _value(self, name: str) -> Any:
        role = self.world.roles.of(name)
        if role is not None and isinstance(self.defaults.get(name), (ast.Name, ast.Attribute)):
            return _USE_DEFAULT  # ``optimizer=torch.optim.SGD``
        if role is not None:
            return self.world.standins.value(name)
        known = self.world.value_of(name)
        if known is not MISSING:
            return known
        if name in self.defaults:
            try:
                default = ast.literal_eval(self.defaults[name])
            except (ValueError, TypeError, SyntaxError):
                return _USE_DEFAULT
            if default and not isinstance(default, bool):
                return _USE_DEFAULT
            return Ghost(name, hint=default)
        if _COUNTER.match(name):
            return 0
        if DEVICE.search(name):
            return UNKNOWN_DEVICE
        return Ghost(name)


def _taken_from(node: Definition, kwargs: str) -> List[str]:
    """The keys in ``kwargs["key"]``, ``kwargs.pop("key")`` and ``kwargs.get("key", False)``."""
    found: Dict[str, None] = {}
    for child in ast.walk(node):
        holder: Optional[ast.AST] = None
        key: Optional[ast.AST] = None
        if isinstance(child, ast.Subscript):
            holder, key = child.value, child.slice
        elif (
            isinstance(child, ast.Call) and isinstance(child.func, ast.Attribute) and child.func.attr in ("pop", "get")
        ):
            off = len(child.args) == 2 and isinstance(child.args[1], ast.Constant) and not child.args[1].value
            holder, key = child.func.value, child.args[0] if len(child.args) == 1 or off else None
        name = key.value if isinstance(key, ast.Constant) else None
        if isinstance(holder, ast.Name) and holder.id == kwargs and isinstance(name, str) and name.isidentifier():
            found[name] = None
    return list(found)


def _stored(node: Definition, kwargs: str, paths: Sequence[str]) -> Dict[str, str]:
    """The keys in ``self.nets["key"]`` after ``self.nets = kwargs``, with their paths."""
    found: Dict[str, str] = {}
    for child in ast.walk(node):
        if not (isinstance(child, ast.Assign) and isinstance(child.value, ast.Name) and child.value.id == kwargs):
            continue
        for target in child.targets:
            start = f"{dotted(target)}['"
            names = [p[len(start) : -2] for p in paths if p.startswith(start) and p.endswith("']")]
            found.update({name: f"{start}{name}']" for name in names if name.isidentifier()})
    return found


_USE_DEFAULT = object()
