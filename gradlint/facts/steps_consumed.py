"""Iterators of parameters that are used twice: which consumer comes second."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Iterator

from gradlint.facts.cfg import Guard, Node
from gradlint.facts.steps import Event, Region, StepFacts
from gradlint.facts.steps_states import follow, guards_held

_State = tuple[tuple[str, Event, Event | None], ...]
"""For each iterator that is in sight: its name, where it was made, and what used it up."""


@dataclasses.dataclass(frozen=True)
class SecondUse:
    """An iterator that was ``made`` once, used up by ``first``, and used again by ``second``."""

    region: Region
    made: Event
    first: Event
    second: Event


def second_uses(steps: StepFacts, lists: bool = False) -> Iterator[SecondUse]:
    """The second consumers, once for each iterator; a clip goes before another consumer.

    ``lists``: names that are bound to something that can be used again are followed as well.
    """
    inherited = _made_in_constructors(steps, lists)
    own = steps.objects.own if steps.objects is not None else str
    found: dict[tuple[str, str, int], list[SecondUse]] = {}
    for region in steps.regions:
        for use in _in_region(region, lists, inherited, own):
            found.setdefault((use.made.path, use.made.object, use.made.line), []).append(use)
    for uses in found.values():
        clips = [use for use in uses if "clip" in use.second.name]
        yield (clips or uses)[0]


def _in_region(region: Region, lists: bool, inherited: _State, own: Callable[[str], str]) -> Iterator[SecondUse]:
    before = _states(region, lists, inherited)
    held = guards_held(region.graph)
    places = {(event.path, event.location): index for index, event in region.of_kind("consume")}
    known = {name for name, _, _ in inherited}
    for index, event in region.of_kind("consume"):
        for state in _in_order(before.get(index, frozenset())):
            for name, made, first in state:
                mine = name == event.object or (name in known and name == own(event.object))
                other = places.get((first.path, first.location)) if first is not None else None
                if other is not None and _exclude(held.get(other, frozenset()), held.get(index, frozenset())):
                    continue
                if mine and first is not None:
                    yield SecondUse(region, made, first, event)


_SUBJECT = re.compile(r"(.+?)(?: == | in |\.startswith\()")


def _exclude(one: frozenset[Guard], other: frozenset[Guard]) -> bool:
    """Whether two sets of conditions ask one expression for different values: ``opt == "sgd"``, ``opt == "adam"``."""

    def asked(guards: frozenset[Guard]) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for guard in guards:
            match = _SUBJECT.match(guard.key) if guard.truth else None
            if match is not None:
                found.setdefault(match[1], set()).add(guard.key)
        return found

    mine, theirs = asked(one), asked(other)
    return any(not mine[subject] & theirs[subject] for subject in mine.keys() & theirs.keys())


def _states(region: Region, lists: bool, start: _State) -> dict[int, frozenset[_State]]:
    def transfer(node: Node[Event], state: _State) -> _State:
        event = node.event
        if event is None or event.kind not in {"iterator", "consume"}:
            return state
        others = tuple(entry for entry in state if entry[0] != event.object)
        if event.kind == "iterator" and event.written:
            moved = next((entry for entry in others if entry[0] == event.written), None)
            if moved is None:
                return others
            return (*(entry for entry in others if entry is not moved), (event.object, moved[1], moved[2]))
        if event.kind == "iterator":
            tracked = bool(event.roots) or (lists and event.value is not None)
            return (*others, (event.object, event, None)) if tracked else others
        mine = next((entry for entry in state if entry[0] == event.object), None)
        if mine is None or mine[2] is not None:
            return state
        return (*others, (mine[0], mine[1], event))

    return follow(region.graph, {region.graph.entry: frozenset({start})}, transfer)


def _in_order(states: Collection[_State]) -> list[_State]:
    """By the places in them, since the order of a set differs from run to run, and the first one is named."""
    return sorted(states, key=lambda s: [(n, *_place(made), *(_place(first) if first else ())) for n, made, first in s])


def _place(event: Event) -> tuple[str, int, int]:
    return event.path, event.line, event.location.column


def _made_in_constructors(steps: StepFacts, lists: bool) -> _State:
    """The attributes that one method binds and leaves used up, for the other methods."""
    found: dict[str, dict[str, tuple[str, Event, Event | None]]] = {}
    for region in steps.regions:
        bound = {e.object for _, e in region.of_kind("iterator") if e.object.startswith("self.")}
        for state in _in_order(_states(region, lists, ()).get(region.graph.exit, frozenset())) if bound else ():
            for name, made, first in state:
                if name in bound and first is not None:
                    found.setdefault(name, {}).setdefault(region.qualname, (name, made, first))
    return tuple(
        entry for name, by_region in sorted(found.items()) if len(by_region) == 1 for entry in by_region.values()
    )
