"""Iterators of parameters that are used twice: which consumer comes second."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from gradlint.facts.cfg import Node
from gradlint.facts.steps import Event, Region, StepFacts
from gradlint.facts.steps_states import follow

_State = tuple[tuple[str, Event, Event | None], ...]
"""For each iterator that is in sight: its name, where it was made, and what used it up."""


@dataclasses.dataclass(frozen=True)
class SecondUse:
    """An iterator that was ``made`` once, used up by ``first``, and used again by ``second``."""

    region: Region
    made: Event
    first: Event
    second: Event


def second_uses(steps: StepFacts, path: str, lists: bool = False) -> Iterator[SecondUse]:
    """The second consumers in the file ``path``, once for each iterator; a clip goes before another consumer.

    ``lists``: names that are bound to something that can be used again are followed as well.
    """
    inherited = _made_in_constructors(steps, lists)
    found: dict[tuple[str, int], list[SecondUse]] = {}
    for region in steps.regions:
        for use in _in_region(region, lists, inherited):
            if use.second.path == path and use.made.path == path:
                found.setdefault((use.made.object, use.made.line), []).append(use)
    for uses in found.values():
        clips = [use for use in uses if "clip" in use.second.name]
        yield (clips or uses)[0]


def _in_region(region: Region, lists: bool, inherited: _State) -> Iterator[SecondUse]:
    before = _states(region, lists, inherited)
    for index, event in region.of_kind("consume"):
        for state in before.get(index, frozenset()):
            for name, made, first in state:
                if name == event.object and first is not None:
                    yield SecondUse(region, made, first, event)


def _states(region: Region, lists: bool, start: _State) -> dict[int, frozenset[_State]]:
    def transfer(node: Node[Event], state: _State) -> _State:
        event = node.event
        if event is None or event.kind not in {"iterator", "consume"}:
            return state
        others = tuple(entry for entry in state if entry[0] != event.object)
        if event.kind == "iterator":
            tracked = bool(event.roots) or (lists and event.value is not None)
            return (*others, (event.object, event, None)) if tracked else others
        mine = next((entry for entry in state if entry[0] == event.object), None)
        if mine is None or mine[2] is not None:
            return state
        return (*others, (mine[0], mine[1], event))

    return follow(region.graph, {region.graph.entry: frozenset({start})}, transfer)


def _made_in_constructors(steps: StepFacts, lists: bool) -> _State:
    """The attributes that constructors leave used up, for the other methods."""
    found: dict[str, tuple[str, Event, Event | None]] = {}
    several: set[str] = set()
    for region in steps.regions:
        if not region.qualname.endswith(".__init__"):
            continue
        for state in _states(region, lists, ()).get(region.graph.exit, frozenset()):
            for entry in state:
                if entry[0].startswith("self."):
                    several.update({entry[0]} if entry[0] in found and found[entry[0]] != entry else ())
                    found[entry[0]] = entry
    return tuple(entry for name, entry in sorted(found.items()) if name not in several)
