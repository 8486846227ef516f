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
from gradlint.facts.steps_context import read_unit
from gradlint.facts.steps_events import Event, Frame, Kind, Lines
from gradlint.facts.steps_objects import Objects
from gradlint.facts.steps_read import Resolve, StepReader
from gradlint.facts.steps_scopes import Class, Function, Scopes, read_scopes
from gradlint.facts.steps_words import PARAMETER_WORDS, words

__all__ = ["Event", "Frame", "Kind", "Region", "StepFacts", "may_share", "read_steps"]

MAX_SUBCLASSES = 6
"""A method that subclasses change is read for at most this many of them."""

_MENTIONS = re.compile(r"(?<!scheduler)(?<!env)\.step\(|clip_grad|zero_grad\(")
"""A file without any of these has no training step of its own: a backward alone is no step."""
_TRAINING = frozenset({"backward", "clip", "unscale", "step", "zero_grad"})


@dataclasses.dataclass(frozen=True)
class Region:
    """One place where training steps begin: its graph, with helpers built in."""

    qualname: str
    """``Trainer.fit``; empty for the module's own statements."""
    path: str
    graph: Graph[Event]
    cls: str | None = None
    """The class of ``self``, where it is a subclass of the one that defines the method."""

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
            return False
        roots = [self.objects.own(root) for root in event.roots]
        given = self.objects.optimizers.get(stepped, frozenset())
        if not roots or not given:
            return None
        if any(_within(one, other) or _within(other, one) for one in roots for other in given):
            return True
        elsewhere = [found for key, found in self.objects.optimizers.items() if key != stepped]
        if all(any(_within(root, other) for found in elsewhere for other in found) for root in roots):
            return False
        return None


def may_share(one: Event, other: Event) -> bool:
    """Whether two clips may reach the same parameters: only modules of different names are told apart."""
    models = [root for event in (one, other) for root in event.roots if not _lists(root)]
    if not one.roots or not other.roots or len(models) < len(one.roots) + len(other.roots):
        return True
    return any(_within(a, b) or _within(b, a) for a in one.roots for b in other.roots)


def _lists(root: str) -> bool:
    return root.startswith("optimizer:") or bool(PARAMETER_WORDS & set(words(root)))


def _within(inner: str, outer: str) -> bool:
    return inner == outer or inner.startswith((f"{outer}.", f"{outer}["))


def read_steps(tree: ast.Module, text: str, path: str, resolve: Resolve | None = None, package: str = "") -> StepFacts:
    """The training steps of one file: a pure function of its tree and text.

    ``resolve`` finds the definition of a function imported from another file of the project, by its dotted name.
    """
    if not _MENTIONS.search(text):
        return StepFacts()
    scopes = read_scopes(tree, path, package)
    unit = read_unit(scopes, Lines(text))
    reader = StepReader(unit, resolve)
    regions = tuple(_regions(reader, scopes))
    models = {key: cls.qualname for key, cls in unit.objects.instances.items()}
    return StepFacts(regions, unit.objects, models)


def _regions(reader: StepReader, scopes: Scopes) -> Iterator[Region]:
    """Outermost functions first: what they build in is no region of its own."""
    called = _called(reader, scopes)
    functions = [function for function in scopes.functions if function.node in reader.unit.training]
    outermost = [None, *(function for function in functions if function.node not in called)]
    for function in outermost:
        yield from _read(reader, function, scopes)
    for function in functions:
        if function.node in called and function.node not in reader.entered:
            yield from _read(reader, function, scopes)


def _read(reader: StepReader, function: Function | None, scopes: Scopes) -> Iterator[Region]:
    for cls in _receivers(function, scopes):
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
                if target is not None and (function is None or target[0].node is not function.node):
                    found.add(target[0].node)
    return found


def _receivers(function: Function | None, scopes: Scopes) -> list[Class | None]:
    """The classes a method is to be read for: its own, and the subclasses in the file that change what it calls."""
    if function is None or function.owner is None:
        return [None]
    owner = function.owner
    changing = [
        cls
        for cls in scopes.classes
        if cls is not owner and owner in scopes.bases(cls) and scopes.method(cls, function.node.name) is function
    ]
    return [owner, *changing[:MAX_SUBCLASSES]]
