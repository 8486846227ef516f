"""Build the model of a request, and find out what it can be run on.

Constructor arguments come from call sites in the project, from defaults, from a surrounding model that makes the
class itself, and at last from names and annotations. What no code states is listed as assumed. A model that cannot be
built from its own parts is not built: nothing stands in for a submodule.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
from dataclasses import dataclass, field
from trace import Tracer
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from model_calls import (
    UNKNOWN,
    TooSlow,
    blamed_by,
    call_by_name,
    cpu_limit,
    evaluate_call,
    evaluate_inputs,
    recorded_lines,
    short,
    signature_of,
)
from model_errors import failed_assert, value_in
from model_inputs import FORWARD_LIMIT, Inputs, Search, Seen, Spec, captured, observe, seed_all
from model_missing import Missing
from model_values import NoGuess, alternatives, describe, guess, is_depth, is_plural
from modules import SlicedModules
from probe_errors import ProbeError, is_out_of_memory
from torch import Tensor, nn

BUILD_LIMIT = 8
"""Constructor calls that may fail or lead nowhere before the model counts as not built."""
OUTER_LIMIT = 6
"""Surrounding models that are considered for one class."""
OUTER_FORWARDS = 25
"""Forwards that the search for a surrounding model's inputs may take."""

ATTEMPT_SECONDS = 2.5
"""CPU time for one attempt, building and searching: a guess that leads to something huge must leave time for others."""

_LOADED = re.compile(r"pre_?trained|weights|checkpoint|ckpt|state_dict")
_WIDE = re.compile(r"channel|planes|dim|width|features|filters|ch$|^c$|^in_|^n$")
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
    called_with: Optional[Callable[[], Tuple[List[Any], Dict[str, Any]]]] = None
    """What the project calls the model with, where it says so."""
    open: bool = False
    """Whether the constructor takes ``**kwargs``."""
    called: bool = False
    """Whether the project shows a call of the surrounding model."""
    inside: Optional[Tuple[type, Plan]] = None
    """The class to take out of the surrounding model that the other plan builds."""

    def with_override(self, name: str, value: Any) -> Plan:
        """The same plan with another value for one guessed argument."""
        overrides = {**self.overrides, name: value}
        sizes = {**self.sizes, name: value}
        return Plan(self.make, self.text, sizes, self.guessed, self.notes, overrides, self.called_with, self.open)

    def without(self, name: str) -> Plan:
        """The same plan without one guessed argument."""
        del self.guessed[name]
        return self

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
            raise ProbeError("not-built", f"{entry}: {short(error)}") from error
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
        from_calls: List[Plan] = []
        for call in calls:
            plan = self._from_call(target, call)
            if plan is not None and plan.guessed:
                from_calls.append(plan)
            elif plan is not None:
                yield plan
        if self.body.get("only_calls"):
            yield from from_calls
            return
        guessed = self._guessed(target)
        if guessed is not None and not guessed.guessed:
            yield guessed
        outers = list(self._outers(target)) if kind == "class" else []
        if any(_hides_depth(call, target) for call in calls):  # only who makes its maker tells how deep it is
            yield from (p for p in outers if p.called)
        stated = [p for p in outers if p.inside and (p.called or not p.inside[1].guessed)]
        if guessed is None or "depth_guessed" in guessed.notes:  # a surrounding model may state the depth
            yield from stated
            stated = []
        yield from from_calls
        if guessed is not None and guessed.guessed:
            yield guessed
        yield from stated
        yield from (p for p in outers if p.inside and p.inside[1].guessed and not p.called)

    def _variable(self, name: str) -> Plan:
        entry = str(self.body["entry"])

        def make(overrides: Dict[str, Any]) -> nn.Module:
            return _module_in(_attribute(self.slices.reload(entry), name))

        return Plan(make, name)

    def _from_call(self, target: Any, call: Mapping[str, Any]) -> Optional[Plan]:
        """The arguments of a call site; what cannot be evaluated there is guessed, or left to its default."""
        signature = signature_of(target)
        module = str(call.get("module") or self.body["entry"])
        if signature is None or not self.slices.holds(module):
            return None
        args, kwargs = [str(a) for a in call.get("args", ())], dict(call.get("kwargs", {}))
        plan = Plan(lambda _: nn.Identity(), "")

        def make(overrides: Dict[str, Any]) -> nn.Module:
            known = evaluate_call(self.slices, module, signature, args, kwargs)
            others = {k: _rebuilt(v) for k, v in {**plan.guessed, **overrides}.items()}
            values = {**known, **others}
            return _module_in(call_by_name(target, signature, values))

        try:
            known = evaluate_call(self.slices, module, signature, args, kwargs)
            self._fill(signature, known, plan)
        except (NoGuess, ProbeError) as error:
            self._note(error)
            return None
        if call.get("inputs"):
            plan.called_with = functools.partial(evaluate_inputs, self.slices, module, call["inputs"])
        shown = [*args, *(f"{k}={v}" for k, v in kwargs.items())]
        plan.make, plan.text = make, f"{_name(target)}({', '.join(shown)})"
        return plan

    def _guessed(self, target: Any, depth: int = 0) -> Optional[Plan]:
        """Defaults, and guesses for what has none."""
        signature = signature_of(target)
        if signature is None:
            self._note(ProbeError("not-built", f"{_name(target)}: its constructor cannot be read"))
            return None
        plan = Plan(lambda _: nn.Identity(), "")

        def make(overrides: Dict[str, Any]) -> Any:
            fresh = {k: _rebuilt(v) for k, v in {**plan.guessed, **overrides}.items()}
            made = call_by_name(target, signature, fresh)
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
        plan.open = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
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
                calls = [c for maker, c in self.body.get("outer_calls") or () if maker == outer.__name__]
                for plan in [*(self._from_call(outer, c) for c in calls), self._guessed(outer)]:
                    if plan is not None:
                        inside = Plan(plan.make, f"{_name(target)} in {plan.text}")
                        inside.inside = (target, plan)
                        inside.called = bool(calls)
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
                        model = plan.make(plan.overrides) if outer else self._initialised(plan.make(plan.overrides))
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
            make = functools.partial(plan.make, plan.overrides)
            if not outer:
                make = functools.partial(self._made, make)
            return Recipe(make, inputs, plan.text, assumed, seen)
        return None

    def _made(self, make: Callable[[], nn.Module]) -> nn.Module:
        return self._initialised(make())

    def _initialised(self, model: nn.Module) -> nn.Module:
        """The model after what code outside of it does to its weights, in the project's own words."""
        for name, how, home in self.body.get("initialisers") or ():
            module = self.slices.load(str(home))
            if how == "method":
                call = ast.parse(str(name), mode="eval").body
                args = call.args if isinstance(call, ast.Call) else []
                named = call.keywords if isinstance(call, ast.Call) else []
                method = getattr(model, str(name).partition("(")[0])
                method(*map(ast.literal_eval, args), **{str(k.arg): ast.literal_eval(k.value) for k in named})
            elif how == "apply":
                model.apply(getattr(module, name))
            else:
                getattr(module, name)(model)
        return model

    def _inputs(
        self, model: nn.Module, lines: Mapping[int, int], plan: Plan, outer: bool
    ) -> Tuple[Inputs, Optional[Seen]]:
        search = Search(model, lines, plan.sizes, OUTER_FORWARDS if outer else FORWARD_LIMIT)
        hints = [] if outer else self.body.get("inputs") or []
        try:
            return search.run(hints, _called_with(model, plan)), search.seen
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
        seen = observe(self._initialised(model.get_submodule(path)), lines, inputs, inputs.batch)
        make = functools.partial(self._made, lambda: recipe.make().get_submodule(path))
        return Recipe(make, inputs, text, recipe.assumed, seen)

    def _repairs(self, plan: Plan, error: BaseException) -> Iterator[Plan]:
        """Plans with another value for a guessed or missing argument that the failing lines speak of."""
        text = str(error)
        if isinstance(error, OSError):  # it looks for weights on disk or in the net: begin with random ones
            for name, value in plan.sizes.items():
                if _LOADED.search(name.lower()) and value and not callable(value):
                    yield plan.with_override(name, False if isinstance(value, bool) else None)
        if "at least 1 at dimension 0" in text or re.search(
            r"(size|shape) \[0,", text
        ):  # 3 channels by a reduction of 16
            for name, value in plan.guessed.items():
                if isinstance(value, int) and not isinstance(value, bool) and 1 < value < 64 and _WIDE.search(name):
                    yield plan.with_override(name, 64)
        for name in re.findall(r"`(\w+)`", text):  # "`depth` must be passed in"
            yield from self._asked_by_name(plan, name)
        twice = re.search(r"multiple values for (?:keyword )?argument '(\w+)'", str(error))
        if twice and twice[1] in plan.guessed:  # the constructor passes it on itself
            yield plan.without(twice[1])
        candidates = {**{k: v for k, v in plan.sizes.items() if v is None}, **plan.guessed, **plan.overrides}
        yield from _allowed(plan, candidates, error)
        together = _all_missing(plan, error)
        if together is not None:
            yield together
        for name in blamed_by(error, list(candidates)):
            if name in plan.overrides and plan.overrides[name] != plan.guessed.get(name):
                continue  # one repair per argument
            for value in alternatives(name, candidates[name], error)[:2]:
                yield plan.with_override(name, value)

    def _asked_by_name(self, plan: Plan, name: str) -> Iterator[Plan]:
        """Plans that pass ``name`` too, where the constructor, or that of a part, takes ``**kwargs``."""
        notes: Dict[str, Any] = {}
        try:
            value = guess(name, inspect.Parameter.empty, notes)
        except NoGuess:
            return
        plan.notes.update(notes)
        yield from _with_more(plan, name, value)

    def _note(self, error: BaseException) -> None:
        if isinstance(error, ProbeError):
            self.failures.append(error)
        elif isinstance(error, NoGuess):
            self.failures.append(ProbeError("not-built", f"nothing tells what to pass as {error}; {HINT}"))
        else:
            self.failures.append(ProbeError("not-built", f"{short(error)}; {HINT}"))


def _allowed(plan: Plan, candidates: Mapping[str, Any], error: BaseException) -> Iterator[Plan]:
    """Plans with the values that a failed ``assert mode in {"binary", "multiclass"}`` lists."""
    frame, node = failed_assert(error)
    test = node.test if node is not None else None
    if frame is None or not isinstance(test, ast.Compare) or not isinstance(test.ops[0], ast.In):
        return
    name, listed = ast.unparse(test.left), value_in(test.comparators[0], frame)
    if name in candidates and isinstance(listed, (list, tuple, set, frozenset, dict)):
        for value in sorted(listed, key=str)[:3]:
            yield plan.with_override(name, value)


def _all_missing(plan: Plan, error: BaseException) -> Optional[Plan]:
    """A plan with all the arguments that are None and that an error names: "depth, heads and mlp_dim must be given"."""
    empty = [name for name, value in plan.sizes.items() if value is None and name not in plan.overrides]
    found = [name for name in empty if re.search(rf"\b{re.escape(name)}\b", str(error))]
    if len(found) < 2:
        return None
    for name in found:
        for value in alternatives(name, None, error)[:1]:
            plan = plan.with_override(name, value)
    return plan


def _with_more(plan: Plan, name: str, value: Any) -> Iterator[Plan]:
    """The plan of a part, or of a part of it, with one more argument, where it takes ``**kwargs``."""
    if plan.open and name not in plan.sizes:
        yield plan.with_override(name, value)
    for argument, part in {**plan.guessed, **plan.overrides}.items():
        if isinstance(part, _Part):
            for better in _with_more(part.plan, name, value):
                yield plan.with_override(argument, _Part(better))


@dataclass(frozen=True)
class _Part:
    """A submodule or configuration of the project's own, made anew with every model."""

    plan: Plan

    def __str__(self) -> str:
        return self.plan.text


def _hides_depth(call: Mapping[str, Any], target: Any) -> bool:
    """Whether a call passes on a number of layers, or their widths, that it was given itself."""
    signature = signature_of(target)
    names = [p.name for p in signature.parameters.values()] if signature is not None else []
    given = dict(zip(names, call.get("args", ())))
    given.update(call.get("kwargs", {}))
    return any((is_depth(n) or is_plural(n)) and str(text).isidentifier() for n, text in given.items())


def _shown(value: Any) -> Any:
    return str(value) if isinstance(value, _Part) else describe(value)


def _rebuilt(value: Any) -> Any:
    return value.plan.make(value.plan.overrides) if isinstance(value, _Part) else value


def _called_with(model: nn.Module, plan: Plan) -> Optional[Spec]:
    """Inputs like those of the project's own call, if all of it can be evaluated."""
    if plan.called_with is None:
        return None
    args, kwargs = plan.called_with()
    values = [*args, *kwargs.values()]
    if not values or any(v is UNKNOWN for v in values):
        return None
    batch = next((v.shape[0] for v in values if isinstance(v, Tensor) and v.dim()), 1)
    return captured(model, args, kwargs, batch).spec


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
