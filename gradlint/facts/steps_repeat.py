"""What repeats, and what is lost, in the iterations of a training loop: the questions of the rules GL104 to GL109."""

from __future__ import annotations

import re
from collections.abc import Mapping

from gradlint.facts.cfg import Graph, Guard, Node
from gradlint.facts.steps import Event, Region, StepFacts
from gradlint.facts.steps_states import WAITING, Phase, Turn, clears, follow, guards_held, phases, turn_of
from gradlint.facts.steps_words import CLEARS, PARAMETER_WORDS, word_set, words

# -- GL104


def repeating(steps: StepFacts, turn: Turn, index: int) -> bool:
    """Whether an iteration comes round again after a step: in a loop that nothing ends right behind the step, or in
    the ``training_step`` that Lightning calls for each batch."""
    if turn.loop is None:
        return _called_for_each_batch(steps, turn)
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


def _called_for_each_batch(steps: StepFacts, turn: Turn) -> bool:
    owner, _, name = turn.region.qualname.rpartition(".")
    if name != "training_step" or not any(e.name.endswith("manual_backward") for _, e in turn.events("backward")):
        return False
    others = [r for r in steps.regions if r is not turn.region]
    others = [r for r in others if r.qualname.startswith(f"{owner}.") or ".on_" in r.qualname]
    return not any(True for region in others for _ in region.of_kind("zero_grad"))


def never_cleared(steps: StepFacts, turn: Turn, step: Event) -> bool:
    """Whether nothing in the loop can clear the gradients of ``step``, or make its model or optimizer anew."""
    if step.wrapper or not step.object:
        return False
    objects = steps.objects
    if objects is None or objects.own(step.object) in objects.engines:
        return False
    anew = _made_of_what_stays(turn, step)
    if _clears_by_event(steps, turn) or _wraps_an_unread_optimizer(steps, step):
        return False
    if not anew and _another_each_turn(turn, step):
        return False
    for _, event in turn.events():
        if event.kind == "zero_grad" and steps.related(event, step) is not False and not _apart(steps, event, step):
            return False
        if event.kind == "unknown" and (event.doubt in {"strong", "clearing"} or event.given):
            return False
        if event.kind == "make" and not (anew and event.object == step.object):
            return False
    return True


def _made_of_what_stays(turn: Turn, step: Event) -> bool:
    """Whether each turn makes a new optimizer of parameters that stay: their gradients stay with them."""
    made = [e for _, e in turn.events("make") if e.object == step.object]
    if turn.loop is None or not made or not all(e.roots for e in made):
        return False
    bound = turn.region.graph.bound[turn.loop] | turn.region.graph.targets[turn.loop]
    roots = frozenset().union(*(e.roots for e in made))
    return not any(root in bound or root.split(".")[0] in bound - {"self"} for root in roots)


def _clears_by_event(steps: StepFacts, turn: Turn) -> bool:
    """Whether a function that nothing calls by its name only clears: a callback, or the head of a context manager."""
    for region in steps.regions:
        if region is turn.region or region.qualname.rpartition(".")[2] in CLEARS:
            continue
        kinds = {event.kind for _, event in region.events}
        if region.qualname and "zero_grad" in kinds and not kinds & {"step", "backward"}:
            return True
    return False


def _another_each_turn(turn: Turn, step: Event) -> bool:
    """Whether the loop binds the optimizer anew in each turn: ``for net, opt in zip(nets, opts)``."""
    if turn.loop is None:
        return False
    graph = turn.region.graph
    inner = {
        name
        for loop, names in enumerate(graph.targets)
        if loop != turn.loop and turn.loop in graph.nodes[graph.heads[loop]].loops
        for name in names
    }
    own = graph.targets[turn.loop]
    anew = own | (graph.bound[turn.loop] - inner)
    written = {text for text in (step.object, step.written) if text in anew or text.split(".")[0] in own}
    keys = {name for text in (step.object, step.written) for key in _KEY.findall(text) for name in _NAME.findall(key)}
    return bool(written or keys & anew)


_KEY = re.compile(r"\[([^\]]*)\]")
_NAME = re.compile(r"\b[A-Za-z_]\w*")
_WRAPPING = word_set("scheduled schedule noam wrapper wrapped warmup manager handler")


def _wraps_an_unread_optimizer(steps: StepFacts, step: Event) -> bool:
    """Whether the optimizer was made by a class of another library whose name says that its step does more."""
    assert steps.objects is not None
    made = steps.objects.made_by.get(steps.objects.own(step.object), ())
    return any(_WRAPPING & set(words(name.rsplit(".", 1)[-1])) for name in made)


# -- GL105


def dropped_at(steps: StepFacts, turn: Turn, index: int, clear: Event) -> Event | None:
    """The step that finds nothing, since ``clear`` comes between every backward of the iteration and it."""
    stepped = [(k, e) for k, e in turn.events("step") if clears(steps, clear, e, _alone(turn)) is True]
    for node, step in stepped:
        if not reaches(turn.graph, index, node):
            continue
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


def _inner(turn: Turn, index: int) -> bool:
    """Whether a node stands in a loop inside of the iteration."""
    loops = turn.graph.nodes[index].loops
    return bool(loops) and loops[-1] != turn.loop


def cleared_each_turn(steps: StepFacts, turn: Turn, index: int, clear: Event) -> Event | None:
    """The step that an accumulation holds back while ``clear`` runs in every micro-batch."""
    if turn.loop is None or any(True for _ in turn.events("accumulate", "read")):
        return None
    held = guards_held(turn.graph)
    window = _window(turn, index)
    for node, step in turn.events("step"):
        if window is not None and window not in turn.graph.nodes[node].loops and not step.wrapper:
            if _guarded_within(turn, held, index, window) or _used_otherwise(turn, window):
                continue
            if clears(steps, clear, step, _alone(turn)) is True and reaches(turn.graph, index, node):
                return step
            continue
        if step.window:
            near = turn.graph.nodes[node].loops == turn.graph.nodes[index].loops
            if near and not _held_back(held.get(index, frozenset())) and clears(steps, clear, step, True) is True:
                return step
            continue
        waits = [g for g in held.get(node, frozenset()) if g.counter and not g.synced]
        if not waits or step.wrapper or clears(steps, clear, step, _alone(turn)) is not True:
            continue
        if any(guard in held.get(index, frozenset()) for guard in waits):
            continue
        if turn.graph.nodes[node].loops[-1:] != (turn.loop,) or turn.graph.nodes[index].loops[-1:] != (turn.loop,):
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


# -- GL106


def unfed(steps: StepFacts, region: Region, index: int, step: Event) -> Turn | None:
    """The iteration of a step that only missing or cleared gradients can reach; None if a fresh one may."""
    turn = turn_of(region, index, frozenset({"step", "backward"}))
    small = turn_of(region, index, frozenset({"step", "zero_grad"}))
    if small is not None and small.loop is not None and (turn is None or turn.loop != small.loop):
        turn = small  # the loop of the step has no backward of its own
    if turn is None or step.wrapper or not step.object or any(True for _ in turn.events("accumulate")):
        return None
    # What was there ahead of a loop is gone after its first turn.
    start: Phase = "none" if not region.qualname or turn.loop is not None else "unknown"
    found = phases(steps, region.graph, step, start).get(index, frozenset())
    inside = phases(steps, turn.graph, step).get(index, frozenset())
    if _doubtful(turn):
        return None
    if "consumed" in inside and found <= {"consumed", "none", "unknown"}:
        return turn if repeated(steps, turn, step) is not None else None
    if not found or not found <= {"none", "cleared", "dropped", "spent"} or "dropped" in inside:
        return None
    if inside == frozenset({"spent"}):
        return turn
    if any(True for _ in turn.events("backward")):
        if _same_loop(turn, index) and _backward_next(turn, index):
            return turn
        loops = turn.graph.nodes[index].loops
        behind = any(k < index and turn.graph.nodes[k].loops == loops for k, _ in turn.events("backward"))
        apart = behind and _alone_with_its_parameters(steps, turn, step)
    else:
        apart = "dropped" not in found and turn.loop is not None
    return turn if apart and inside == frozenset({"cleared"}) and _nothing_between(turn, index) else None


def repeated(steps: StepFacts, turn: Turn, step: Event) -> Event | None:
    """The step of the same optimizer, ahead of this one in its own loop, whose gradients it finds used already."""
    index = next(k for k, e in turn.events("step") if e == step)
    found = phases(steps, turn.graph, step).get(index, frozenset())
    loops = turn.graph.nodes[index].loops
    same = [(k, e) for k, e in turn.events("step") if k < index and e.object == step.object]
    before = [(k, e) for k, e in same if e.location != step.location]
    near = [e for k, e in before if turn.graph.nodes[k].loops == loops]
    if found == {"consumed"} and near:
        return near[-1]
    inner = [e for k, e in before if turn.graph.nodes[k].loops[: len(loops)] == loops and e not in near]
    # behind a loop that steps in each turn, and again in each turn of a loop round it
    if turn.loop is None or not inner:
        return None
    return inner[-1] if "consumed" in found and found <= {"consumed", "unknown", "none"} else None


def _alone_with_its_parameters(steps: StepFacts, turn: Turn, step: Event) -> bool:
    """Whether the optimizer of a step is known to hold parameters that no other step of the iteration uses."""
    mine = steps.given(step.object)
    others = [e for _, e in turn.events("step") if e.object != step.object]
    if not mine or steps.objects is None or not steps.objects.of_torch(step.object):
        return False
    return all(steps.given(e.object) and steps.related(e, step) is False for e in others)


def _nothing_between(turn: Turn, index: int) -> bool:
    """Whether a model runs in the iteration, and no call between the clearing and the step may run a backward."""
    if turn.graph.nodes[index].loops[-1:] != ((turn.loop,) if turn.loop is not None else ()):
        return False
    ahead = [k for k, _ in turn.events("zero_grad") if k < index]
    between = [e for k, e in turn.events() if ahead and ahead[-1] < k < index]
    return any(True for _ in turn.events("forward")) and not any(e.kind in {"unknown", "compute"} for e in between)


def _backward_next(turn: Turn, index: int) -> bool:
    """Whether the iteration goes on from the step to a backward, ahead of any other step or clearing."""
    graph = turn.graph
    seen, work = {index}, list(graph.successors[index])
    while work:
        current = work.pop()
        if current in seen or not turn.holds(current):
            continue
        seen.add(current)
        event = graph.nodes[current].event
        if event is not None and event.kind == "backward":
            return True
        if event is None or event.kind not in {"step", "zero_grad"}:
            work.extend(graph.successors[current])
    return False


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
    if not clip.roots:
        return None
    ahead = phases(steps, turn.graph, clip).get(index, frozenset())
    again = any(
        e.roots == clip.roots and k < index for k, e in turn.events("clip")
    )  # it was clipped where it should be
    waiting = {"fresh", "scaled", "unscaled"} | ({"consumed", "spent", "cleared"} if again else set())
    if not ahead or not ahead <= waiting:
        return None
    behind = _steps_from(turn, index, further=True)
    if not behind or any(step.kind != "step" or not _apart(steps, clip, step) for step in behind):
        return None
    clips = [e for _, e in turn.region.of_kind("clip") if e != clip]
    first = behind[0]
    return first if all(_apart(steps, other, first) for other in clips) else None


def _apart(steps: StepFacts, clip: Event, step: Event) -> bool:
    """Whether clipped and stepped parameters are surely different ones."""
    objects = steps.objects
    if objects is None or any(root.startswith("optimizer:") for root in clip.roots):
        return steps.related(clip, step) is False
    if steps.related(clip, step) is True:
        return False
    if steps.named_apart(clip, step):
        return True
    given = steps.given(step.object)
    if not clip.roots or not given:
        return False
    return all(_told_apart(steps, objects.own(root), objects.own(other)) for root in clip.roots for other in given)


_PAIRS = """teacher student, generator discriminator, netG netD, G D, actor critic, encoder decoder, policy value,
policy_net value_net, policy_net target_net, online target, online_net target_net, q_net target_net,
critic critic_target, actor actor_target, backbone head"""
_OPPOSITES = frozenset(word_set(pair) for pair in _PAIRS.split(","))
"""Two networks that are never one, going by their names."""


_COPIES = word_set("teacher target momentum ema shadow averaged frozen")
"""In the name of a network that no optimizer holds."""
_SAME_THING = word_set("model module net network ddp fsdp dp compiled unwrapped raw wrapped agent policy parallel base")
"""In the name of an attribute that may be another view of the same module."""


def _told_apart(steps: StepFacts, one: str, other: str) -> bool:
    """Two modules that are constructed apart, or two attributes of one object."""
    assert steps.objects is not None
    if any(PARAMETER_WORDS & set(words(name)) for name in (one, other)):
        return False  # a list of parameters may hold those of any module
    if steps.objects.distinct(one, other):
        return True
    copies = [bool(_COPIES & set(words(name))) for name in (one, other)]
    if copies == [True, False] and all(map(steps.objects.is_model, (one, other))):
        return True  # a network that follows another one
    if frozenset({one.rsplit(".", 1)[-1], other.rsplit(".", 1)[-1]}) in _OPPOSITES:
        return True
    given = steps.objects.optimizers.values()
    owned = {root for found in given for root in found}
    if one in owned and other in owned and not any({one, other} <= found for found in given):
        return True  # each is given to an optimizer of its own
    base, _, name = one.rpartition(".")
    same, _, sibling = other.rpartition(".")
    if (_SAME_THING & set(words(name))) or (_SAME_THING & set(words(sibling))):
        return False
    return bool(base) and base == same and base != "self" and name != sibling


def _steps_from(turn: Turn, index: int, further: bool = False) -> list[Event]:
    """The first step of each path behind a node, up to the next backward; ``further``: all of them.

    Calls that cannot be read are among them.
    """
    graph = turn.graph
    found: list[Event] = []
    seen, work = {index}, list(graph.successors[index])
    while work:
        current = work.pop()
        if current in seen or not turn.holds(current):
            continue
        seen.add(current)
        event = graph.nodes[current].event
        if event is not None and (event.kind == "step" or event.doubt == "strong"):
            found.append(event)
            if further:
                work.extend(graph.successors[current])
        elif event is None or event.kind != "backward":
            work.extend(graph.successors[current])
    return sorted(found, key=lambda event: event.line)


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
    behind = _steps_from(turn, index)
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


def _alone(turn: Turn) -> bool:
    return len({e.object for _, e in turn.events("step")}) <= 1
