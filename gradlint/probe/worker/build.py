"""Build the model of a request, and find out what it can be run on.

Constructor arguments come from call sites in the project, from defaults, from a surrounding model that makes the
class itself, and at last from names and annotations. What no code states is listed as assumed. A model that cannot be
built from its own parts is not built: nothing stands in for a submodule.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import linecache
import re
import signal
import sys
from dataclasses import dataclass, field
from trace import Tracer
from types import FrameType, TracebackType
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from model_inputs import FORWARD_LIMIT, Inputs, Search, Seen, captured, observe, seed_all
from model_missing import Missing
from model_values import NoGuess, alternatives, describe, guess
from modules import FILE_PREFIX, SlicedModules
from probe_errors import ProbeError, is_out_of_memory
from torch import nn

BUILD_LIMIT = 8
"""Constructor calls that may fail or lead nowhere before the model counts as not built."""
OUTER_LIMIT = 6
"""Surrounding models that are considered for one class."""
OUTER_FORWARDS = 25
"""Forwards that the search for a surrounding model's inputs may take."""

ATTEMPT_SECONDS = 2.5
"""CPU time for one attempt, building and searching: a guess that leads to something huge must leave time for others."""

HINT = "add `# gradlint: input=(32, 10)` or a call with literal arguments"


@dataclass
class Plan:
    """One way to make the model."""

    make: Callable[[Dict[str, Any]], Any]
    """Called with the overrides of guessed arguments."""
    text: str
    sizes: Dict[str, Any] = field(default_factory=dict)
    """Constructor arguments by name, as far as they are known: hints at the size of inputs."""
    guessed: Dict[str, Any] = field(default_factory=dict)
    notes: Dict[str, Any] = field(default_factory=dict)
    overrides: Dict[str, Any] = field(default_factory=dict)
    inside: Optional[Tuple[type, Plan]] = None
    """The class to take out of the surrounding model that the other plan builds."""

    def with_override(self, name: str, value: Any) -> Plan:
        """The same plan with another value for one guessed argument."""
        overrides = {**self.overrides, name: value}
        return Plan(self.make, self.text, {**self.sizes, name: value}, self.guessed, self.notes, overrides)

    def assumed(self) -> Dict[str, Any]:
        """What no code states."""
        values = {**self.guessed, **self.overrides}
        return {**{name: _shown(value) for name, value in values.items()}, **self.notes}


@dataclass
class Recipe:
    """How to build and run the model again and again."""

    make: Callable[[], nn.Module]
    inputs: Inputs
    text: str
    assumed: Dict[str, Any]
    seen: Optional[Seen] = None
    """The forward of the model that was built first, with seed 0."""

    def build(self, seed: int) -> nn.Module:
        """The model in training mode, its weights drawn with ``seed``."""
        seed_all(seed)
        return self.make().train()


def find(body: Mapping[str, Any], slices: SlicedModules, missing: Missing) -> Recipe:
    """The first way to build and run the model of a request. Raises ``not-built`` where there is none."""
    return _Finder(body, slices, missing).find()


class _Finder:
    def __init__(self, body: Mapping[str, Any], slices: SlicedModules, missing: Missing) -> None:
        self.body = body
        self.slices = slices
        self.missing = missing
        self.builds = 0
        self.failures: List[ProbeError] = []

    def find(self) -> Recipe:
        entry = str(self.body["entry"])
        try:
            module = self.slices.load(entry)
        except ProbeError:
            raise
        except Exception as error:  # the user's statements may raise anything
            raise ProbeError("not-built", f"{entry}: {_short(error)}") from error
        for plan in self._plans(module):
            if self.builds >= BUILD_LIMIT:
                break
            recipe = self._try(plan)
            if recipe is not None:
                return recipe
        if not self.failures:
            raise ProbeError("not-built", f"nothing to build; {HINT}")
        raise self.failures[0]

    # plans

    def _plans(self, module: Any) -> Iterator[Plan]:
        kind, qualname = self.body["kind"], str(self.body["qualname"])
        if kind == "variable":
            yield self._variable(qualname)
            return
        try:
            target = _attribute(module, qualname)
        except AttributeError as error:
            raise ProbeError("not-built", f"{qualname} is not defined by the sliced statements") from error
        calls = list(self.body.get("calls") or [])[:3]
        from_calls = [p for p in (self._from_call(target, c) for c in calls) if p is not None]
        yield from (p for p in from_calls if not p.guessed)
        guessed = self._guessed(target)
        if guessed is not None and not guessed.guessed:
            yield guessed
        outers = list(self._outers(target)) if kind == "class" else []
        stated = [p for p in outers if p.inside and not p.inside[1].guessed]
        if guessed is None or "depth_guessed" in guessed.notes:  # a surrounding model may state the depth
            yield from stated
            stated = []
        yield from (p for p in from_calls if p.guessed)
        if guessed is not None and guessed.guessed:
            yield guessed
        yield from stated
        yield from (p for p in outers if p.inside and p.inside[1].guessed)

    def _variable(self, name: str) -> Plan:
        entry = str(self.body["entry"])

        def make(overrides: Dict[str, Any]) -> nn.Module:
            return _module_in(_attribute(self.slices.reload(entry), name))

        return Plan(make, name)

    def _from_call(self, target: Any, call: Mapping[str, Any]) -> Optional[Plan]:
        """The arguments of a call site; what cannot be evaluated there is guessed, or left to its default."""
        signature = _signature(target)
        module = str(call.get("module") or self.body["entry"])
        if signature is None or not self.slices.holds(module):
            return None
        args, kwargs = [str(a) for a in call.get("args", ())], dict(call.get("kwargs", {}))
        plan = Plan(lambda _: nn.Identity(), "")

        def make(overrides: Dict[str, Any]) -> nn.Module:
            known = _evaluate_call(self.slices, module, signature, args, kwargs)
            others = {k: _rebuilt(v) for k, v in {**plan.guessed, **overrides}.items()}
            values = {**known, **others}
            return _module_in(_call(target, signature, values))

        try:
            known = _evaluate_call(self.slices, module, signature, args, kwargs)
            self._fill(signature, known, plan)
        except (NoGuess, ProbeError) as error:
            self._note(error)
            return None
        shown = [*args, *(f"{k}={v}" for k, v in kwargs.items())]
        plan.make, plan.text = make, f"{_name(target)}({', '.join(shown)})"
        return plan

    def _guessed(self, target: Any, depth: int = 0) -> Optional[Plan]:
        """Defaults, and guesses for what has none."""
        signature = _signature(target)
        if signature is None:
            self._note(ProbeError("not-built", f"{_name(target)}: its constructor cannot be read"))
            return None
        plan = Plan(lambda _: nn.Identity(), "")

        def make(overrides: Dict[str, Any]) -> Any:
            fresh = {k: _rebuilt(v) for k, v in {**plan.guessed, **overrides}.items()}
            made = _call(target, signature, fresh)
            return made if depth else _module_in(made)

        try:
            self._fill(signature, {}, plan, depth)
        except (NoGuess, ProbeError) as error:
            self._note(error)
            return None
        shown = ", ".join(f"{k}={_shown(v)}" for k, v in plan.guessed.items())
        plan.make, plan.text = make, f"{_name(target)}({shown})"
        return plan

    def _fill(self, signature: inspect.Signature, known: Mapping[str, Any], plan: Plan, depth: int = 0) -> None:
        """Guess what is required and not known. Raises :class:`NoGuess`."""
        for p in signature.parameters.values():
            if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                continue
            if p.name in known:
                plan.sizes[p.name] = known[p.name]
            elif p.default is not p.empty:
                plan.sizes[p.name] = p.default
            else:
                value = self._value(p, plan, depth)
                plan.guessed[p.name] = plan.sizes[p.name] = value

    def _value(self, p: inspect.Parameter, plan: Plan, depth: int) -> Any:
        """A guess for one argument; a class of the project's own is built in its turn."""
        annotation = p.annotation
        if inspect.isclass(annotation) and annotation.__module__ in self.slices.names and depth < 2:
            inner = self._guessed(annotation, depth + 1)
            if inner is not None:
                return self._part(inner, plan)
        try:
            return guess(p.name, annotation, plan.notes)
        except NoGuess:
            # A class of the module's own of just this name: encoder -> Encoder, vit -> ViT.
            named = self.slices.class_like(p.name)
            inner = self._guessed(named, depth + 1) if named is not None and depth < 2 else None
            if inner is None:
                raise
            return self._part(inner, plan)

    def _part(self, inner: Plan, plan: Plan) -> _Part:
        plan.notes.update(inner.notes)
        return _Part(inner)

    def _outers(self, target: Any) -> Iterator[Plan]:
        """Surrounding models: classes of the slices that call this one, or that call one that does."""
        seen, level = [target], [target]
        while level and len(seen) <= OUTER_LIMIT:
            level = [c for inner in level for c in self.slices.callers_of(inner)]
            level = [c for c in dict.fromkeys(level) if c not in seen and issubclass(c, nn.Module)]
            seen.extend(level)
            for outer in level:
                plan = self._guessed(outer)
                if plan is not None:
                    inside = Plan(plan.make, f"{_name(target)} in {plan.text}")
                    inside.inside = (target, plan)
                    yield inside

    # trying

    def _try(self, plan: Plan, outer: bool = False) -> Optional[Recipe]:
        """Build and run a plan; repair guessed arguments that the error blames."""
        if plan.inside is not None:
            return self._try_inside(*plan.inside, plan.text)
        queue = [plan]
        while queue and self.builds < BUILD_LIMIT:
            plan = queue.pop(0)
            self.builds += 1
            try:
                seed_all(0)
                with cpu_limit(ATTEMPT_SECONDS):
                    with recorded_lines() as lines:
                        model = plan.make(plan.overrides)
                    inputs, seen = self._inputs(model.train(), lines, plan, outer)
            except ProbeError as error:
                self._note(error)
                cause = error.__cause__
                if cause is not None:
                    queue.extend(self._repairs(plan, cause))
                continue
            except (NoGuess, TooSlow) as error:
                self._note(error)
                continue
            except Exception as error:  # the user's constructor may raise anything
                if is_out_of_memory(error):
                    raise
                self._note(error)
                queue.extend(self._repairs(plan, error))
                continue
            assumed = {**plan.assumed(), **self.missing.assumed}
            return Recipe(functools.partial(plan.make, plan.overrides), inputs, plan.text, assumed, seen)
        return None

    def _inputs(
        self, model: nn.Module, lines: Mapping[int, int], plan: Plan, outer: bool
    ) -> Tuple[Inputs, Optional[Seen]]:
        search = Search(model, lines, plan.sizes, OUTER_FORWARDS if outer else FORWARD_LIMIT)
        try:
            return search.run([] if outer else self.body.get("inputs") or []), search.seen
        except ProbeError as error:
            raise error from search.error

    def _try_inside(self, target: type, outer: Plan, text: str) -> Optional[Recipe]:
        """Take the class out of a surrounding model, with the inputs that it gets there."""
        recipe = self._try(outer, outer=True)
        if recipe is None:
            return None
        with recorded_lines() as lines:
            model = recipe.build(0)
        path = next((name for name, m in model.named_modules() if type(m) is target), None)
        if path is None:
            return None
        inputs = _caught(model, path, recipe.inputs)
        if inputs is None:
            self._note(ProbeError("not-built", f"{text}: its forward is not called"))
            return None
        seen = observe(model.get_submodule(path), lines, inputs, inputs.batch)
        return Recipe(lambda: recipe.make().get_submodule(path), inputs, text, recipe.assumed, seen)

    def _repairs(self, plan: Plan, error: BaseException) -> Iterator[Plan]:
        """Plans with another value for a guessed or missing argument that the failing lines speak of."""
        candidates = {**{k: v for k, v in plan.sizes.items() if v is None}, **plan.guessed, **plan.overrides}
        for name in _blamed(error, list(candidates)):
            if name in plan.overrides and plan.overrides[name] != plan.guessed.get(name):
                continue  # one repair per argument
            for value in alternatives(name, candidates[name], error)[:2]:
                yield plan.with_override(name, value)

    def _note(self, error: BaseException) -> None:
        if isinstance(error, ProbeError):
            self.failures.append(error)
        elif isinstance(error, NoGuess):
            self.failures.append(ProbeError("not-built", f"nothing tells what to pass as {error}; {HINT}"))
        else:
            self.failures.append(ProbeError("not-built", f"{_short(error)}; {HINT}"))


@dataclass(frozen=True)
class _Part:
    """A submodule or configuration of the project's own, made anew with every model."""

    plan: Plan

    def __str__(self) -> str:
        return self.plan.text


def _shown(value: Any) -> Any:
    return str(value) if isinstance(value, _Part) else describe(value)


def _rebuilt(value: Any) -> Any:
    return value.plan.make(value.plan.overrides) if isinstance(value, _Part) else value


class TooSlow(BaseException):
    """An attempt took longer than it may. No ``Exception``: the code under test may catch those."""


@contextlib.contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`TooSlow` in the block once it has used so much CPU time, where the system has such a timer."""

    def stop(number: int, frame: Optional[FrameType]) -> None:
        raise TooSlow(f"more than {seconds} s to build and run it once")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.signal(signal.SIGVTALRM, before)


@contextlib.contextmanager
def recorded_lines() -> Iterator[Dict[int, int]]:
    """While the block runs, note for each new module the line of sliced code that makes it."""
    lines: Dict[int, int] = {}
    original = nn.Module.__init__

    def init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        frame: Optional[FrameType] = sys._getframe(1)
        while frame is not None and not frame.f_code.co_filename.startswith(FILE_PREFIX):
            frame = frame.f_back
        if frame is not None:
            lines[id(self)] = frame.f_lineno
        original(self, *args, **kwargs)

    nn.Module.__init__ = init  # type: ignore[method-assign]
    try:
        yield lines
    finally:
        nn.Module.__init__ = original  # type: ignore[method-assign]


def _caught(model: nn.Module, path: str, inputs: Inputs) -> Optional[Inputs]:
    """What the submodule at ``path`` is called with when the model runs."""
    seen: List[Tuple[Sequence[Any], Mapping[str, Any]]] = []
    inner = model.get_submodule(path)
    handle = inner.register_forward_pre_hook(lambda m, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    seed_all(0)
    args, kwargs = inputs.make(inputs.batch, 0)
    try:
        Tracer(model, {}).trace(args, kwargs)
    finally:
        handle.remove()
    return captured(inner, *seen[0], batch=inputs.batch) if seen else None


def _signature(target: Any) -> Optional[inspect.Signature]:
    """The parameters of a constructor or function, annotations resolved where they can be."""
    function = target.__init__ if inspect.isclass(target) else target
    try:
        signature = inspect.signature(function, eval_str=True) if sys.version_info >= (3, 10) else None
    except Exception:  # annotations may name anything
        signature = None
    try:
        signature = signature or inspect.signature(function)
    except (TypeError, ValueError):
        return None
    parameters = list(signature.parameters.values())
    if not inspect.isclass(target):
        return signature
    parameters = parameters[1:]
    if parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:
        parameters[-1:] = [*_inherited(target, {p.name for p in parameters}), parameters[-1]]
    return signature.replace(parameters=parameters)


def _inherited(target: type, known: Set[str]) -> Iterator[inspect.Parameter]:
    """What ``**kwargs`` of a constructor stands for: the parameters of the base class's."""
    own = next((c for c in target.__mro__ if "__init__" in vars(c)), None)
    after = target.__mro__[target.__mro__.index(own) + 1 :] if own is not None else ()
    plain = (object, nn.Module)
    base = next((c for c in after if "__init__" in vars(c) and c not in plain), None)
    signature = _signature(base) if base is not None else None
    for p in signature.parameters.values() if signature is not None else ():
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in known:
            yield p.replace(kind=p.KEYWORD_ONLY)


def _evaluate_call(
    slices: SlicedModules, module: str, signature: inspect.Signature, args: Sequence[str], kwargs: Mapping[str, str]
) -> Dict[str, Any]:
    """Parameter name -> value, for the arguments of a call that can be evaluated in its module."""
    try:
        space = vars(slices.load(module))
    except Exception as error:  # the call site's module cannot run: its call tells nothing
        raise ProbeError("not-built", f"{module}: {_short(error)}") from error
    positional: List[Any] = []
    for text in args:
        value = _evaluated(text.lstrip("*"), space)
        starred = text.startswith("*")
        if starred and value is _UNKNOWN:
            break
        positional.extend(value if starred else [value])
    named: Dict[str, Any] = {}
    for name, text in kwargs.items():
        value = _evaluated(text.lstrip("*"), space)
        if name.isidentifier():
            named[name] = value
        elif isinstance(value, dict):
            named.update(value)
    try:
        bound = signature.bind_partial(*positional, **named).arguments
    except TypeError as error:
        raise ProbeError("not-built", f"the call does not fit: {error}") from error
    if any(isinstance(v, nn.Module) for v in bound.values()) and not slices.loading:
        slices.stale(module)  # the next build gets submodules of its own
    return {k: v for k, v in bound.items() if v is not _UNKNOWN}


_UNKNOWN = object()


def _evaluated(text: str, space: Dict[str, Any]) -> Any:
    try:
        return eval(compile(text.strip(), "<call site>", "eval"), space)
    except ProbeError:
        return _UNKNOWN
    except Exception:  # names of a function's own, files, devices: whatever it is, it is not known here
        return _UNKNOWN


def _call(target: Any, signature: inspect.Signature, values: Mapping[str, Any]) -> Any:
    """Call with parameters by name, by place where they must be."""
    args: List[Any] = []
    kwargs: Dict[str, Any] = {}
    by_place = any(p.kind is p.VAR_POSITIONAL and values.get(p.name) for p in signature.parameters.values())
    for p in signature.parameters.values():
        if p.name not in values:
            if by_place and p.kind is p.POSITIONAL_OR_KEYWORD and p.default is not p.empty:
                args.append(p.default)
            continue
        value = values[p.name]
        if p.kind is p.VAR_POSITIONAL:
            args.extend(value)
        elif p.kind is p.VAR_KEYWORD:
            kwargs.update(value)
        elif p.kind is p.POSITIONAL_ONLY or (by_place and p.kind is p.POSITIONAL_OR_KEYWORD):
            args.append(value)
        else:
            kwargs[p.name] = value
    return target(*args, **kwargs)


def _module_in(value: Any) -> nn.Module:
    """The module that was made, also out of a tuple or dict. Raises ``not-built``."""
    if isinstance(value, nn.Module):
        return value
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    for item in items:
        if isinstance(item, nn.Module):
            return item
    raise ProbeError("not-built", f"a {type(value).__name__} came back, not a torch.nn.Module")


def _attribute(owner: Any, qualname: str) -> Any:
    for part in qualname.split("."):
        owner = getattr(owner, part)
    return owner


def _name(target: Any) -> str:
    return str(getattr(target, "__name__", target))


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:120]


def _blamed(error: BaseException, names: Sequence[str]) -> List[str]:
    """Arguments that the failing lines of sliced code speak of, innermost first."""
    lines: List[str] = []
    trace: Optional[TracebackType] = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name.startswith(FILE_PREFIX):
            lines.append(linecache.getline(name, trace.tb_lineno))
        trace = trace.tb_next
    found: List[str] = []
    for line in [*reversed(lines), str(error)]:
        found.extend(n for n in names if re.search(rf"\b{re.escape(n)}\b", line) and n not in found)
    return found
