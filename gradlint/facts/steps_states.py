"""What state the gradients of one optimizer are in, at every point of a step: the ground of the order rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from gradlint.facts.cfg import Graph, Node, solve
from gradlint.facts.steps import Region, StepFacts
from gradlint.facts.steps_events import Event, Frame
from gradlint.rule import Location

Gradient = Literal["unknown", "cleared", "fresh", "scaled", "unscaled", "clipped", "consumed"]


def gradient_states(
    facts: StepFacts, region: Region, step: Event, start: frozenset[Gradient] = frozenset({"unknown"})
) -> dict[int, frozenset[Gradient]]:
    """The possible states, before each node of the region, of the gradients that ``step`` consumes.

    A path brings exactly one state; where paths meet, the sets are united, to a fixed point through loops.
    """

    def transfer(node: Node[Event], states: frozenset[Gradient]) -> frozenset[Gradient]:
        if node.event is None:
            return states
        event = node.event
        return frozenset(after_event(facts, event, step, state) for state in states)

    return solve(region.graph, {region.graph.entry: start}, transfer, frozenset.union)


def after_event(facts: StepFacts, event: Event, step: Event, state: Gradient) -> Gradient:
    """The state after one event of the gradients that ``step`` consumes."""
    if event.kind == "backward":
        return "scaled" if event.scaler else "fresh"
    if event.kind == "unknown":
        return "unknown" if event.doubt == "strong" else state
    if event.kind not in {"clip", "unscale", "step", "zero_grad"} or facts.paired(event, step) is False:
        return state
    if event.kind == "zero_grad":
        return "cleared"
    if event.kind == "step":
        return "consumed"
    if event.kind == "unscale":
        return "unscaled" if state == "scaled" else state
    return "clipped" if state in {"fresh", "unscaled"} else state


@dataclasses.dataclass(frozen=True)
class Turn:
    """One iteration as the loop body is written, seen from one event: the innermost loop in which that event meets a
    backward and a step. Without such a loop it is the whole region."""

    region: Region
    graph: Graph[Event]
    loop: int | None


def turn_of(region: Region, index: int) -> Turn | None:
    """The iteration an event belongs to; None where the region has no backward or no step."""
    loops: Sequence[int | None] = (*reversed(region.graph.nodes[index].loops), None)
    for loop in loops:
        kinds = {event.kind for node, event in region.events if loop is None or loop in region.graph.nodes[node].loops}
        if {"backward", "step"} <= kinds:
            return Turn(region, region.graph.turn_of(loop), loop)
    return None


def common_frame(events: Sequence[Event], path: str) -> tuple[Frame, int]:
    """The innermost function (of the file ``path``) in which all the events happen, and its depth."""
    first = events[0].frames
    depth = 1
    while depth < len(first) and all(e.frames[depth : depth + 1] == first[depth : depth + 1] for e in events):
        depth += 1
    while depth > 1 and first[depth - 1].path != path:
        depth -= 1
    return first[depth - 1], depth - 1


def place_in(event: Event, depth: int) -> Location:
    """Where an event stands in the function at ``depth``: its own place, or the call that leads to it."""
    if len(event.frames) > depth + 1:
        call = event.frames[depth + 1].call
        if call is not None:
            return call
    return event.location
