"""What repeats, and what is lost, in the iterations of a training loop: the questions of the rules GL104 to GL109."""

from __future__ import annotations

from gradlint.facts.cfg import Graph, Guard, Node
from gradlint.facts.steps import Event, Region, StepFacts
from gradlint.facts.steps_states import Turn, clears, follow, guards_held, phases, stepped_by, turn_of

FRESH = frozenset({"fresh", "scaled", "unscaled", "clipped", "scaled-clipped"})
"""The phases in which gradients wait for a step."""


# -- GL104


def repeating(turn: Turn, index: int) -> bool:
    """Whether the loop of an iteration can come round again after a step: nothing ends it right behind the step."""
    assert turn.loop is not None
    graph = turn.region.graph
    seen, work = {index}, [index]
    while work:
        for target in graph.successors[work.pop()]:
            if target == graph.heads[turn.loop]:
                return True
            if target not in seen and turn.holds(target):
                seen.add(target)
                work.append(target)
    return False


def never_cleared(steps: StepFacts, turn: Turn, step: Event) -> bool:
    """Whether nothing in the loop can clear the gradients of ``step``, or make its model or optimizer anew."""
    if step.wrapper or not step.object:
        return False
    objects = steps.objects
    if objects is None or objects.own(step.object) in objects.engines:
        return False
    for _, event in turn.events():
        if event.kind == "zero_grad" and steps.related(event, step) is not False:
            return False
        if event.kind == "unknown" and (event.doubt == "strong" or event.given):
            return False
        if event.kind == "make":
            return False
    return True


# -- GL105


def dropped_at(steps: StepFacts, turn: Turn, index: int, clear: Event) -> Event | None:
    """The step that finds nothing, since ``clear`` comes between every backward of the iteration and it."""
    stepped = [(k, e) for k, e in turn.events("step") if clears(steps, clear, e, _alone(turn)) is True]
    for node, step in stepped:
        before = phases(steps, turn.graph, step)
        if before.get(node, frozenset()) != frozenset({"dropped"}):
            continue
        if before.get(index, frozenset()) and before[index] <= FRESH and _reaches(turn.graph, index, node):
            return step
    return None


def cleared_each_turn(steps: StepFacts, turn: Turn, index: int, clear: Event) -> Event | None:
    """The step that an accumulation holds back while ``clear`` runs in every micro-batch."""
    if turn.loop is None or any(True for _ in turn.events("accumulate")):
        return None
    held = guards_held(turn.graph)
    for node, step in turn.events("step"):
        waits = [g for g in held.get(node, frozenset()) if g.counter and not g.synced]
        if not waits or step.wrapper or clears(steps, clear, step, _alone(turn)) is not True:
            continue
        if any(guard in held.get(index, frozenset()) for guard in waits):
            continue
        if _held_back(held.get(index, frozenset())):
            continue
        if _lost_in_turn(steps, turn, index, node, step):
            return step
    return None


def _held_back(held: frozenset[Guard]) -> bool:
    """Whether something that counts micro-batches decides on a clearing."""
    return any(guard.counter for guard in held)


def _lost_in_turn(steps: StepFacts, turn: Turn, index: int, node: int, step: Event) -> bool:
    """Whether there are turns that run backward and ``clear`` but not the step, and none that steps without it."""

    def transfer(at: Node[Event], state: tuple[bool, bool, bool]) -> tuple[bool, bool, bool] | None:
        backward, cleared, stepped = state
        if at.event is not None and at.event.kind == "unknown" and at.event.doubt == "strong":
            return None
        if at.event is not None and at.event.kind == "backward":
            backward = True
        return backward, cleared or at.index == index, stepped or at.index == node

    before = follow(turn.graph, {turn.graph.entry: frozenset({(False, False, False)})}, transfer)
    ends = {state for end in turn.ends() for state in before.get(end, frozenset())}
    waiting = {state for state in ends if state[0] and not state[2]}
    return bool(waiting) and all(state[1] for state in ends if state[0])


# -- GL106


def unfed(steps: StepFacts, region: Region, index: int, step: Event) -> Turn | None:
    """The iteration of a step that only missing or cleared gradients can reach; None if a fresh one may."""
    turn = turn_of(region, index, frozenset({"step", "backward"}))
    if turn is None or step.wrapper or not step.object:
        return None
    if any(True for _ in turn.events("accumulate")) or not _same_loop(turn, index):
        return None
    start = "none" if not region.qualname else "unknown"
    before = phases(steps, region.graph, step, start)  # type: ignore[arg-type]
    found = before.get(index, frozenset())
    if not found or not found <= {"none", "cleared", "dropped"}:
        return None
    inside = phases(steps, turn.graph, step).get(index, frozenset())
    if "dropped" in inside or _doubtful(turn):
        return None
    return turn


def _same_loop(turn: Turn, index: int) -> bool:
    """Whether a backward runs in the step's own loop: a first step ahead of a loop starts a schedule."""
    own = turn.graph.nodes[index].loops
    return any(turn.graph.nodes[k].loops[: len(own)] == own for k, _ in turn.events("backward")) and (
        bool(own) or not any(turn.graph.nodes[k].loops for k, _ in turn.events("backward"))
    )


def _doubtful(turn: Turn) -> bool:
    """Whether a call that cannot be read may give gradients."""
    return any(e.doubt == "strong" or e.given for _, e in turn.events("unknown"))


# -- GL108


def unclipped_step(steps: StepFacts, turn: Turn, index: int, clip: Event) -> Event | None:
    """The step behind a clip that surely updates other parameters, if nothing in the region clips those."""
    if not clip.roots or any(e.doubt == "strong" for _, e in turn.events("unknown")):
        return None
    ahead = phases(steps, turn.graph, clip).get(index, frozenset())
    if not ahead or not ahead <= {"fresh", "scaled", "unscaled"}:
        return None
    behind = _steps_from(turn, index)
    if not behind or any(not _apart(steps, clip, step) for step in behind):
        return None
    if stepped_by(steps, clip, [e for k, e in turn.events("step") if e not in behind and e.line > clip.line]):
        return None
    clips = [e for _, e in turn.region.of_kind("clip") if e != clip]
    first = behind[0]
    return first if all(_apart(steps, other, first) for other in clips) else None


def _apart(steps: StepFacts, clip: Event, step: Event) -> bool:
    """Whether clipped and stepped parameters are surely different ones."""
    objects = steps.objects
    if objects is None or any(root.startswith("optimizer:") for root in clip.roots):
        return steps.related(clip, step) is False
    given = objects.optimizers.get(objects.own(step.object), frozenset())
    if not clip.roots or not given or steps.related(clip, step) is not False:
        return False
    return all(_told_apart(steps, root, other) for root in clip.roots for other in given)


def _told_apart(steps: StepFacts, one: str, other: str) -> bool:
    """Two modules that are constructed apart, or two attributes of one object."""
    assert steps.objects is not None
    if steps.objects.distinct(one, other):
        return True
    base, _, name = one.rpartition(".")
    same, _, sibling = other.rpartition(".")
    return bool(base) and base == same and base != "self" and name != sibling


def _steps_from(turn: Turn, index: int) -> list[Event]:
    """The first step of each path behind a node, up to the next backward."""
    graph = turn.graph
    found: list[Event] = []
    seen, work = {index}, list(graph.successors[index])
    while work:
        current = work.pop()
        if current in seen or not turn.holds(current):
            continue
        seen.add(current)
        event = graph.nodes[current].event
        if event is not None and event.kind == "step":
            found.append(event)
        elif event is None or event.kind != "backward":
            work.extend(graph.successors[current])
    return found


# -- GL109


def guarded_step(steps: StepFacts, turn: Turn, index: int, clip: Event) -> Event | None:
    """The step that an accumulation holds back while ``clip`` runs in every micro-batch."""
    held = guards_held(turn.graph)
    mine = held.get(index, frozenset())
    if any(guard.counter or guard.synced for guard in mine):
        return None
    ahead = phases(steps, turn.graph, clip).get(index, frozenset())
    if not ahead or not ahead <= {"fresh", "scaled", "unscaled"}:
        return None
    if any(True for _ in turn.events("accumulate")):
        return _synced_step(steps, turn, clip)
    for node, step in turn.events("step"):
        if step.wrapper or steps.related(clip, step) is False:
            continue
        if any(g.counter or g.synced for g in held.get(node, frozenset())) and _reaches(turn.graph, index, node):
            return step
    return None


def _synced_step(steps: StepFacts, turn: Turn, clip: Event) -> Event | None:
    """Under accelerate's ``accumulate`` the step holds itself back; the clip does not."""
    if steps.accumulates is not True:
        return None
    found = [e for _, e in turn.events("step") if e.line > clip.line and steps.related(clip, e) is not False]
    return found[0] if found else None


def _reaches(graph: Graph[Event], start: int, goal: int) -> bool:
    seen, work = {start}, [start]
    while work:
        for target in graph.successors[work.pop()]:
            if target == goal:
                return True
            if target not in seen:
                seen.add(target)
                work.append(target)
    return False


def _alone(turn: Turn) -> bool:
    return len({e.object for _, e in turn.events("step")}) <= 1
