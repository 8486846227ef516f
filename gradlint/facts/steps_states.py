"""What state the gradients of one optimizer are in, at every point of a step: the ground of the order rules."""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, TypeVar

from gradlint.facts.cfg import Graph, Guard, Node, solve
from gradlint.facts.steps import Region, StepFacts
from gradlint.facts.steps_context import Context
from gradlint.facts.steps_events import Event, Frame, Kind
from gradlint.facts.steps_words import words
from gradlint.rule import Location

S = TypeVar("S", bound=Hashable)

MAX_TRACKED = 8
"""So many conditions are followed at once, those that are tested most often; the others may go either way each time."""
MAX_STATES = 20_000
"""Beyond so many states no condition is followed."""

Phase = Literal[
    "unknown",
    "none",
    "cleared",
    "dropped",
    "fresh",
    "scaled",
    "unscaled",
    "clipped",
    "scaled-clipped",
    "consumed",
    "spent",
    "shared",
]
"""What the gradients are: ``none`` before any backward, ``dropped`` where a backward was cleared before a step,
``consumed`` after the step, ``spent`` where they were cleared after it, ``shared`` where another optimizer's step
came after the backward."""


# -- paths


def follow(
    graph: Graph[Event],
    start: Mapping[int, frozenset[S]],
    transfer: Callable[[Node[Event], S], S | None],
    tracking: bool = True,
) -> dict[int, frozenset[S]]:
    """The possible states before each node, to a fixed point, path by path.

    ``transfer`` gives the state after a node for one before it; None ends the path. A condition that is tested again
    goes the same way as before, until a name in it is bound anew or the turn of a loop ends; not so in a graph where
    that makes more than :data:`MAX_STATES` states.
    """
    tracked = _tracked(graph) if tracking else frozenset[str]()
    names = {guard.key: guard.names for node in graph.nodes for guard in node.guards}

    before: dict[int, set[tuple[S, frozenset[tuple[str, bool]]]]] = {}
    work: deque[tuple[int, S, frozenset[tuple[str, bool]]]] = deque()

    def reach(index: int, state: S, known: frozenset[tuple[str, bool]]) -> None:
        found = before.setdefault(index, set())
        if (state, known) not in found:
            found.add((state, known))
            work.append((index, state, known))

    for index, states in start.items():
        for state in states:
            reach(index, state, frozenset())
    # Each state goes through each node once: what a set of states becomes is the union of what its states become.
    count = 0
    while work:
        count += 1
        if tracking and count > MAX_STATES:
            return follow(graph, start, transfer, tracking=False)
        index, state, known = work.popleft()
        node = graph.nodes[index]
        after = transfer(node, state)
        if after is None:
            continue
        if node.label == "assume":
            told = {(guard.key, guard.truth) for guard in node.guards if guard.key in tracked}
            if any((key, not truth) in known for key, truth in told):
                continue
            known = known | told
        elif node.label == "bind":
            known = frozenset((key, truth) for key, truth in known if not names[key] & node.bound)
        elif node.label == "turn":
            bound = graph.bound[node.loops[-1]]
            known = frozenset((key, truth) for key, truth in known if not names[key] & bound)
        for target in graph.successors[index]:
            reach(target, after, known)
    return {index: frozenset(state for state, _ in found) for index, found in before.items()}


def _tracked(graph: Graph[Event]) -> frozenset[str]:
    """The conditions that more than one test asks."""
    count = Counter((guard.key, guard.truth) for node in graph.nodes for guard in node.guards)
    asked = Counter({key: max(count[key, True], count[key, False]) for key, _ in count})
    return frozenset(key for key, times in asked.most_common(MAX_TRACKED) if times > 1)


def guards_held(graph: Graph[Event]) -> dict[int, frozenset[Guard]]:
    """The conditions that hold before each node on every path from the entry.

    What a counter decided stays decided where it begins anew: ``if seen == length: seen = 0; optimizer.step()``.
    """

    def transfer(node: Node[Event], held: frozenset[Guard]) -> frozenset[Guard]:
        if node.label == "assume":
            return held | frozenset(node.guards)
        if node.label == "bind":
            return frozenset(guard for guard in held if guard.counter or not guard.names & node.bound)
        return held

    return solve(graph, {graph.entry: frozenset()}, transfer, frozenset.intersection)


# -- iterations


@dataclasses.dataclass(frozen=True)
class Turn:
    """One iteration as the loop body is written, seen from one event: the innermost loop in which that event meets a
    backward and a step. Without such a loop it is the whole region."""

    region: Region
    graph: Graph[Event]
    loop: int | None

    def holds(self, index: int) -> bool:
        """Whether a node belongs to the iteration."""
        return self.loop is None or self.loop in self.graph.nodes[index].loops

    def events(self, *kinds: Kind) -> Iterator[tuple[int, Event]]:
        """The nodes and events of the iteration, of these kinds if any are given."""
        for index, event in self.region.events:
            if self.holds(index) and (not kinds or event.kind in kinds):
                yield index, event

    def frames(self, events: Sequence[Event]) -> tuple[Frame, ...]:
        """The functions, outermost first, on the way to the loop; without one, to where all the events happen."""
        if self.loop is not None:
            context = self.graph.frames[self.loop]
            assert isinstance(context, Context)
            return context.frames
        shared = events[0].frames
        for event in events:
            same = 0
            while same < min(len(shared), len(event.frames)) and shared[same] == event.frames[same]:
                same += 1
            shared = shared[:same]
        return shared

    def own_guards(self, event: Event) -> frozenset[Guard]:
        """The conditions that hold wherever an event of the iteration happens."""
        held = guards_held(self.graph)
        found = [held.get(index, frozenset()) for index, other in self.events(event.kind) if other == event]
        return found[0].intersection(*found[1:]) if found else frozenset()

    def ends(self) -> frozenset[int]:
        """The nodes from which the iteration is left or begins again."""
        return frozenset(
            index
            for index, node in enumerate(self.graph.nodes)
            if (node.label == "turn" and node.loops[-1:] == ((self.loop,) if self.loop is not None else ()))
            or (self.loop is None and index == self.graph.exit)
        )


def turn_of(region: Region, index: int, kinds: frozenset[str] = frozenset({"backward", "step"})) -> Turn | None:
    """The iteration an event belongs to; None where the region has no backward or no step."""
    loops: Sequence[int | None] = (*reversed(region.graph.nodes[index].loops), None)
    for loop in loops:
        found = {event.kind for node, event in region.events if loop is None or loop in region.graph.nodes[node].loops}
        if kinds <= found:
            return Turn(region, region.graph.turn_of(loop), loop)
    return None


def reaches(graph: Graph[Event], start: int, goal: int) -> bool:
    """Whether some path leads from one node to another."""
    seen, work = {start}, [start]
    while work:
        for target in graph.successors[work.pop()]:
            if target == goal:
                return True
            if target not in seen:
                seen.add(target)
                work.append(target)
    return False


def one_optimizer(turn: Turn) -> bool:
    """Whether the steps of an iteration are all of one optimizer."""
    return len({e.object for _, e in turn.events("step")}) <= 1


# -- the gradients of one optimizer


WAITING: frozenset[Phase] = frozenset({"fresh", "scaled", "unscaled", "clipped", "scaled-clipped"})
"""The phases in which gradients wait for a step."""
State = tuple[Phase, frozenset[str]]
"""The phase, and the names of losses that were scaled and not yet propagated."""


def phases(
    facts: StepFacts,
    graph: Graph[Event],
    subject: Event,
    start: Phase = "unknown",
    entry: int | None = None,
    passed_over: Callable[[Event], bool] = lambda event: False,
) -> dict[int, frozenset[Phase]]:
    """The possible phases, before each node, of the gradients that ``subject`` concerns.

    ``subject`` is a step, or a clip. ``graph`` is one iteration, or a whole region with its loops. ``passed_over``
    are unknown calls that do nothing of interest.
    """
    alone = _alone(graph, subject)

    def transfer(node: Node[Event], state: State) -> State | None:
        if node.event is None or (node.event.kind == "unknown" and passed_over(node.event)):
            return state
        return _after(facts, node.event, subject, state, alone)

    first = graph.entry if entry is None else entry
    before = follow(graph, {first: frozenset({(start, frozenset[str]())})}, transfer)
    return {index: frozenset(phase for phase, _ in found) for index, found in before.items()}


def _after(facts: StepFacts, event: Event, subject: Event, state: State, alone: bool) -> State:
    phase, scaled = state
    if event.kind == "scale":
        return phase, scaled | {event.object}
    if event.kind == "backward":
        return ("scaled" if event.scaler or event.object in scaled else "fresh"), scaled - {event.object}
    if event.kind == "unknown":
        return ("unknown" if event.doubt == "strong" else phase), scaled
    if event.kind == "make":
        mine = event.object == subject.object or event.object in subject.roots
        return ("none" if mine and phase == "unknown" else phase), scaled
    if event.kind == "zero_grad":
        sure = clears(facts, event, subject, alone)
        if sure is None:
            return "unknown", scaled
        return (_cleared(phase) if sure else phase), scaled
    if event.kind not in {"clip", "unscale", "step"}:
        return state
    if facts.related(event, subject) is False:
        other = event.kind == "step" and subject.kind == "step" and phase in WAITING
        return ("shared" if other else phase), scaled
    if event.kind == "step":
        other = subject.kind == "step" and event.object != subject.object
        return ("shared" if other else "consumed"), scaled
    if event.kind == "unscale":
        return ("unscaled" if phase == "scaled" else phase), scaled
    if phase == "scaled" and not event.wrapper:
        return "scaled-clipped", scaled
    return ("clipped" if phase in {"fresh", "unscaled", "scaled"} else phase), scaled


def _cleared(phase: Phase) -> Phase:
    lost = {"fresh", "scaled", "unscaled", "clipped", "scaled-clipped", "dropped"}
    if phase in lost:
        return "dropped"
    return "spent" if phase in {"consumed", "spent"} else "cleared"


def _alone(graph: Graph[Event], subject: Event) -> bool:
    """Whether the steps of a graph are all of one optimizer."""
    stepped = {node.event.object for node in graph.nodes if node.event is not None and node.event.kind == "step"}
    return len(stepped) <= 1


_GENERIC = frozenset({"model", "net", "network", "module", "self", "param", "params", "parameters", "unwrapped"})


def clears(facts: StepFacts, event: Event, subject: Event, alone: bool) -> bool | None:
    """Whether a ``zero_grad`` clears the gradients of ``subject``; None where the text does not tell.

    ``alone``: there is but one optimizer. Its own model is then whatever has no name of its own.
    """
    known = facts.related(event, subject)
    if known is None and subject.kind == "clip" and subject.roots and subject.roots <= event.roots:
        return True
    if known is None and (
        facts.named_together(event, subject) if subject.kind == "step" else facts.named_together(subject, event)
    ):
        return True
    if known is not None or not alone:
        return known
    if facts.objects is not None and facts.objects.is_optimizer(event.object):
        return True
    named = {word for root in event.roots or {event.object} for word in words(root)}
    return True if named <= _GENERIC else None


def stepped_by(facts: StepFacts, event: Event, steps: Iterable[Event]) -> list[Event]:
    """The steps that may be of the parameters an event concerns."""
    return [step for step in steps if facts.related(event, step) is not False]


# -- places


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
