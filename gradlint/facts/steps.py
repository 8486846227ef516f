"""Training steps: control-flow graphs whose nodes are events on gradients, one for each place where a step begins.

A *region* is a function, method, closure, or the module's statements, with the helpers it calls built in. Only the
outermost ones are regions: a helper that is called in the file is read where it is called.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
from collections.abc import Iterator

from gradlint.facts.cfg import Graph, build
from gradlint.facts.steps_context import Units
from gradlint.facts.steps_events import Event, Frame, Kind
from gradlint.facts.steps_objects import Objects, merged
from gradlint.facts.steps_project import Source
from gradlint.facts.steps_read import StepReader
from gradlint.facts.steps_scopes import Class, Function, Scopes
from gradlint.facts.steps_trainers import Course, course_of
from gradlint.facts.steps_words import PARAMETER_WORDS, callee, word_set, words

__all__ = ["Event", "Frame", "Kind", "Region", "Source", "StepFacts", "Units", "may_share", "read_steps"]

MAX_SUBCLASSES = 6
"""A method that subclasses change is read for at most this many of them."""

_MENTIONS = re.compile(r"(?<!scheduler)(?<!env)\.step\(|clip_grad|zero_grad\(|optim\.[A-Z]|backward\(")
"""A file without any of these has no part in a training step."""
_TRAINING = frozenset({"backward", "clip", "unscale", "step", "zero_grad", "consume"})


@dataclasses.dataclass(frozen=True)
class Region:
    """One place where training steps begin: its graph, with helpers built in."""

    qualname: str
    """``Trainer.fit``; empty for the module's own statements."""
    path: str
    graph: Graph[Event]
    cls: str | None = None
    """The class of ``self``, where it is a subclass of the one that defines the method."""
    trainer: str = ""
    """The framework whose trainer runs the step, if one does: what it does is written out, and has no place in the
    text."""

    @functools.cached_property
    def events(self) -> tuple[tuple[int, Event], ...]:
        """The events that some path reaches, with their nodes, in source order."""
        return tuple(self.graph.events())

    def of_kind(self, kind: Kind) -> Iterator[tuple[int, Event]]:
        """The nodes and events of one kind."""
        return ((index, event) for index, event in self.events if event.kind == kind)


@dataclasses.dataclass(frozen=True)
class StepFacts:
    """What one file says of training steps."""

    regions: tuple[Region, ...] = ()
    objects: Objects | None = None
    models: dict[str, str] = dataclasses.field(default_factory=dict)
    """The class of an object, where it is made from a class of this file: ``{"model": "SimpleNet"}``."""
    files: dict[str, Source] = dataclasses.field(default_factory=dict)
    """The files of the project in which events happen, by their path; the file itself is the first."""
    accumulates: bool | None = None
    """Whether accelerate is told to accumulate over more than one micro-batch; None where the text does not show it."""

    def spot(self, event: Event) -> dict[str, object]:
        """Where an event happens, as the trace of a replay tells it: its line, and its module if it is another file."""
        own = event.path == next(iter(self.files), event.path)
        line = event.value.line if event.kind == "zero_grad" and event.value is not None else event.line
        return {"line": line, "module": "" if own else self.files[event.path].module}

    def text(self, path: str) -> str:
        """The text of a file in which events happen."""
        return self.files[path].text

    def paired(self, event: Event, step: Event) -> bool | None:
        """Whether an event concerns the parameters that a step updates; ``None``: the text does not tell.

        Two sets of parameters are told apart only if those of the event belong to another optimizer of the file:
        one module may have two names.
        """
        if not step.object or self.objects is None:
            return None
        if event.object == step.object or f"optimizer:{step.object}" in event.roots:
            return True
        if any(root.startswith("optimizer:") for root in event.roots):
            return False
        mine, stepped = self.objects.own(event.object), self.objects.own(step.object)
        if mine and mine in self.objects.optimizers and stepped in self.objects.optimizers:
            both = [self.given(event.object), self.given(step.object)]
            shared = any(_within(a, b) or _within(b, a) for a in both[0] for b in both[1])
            return None if shared else False
        if self.named_apart(event, step):
            return False
        roots = [*event.roots, *(own for root in event.roots if (own := self.objects.own(root)) != root)]
        given = self.given(step.object)
        if not roots or not given:
            return None
        if any(_within(one, other) or _within(other, one) for one in roots for other in given):
            return True
        if any(map(_lists, given)):
            return None  # a list of parameters may hold those of any module
        if all(self.objects.distinct(one, other) for one in event.roots for other in self.given(step.object)):
            return False
        elsewhere = [found for key, found in self.objects.optimizers.items() if key != stepped]
        if all(any(_within(root, other) for found in elsewhere for other in found) for root in roots):
            return False
        return None

    def given(self, key: str) -> frozenset[str]:
        """The roots of the parameters that an optimizer was given, in the terms of the regions; empty: not known."""
        assert self.objects is not None
        found = self._given.get(key, frozenset())
        own = self.objects.own(key)
        if found or own == key:
            return found or self.objects.optimizers.get(key, frozenset())
        made = self._given.get(own, frozenset()) or self.objects.optimizers.get(own, frozenset())
        name = key.partition(".")[0]  # `Adam(self.parameters())` in the class of the object
        return made | {name + root[4:] for root in made if root == "self" or root.startswith("self.")}

    @functools.cached_property
    def _given(self) -> dict[str, frozenset[str]]:
        """What each constructor of an optimizer is given, where the regions run it."""
        found: dict[str, frozenset[str]] = {}
        for region in self.regions:
            for _, event in region.of_kind("make"):
                if event.roots:
                    found[event.object] = found.get(event.object, frozenset()) | event.roots
        return found

    def named_apart(self, event: Event, step: Event) -> bool:
        """Whether the name of what an event reaches is that of another optimizer: ``critic`` beside ``actor_optim``."""
        mine, tag = [_tag(root) for root in event.roots or {event.object}], _tag(step.object)
        if not tag or not all(mine) or any(_alike(one, tag) for one in mine):
            return False
        return all(any(_alike(one, other) for other in self._tags) for one in mine)

    def named_together(self, event: Event, step: Event) -> bool:
        """Whether the name of what an event reaches is that of this optimizer, and of no other."""
        mine, tag = [_tag(root) for root in event.roots or {event.object}], _tag(step.object)
        if not tag or not all(mine):
            return False
        return all(_alike(one, tag) and sum(_alike(one, other) for other in self._tags) == 1 for one in mine)

    @functools.cached_property
    def _tags(self) -> frozenset[tuple[str, ...]]:
        """What tells the optimizers apart that are stepped."""
        found = {_tag(e.object) for region in self.regions for _, e in region.of_kind("step")}
        return frozenset(tag for tag in found if tag)

    def related(self, event: Event, subject: Event) -> bool | None:
        """As :meth:`paired`, where either of the two may be the step."""
        return self.paired(event, subject) if subject.kind == "step" else self.paired(subject, event)


def may_share(one: Event, other: Event) -> bool:
    """Whether two clips may reach the same parameters: only modules of different names are told apart."""
    models = [root for event in (one, other) for root in event.roots if not _lists(root)]
    if not one.roots or not other.roots or len(models) < len(one.roots) + len(other.roots):
        return True
    return any(_within(a, b) or _within(b, a) for a in one.roots for b in other.roots)


_GENERIC = word_set(
    """optimizer optimizers optim optims opt opts optimiser solver model models net nets network networks module modules
    self the params parameters parameter param adam adamw sgd lbfgs rmsprop adagrad adamax radam list dict"""
)


def _tag(key: str) -> tuple[str, ...]:
    """What tells one of several models or optimizers apart: ``self.critic2_optim`` gives ``critic 2``."""
    item = re.search(r"\[['\"](\w+)['\"]\]$", key)
    parts = [item[1]] if item else []
    key = re.sub(r"^\w+\(\)\.", "", key.removeprefix("optimizer:"))  # what was made in place has no name
    parts.extend(reversed(re.sub(r"\[.*?\]|\(.*?\)", "", key).split(".")))
    for part in parts:
        found = [*(word for word in words(part) if word not in _GENERIC), *re.findall(r"\d+", part)]
        if found:
            return tuple(found)
    return ()


def _alike(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """``g`` and ``generator``, ``critic 2`` and ``critic 2``, but not ``critic`` and ``critic 2``."""
    return len(one) == len(other) and all(a.startswith(b) or b.startswith(a) for a, b in zip(one, other, strict=True))


def _lists(root: str) -> bool:
    return root.startswith("optimizer:") or bool(PARAMETER_WORDS & set(words(root)))


def _within(inner: str, outer: str) -> bool:
    return inner == outer or inner.startswith((f"{outer}.", f"{outer}["))


def read_steps(source: Source, known: Units | None = None) -> StepFacts:
    """The training steps of one file, with the helpers it uses from others: a pure function of their texts.

    ``known`` keeps what was read of other files of the project, from one file to the next.
    """
    if not _MENTIONS.search(source.text):
        return StepFacts()
    reader = StepReader(source, known or Units())
    scopes = reader.unit.scopes
    regions = tuple(_regions(reader, scopes))
    bases = {base.path for cls in scopes.classes for base in reader.cache.bases(cls)}
    objects = merged(
        [reader.unit.objects, *(u.objects for path, u in reader.units.items() if path in bases - {source.path})]
    )
    models = {key: cls.qualname for key, cls in reader.unit.objects.instances.items()}
    paths = dict.fromkeys([source.path, *(e.path for region in regions for _, e in region.events)])
    files = {path: reader.cache.sources[path] for path in paths}
    return StepFacts(regions, objects, models, files, _accumulates(source.tree))


def _accumulates(tree: ast.Module) -> bool | None:
    """What the ``Accelerator(...)`` of a file says of ``gradient_accumulation_steps``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and callee(node) in {"Accelerator", "GradientAccumulationPlugin"}:
            for keyword in node.keywords:
                if keyword.arg in {"gradient_accumulation_steps", "num_steps"}:
                    return not (isinstance(keyword.value, ast.Constant) and keyword.value.value == 1)
    return None


def _regions(reader: StepReader, scopes: Scopes) -> Iterator[Region]:
    """Outermost functions first: what they build in is no region of its own."""
    called = _called(reader, scopes)
    functions = [function for function in scopes.functions if function.node in reader.unit.training]
    courses = [(cls, course) for cls in scopes.classes if (course := course_of(cls, reader.cache)) is not None]
    by_hand = {course.step.node: (cls, course) for cls, course in courses if not course.trainer}
    outermost = [None, *(function for function in functions if function.node not in called)]
    for function in outermost:
        if function is not None and function.node in by_hand:
            yield _within_trainer(reader, *by_hand[function.node])
        else:
            yield from _read(reader, function)
    for function in functions:
        if function.node in called and function.node not in reader.entered:
            yield from _read(reader, function)
    for function in functions:
        if function.node in called and function.node in reader.entered & reader.pruned:
            yield from (region for region in _read(reader, function) if _steps_in_a_loop(region))
    for cls, course in courses:
        if course.trainer and any(method.node in reader.unit.training for method in cls.methods.values()):
            yield _within_trainer(reader, cls, course)


def _steps_in_a_loop(region: Region) -> bool:
    """Whether a region is a training loop of its own: other calls of it may take the branches that this file's do
    not."""
    looping = {e.kind for k, e in region.events if region.graph.nodes[k].loops}
    return {"backward", "step"} <= looping


def _within_trainer(reader: StepReader, cls: Class, course: Course) -> Region:
    """A training step with the loop that a framework runs round it."""
    context = dataclasses.replace(reader.context_of(course.step, cls), active=())
    graph = build(course.body, context, reader)
    return Region(course.step.qualname, reader.unit.path, graph, trainer=course.trainer)


def _read(reader: StepReader, function: Function | None) -> Iterator[Region]:
    for cls in _receivers(function, reader):
        region = _region(reader, function, cls)
        if any(event.kind in _TRAINING for _, event in region.events):
            yield region


def _region(reader: StepReader, function: Function | None, cls: Class | None) -> Region:
    body = reader.unit.scopes.module.node.body if function is None else function.node.body
    graph = build(body, reader.context_of(function, cls), reader)
    inherited = cls is not None and function is not None and cls is not function.owner
    return Region(
        function.qualname if function else "", reader.unit.path, graph, cls.qualname if inherited and cls else None
    )


def _called(reader: StepReader, scopes: Scopes) -> set[ast.AST]:
    """The functions that another function of the file calls, or that stand inside one."""
    found: set[ast.AST] = set()
    for function in (None, *scopes.functions):
        if function is not None and function.node not in reader.unit.training:
            continue
        context = reader.context_of(function)
        body = scopes.module.node.body if function is None else function.node.body
        for node in (inner for statement in body for inner in ast.walk(statement)):
            if not isinstance(node, ast.Call):
                continue
            names = [node.func, *node.args] if isinstance(node.func, ast.Attribute) else [node.func]
            for name in names:
                call = node if name is node.func else ast.copy_location(ast.Call(name, [], []), node)
                target = reader.target(call, context, None)
                helper = target.function if target is not None else None
                if helper is not None and (function is None or helper.node is not function.node):
                    found.add(helper.node)
    return found


def _receivers(function: Function | None, reader: StepReader) -> list[Class | None]:
    """The classes a method is to be read for: its own, and the subclasses in the file that change what it calls."""
    if function is None or function.owner is None:
        return [None]
    owner, cache = function.owner, reader.cache
    changing = [
        cls
        for cls in reader.unit.scopes.classes
        if cls is not owner and owner in cache.bases(cls) and cache.method(cls, function.node.name) is function
    ]
    return [owner, *changing[:MAX_SUBCLASSES]]
