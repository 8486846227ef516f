"""Windows of micro-batches, and what is lost or clipped inside of them: the questions of GL105 and GL109."""

from __future__ import annotations

from collections.abc import Mapping

from gradlint.facts.cfg import Guard, Node
from gradlint.facts.steps import Event, StepFacts
from gradlint.facts.steps_apart import steps_from
from gradlint.facts.steps_loss import loss_left
from gradlint.facts.steps_states import WAITING, Turn, clears, follow, guards_held, one_optimizer, phases, reaches
from gradlint.facts.steps_words import GRADIENTS, KEEPS_SIZE, PARAMETER_WORDS, words

# -- GL105


def dropped_at(steps: StepFacts, turn: Turn, index: int, clear: Event) -> Event | None:
    """The step that finds nothing, since ``clear`` comes between every backward of the iteration and it."""
    stepped = [(k, e) for k, e in turn.events("step") if clears(steps, clear, e, one_optimizer(turn)) is True]
    for node, step in stepped:
        if not reaches(turn.graph, index, node):
            continue
        if clear.object == step.object and _of_torch(steps, step) and _straight(turn, index, node, step):
            return step if loss_left(steps, turn, node, step) is None else None
        before = phases(steps, turn.graph, step)
        found, ahead = before.get(node, frozenset()), before.get(index, frozenset())
        # a loop over several optimizers comes back to the call that was just made
        if not found or found - ({"consumed", "spent"} if _inner(turn, node) else set()) != {"dropped"}:
            continue
        given = max((k for k, _ in turn.events("backward") if k < index), default=0)
        if any(given < k < node for k, _ in turn.events("read")):
            continue  # the gradients were used for something else
        ahead = ahead - ({"dropped", "consumed", "spent"} if _inner(turn, index) else set())
        if ahead and ahead <= WAITING:
            return step
    return None


def _of_torch(steps: StepFacts, step: Event) -> bool:
    return steps.objects is None or steps.objects.may_be_of_torch(step.object)


def _straight(turn: Turn, index: int, node: int, step: Event) -> bool:
    """Whether every path to a step has a backward, then the optimizer's own clearing, and nothing that could give
    gradients between that and the step: whatever an unknown call did ahead of the clearing, it is lost.

    One loss may be that of several optimizers, where nothing is computed between their steps.
    """
    shared = len({e.location for _, e in turn.events("backward")}) == 1

    def transfer(at: Node[Event], state: str) -> str | None:
        event = at.event
        if at.index == index:
            return {"given": "lost", "shared": "lost at once", "none": "empty"}.get(state, state)
        if event is None or (state == "given" and event.kind == "unknown"):
            return state
        if event.kind == "backward":
            return "given"
        if event.kind in {"step", "zero_grad"} and event.object != step.object:
            return "shared" if shared and state == "given" else state if state == "shared" else "none"
        if (
            state == "shared"
            or event.kind in {"step", "read", "zero_grad"}
            or (event.kind == "unknown" and event.doubt)
        ):
            return "none"
        return state

    before = follow(turn.graph, {turn.graph.entry: frozenset({"none"})}, transfer)
    found = before.get(node, frozenset())
    # on some paths there may have been no loss at all
    return bool(found & {"lost", "lost at once"}) and found <= {"lost", "lost at once", "empty"}


def _inner(turn: Turn, index: int) -> bool:
    """Whether a node stands in a loop inside of the iteration."""
    loops = turn.graph.nodes[index].loops
    return bool(loops) and loops[-1] != turn.loop


def cleared_each_turn(steps: StepFacts, turn: Turn, index: int, clear: Event) -> Event | None:
    """The step that an accumulation holds back while ``clear`` runs in every micro-batch."""
    if any(True for _ in turn.events("accumulate", "read")) or (turn.loop is None and not turn.region.qualname):
        return None
    own = (turn.loop,) if turn.loop is not None else ()  # of a function that counts, the loop is elsewhere
    held = guards_held(turn.graph)
    window = _window(turn, index)
    for node, step in turn.events("step"):
        if window is not None and window not in turn.graph.nodes[node].loops and not step.wrapper:
            if _guarded_within(turn, held, index, window) or _used_otherwise(turn, window):
                continue
            if clears(steps, clear, step, one_optimizer(turn)) is True and reaches(turn.graph, index, node):
                return step
            continue
        if step.window:
            near = turn.graph.nodes[node].loops == turn.graph.nodes[index].loops
            if near and not _held_back(held.get(index, frozenset())) and clears(steps, clear, step, True) is True:
                return step
            continue
        waits = [g for g in held.get(node, frozenset()) if g.counter and not g.synced]
        if not waits or step.wrapper or clears(steps, clear, step, one_optimizer(turn)) is not True:
            continue
        if any(guard in held.get(index, frozenset()) for guard in waits):
            continue
        if turn.graph.nodes[node].loops[-1:] != own or turn.graph.nodes[index].loops[-1:] != own:
            continue
        if _held_back(held.get(index, frozenset())):
            continue
        if _lost_in_turn(steps, turn, index, node, step):
            return step
    return None


def _guarded_within(turn: Turn, held: Mapping[int, frozenset[Guard]], index: int, window: int) -> bool:
    """Whether a condition inside of a loop decides on a node of it."""
    return bool(held.get(index, frozenset()) - held.get(turn.graph.heads[window], frozenset()))


def _used_otherwise(turn: Turn, window: int) -> bool:
    """Whether the gradients of a micro-batch may be taken away, or given back, ahead of the step."""
    first = min((k for k, _ in turn.events("backward") if window in turn.graph.nodes[k].loops), default=0)
    if any(k > first for k, _ in turn.events("read")):
        return True
    doubts = {"strong", "used", "clearing"}
    return any(k > first and (e.doubt in doubts or e.given) for k, e in turn.events("unknown"))


def _window(turn: Turn, index: int) -> int | None:
    """The loop inside of the iteration that runs a backward for each micro-batch, round a node, and holds no step."""
    for loop in reversed(turn.graph.nodes[index].loops):
        if loop == turn.loop:
            return None
        kinds = {e.kind for k, e in turn.region.events if loop in turn.graph.nodes[k].loops}
        if "step" in kinds:
            return None
        if "backward" in kinds:
            return loop
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


# -- GL109


def guarded_step(steps: StepFacts, turn: Turn, index: int, clip: Event) -> Event | None:
    """The step that an accumulation holds back while ``clip`` runs in every micro-batch."""
    held = guards_held(turn.graph)
    mine = held.get(index, frozenset())
    if any(guard.counter or guard.synced for guard in mine):
        return None
    ahead = phases(steps, turn.graph, clip).get(index, frozenset())
    if not ahead or not ahead <= {"fresh", "unscaled"}:
        return None
    if any(True for _ in turn.events("accumulate")):
        return _synced_step(steps, turn, clip)
    behind = steps_from(turn, index, passed_over=_scales_gradients)
    window = _window(turn, index)
    for node, step in turn.events("step"):
        if step not in behind or step.wrapper or steps.related(clip, step) is False:
            continue
        if any(g.counter or g.synced for g in held.get(node, frozenset())):
            return step
        if window is not None and window not in turn.graph.nodes[node].loops:
            if _used_otherwise(turn, window) or not _of_modules(steps, clip):
                continue
            return step
    return None


def _scales_gradients(unknown: Event) -> bool:
    """Whether an unknown call averages gradients, or scales them: it is no step."""
    said = set(words(unknown.name.rpartition(".")[2]))
    return bool(said & GRADIENTS and said & (KEEPS_SIZE | {"scale", "rescale", "divide"}))


def _of_modules(steps: StepFacts, clip: Event) -> bool:
    """Whether a clip is given what has parameters: a tensor alone may be a perturbation of the input."""
    objects = steps.objects
    return objects is None or any(
        root.startswith("optimizer:") or objects.is_model(root) or PARAMETER_WORDS & set(words(root))
        for root in clip.roots
    )


def _synced_step(steps: StepFacts, turn: Turn, clip: Event) -> Event | None:
    """Under accelerate's ``accumulate`` the step holds itself back; the clip does not."""
    if steps.accumulates is not True:
        return None
    found = [e for _, e in turn.events("step") if e.line > clip.line and steps.related(clip, e) is not False]
    return found[0] if found else None
