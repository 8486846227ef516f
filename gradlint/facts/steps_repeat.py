"""What repeats in the iterations of a training loop: gradients that pile up (GL104), steps without any (GL106)."""

from __future__ import annotations

import re

from gradlint.facts.steps import Event, Frame, Region, StepFacts
from gradlint.facts.steps_apart import apart
from gradlint.facts.steps_loss import CRITERIA, loss_left, only_computes
from gradlint.facts.steps_states import Phase, Turn, phases, turn_of
from gradlint.facts.steps_words import CLEARS, TRAINING_OWNERS, tells_listeners, word_set, words

# -- GL104


def repeating(steps: StepFacts, turn: Turn, index: int) -> bool:
    """Whether an iteration comes round again after a step: in a loop that nothing ends right behind the step, or in a
    function that is called again and again."""
    if turn.loop is None:
        return called_again_and_again(steps, turn, index)
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


def called_again_and_again(steps: StepFacts, turn: Turn, index: int) -> bool:
    """Whether a function without a loop is one iteration of a loop elsewhere, and nothing in the file clears the
    optimizer of the step at ``index``: it clears another optimizer ahead of stepping that one, or it is a method that
    steps an optimizer which its object keeps, or one that clears in every other class.
    """
    if not turn.region.qualname:
        return False
    step = next(e for k, e in turn.events("step") if k == index)
    cleared = [e for _, e in turn.events("zero_grad")]
    others = [e for _, e in turn.events("step") if e.object != step.object]
    beside = any(steps.related(clear, other) is True for clear in cleared for other in others)
    if _unlike_its_siblings(steps, turn):
        return True
    if not beside and not _kept_in_the_object(steps, turn, step):
        return False
    everywhere = [e for region in steps.regions for _, e in region.of_kind("zero_grad")]
    return all(steps.related(clear, step) is False or apart(steps, clear, step) for clear in everywhere)


def _unlike_its_siblings(steps: StepFacts, turn: Turn) -> bool:
    """Whether the methods of the same name of other classes in the file clear by themselves, and this one does not:
    ``train_step`` of a generator and of its discriminator."""
    owner, _, name = turn.region.qualname.rpartition(".")
    if not owner or any(turn.graph.nodes[k].loops for k, _ in turn.events("step", "backward")):
        return False
    siblings = [
        r for r in steps.regions if r.qualname.rpartition(".")[2] == name and r.qualname != turn.region.qualname
    ]
    kinds = [{e.kind for _, e in region.events} for region in siblings]
    return bool(kinds) and all({"zero_grad", "backward", "step"} <= found for found in kinds)


def _kept_in_the_object(steps: StepFacts, turn: Turn, step: Event) -> bool:
    """Whether a method steps an optimizer that ``__init__`` made, in a file that never clears a gradient at all."""
    objects = steps.objects
    if objects is None or not step.object.startswith("self.") or "." not in turn.region.qualname:
        return False
    held = any(turn.graph.nodes[k].loops for k, _ in turn.events("step", "backward"))
    if held or objects.own(step.object) not in objects.optimizers or not objects.of_torch(step.object):
        return False
    return not any(_CLEARING.search(steps.text(path)) for path in steps.files)


_CLEARING = re.compile(
    r"zero_grad|zero_\(|reset_grad|clear_grad|\.grad\s*=|set_grad|fit\(|Trainer|Callback|callback|hook"
)


def repeated_by_itself(steps: StepFacts, step: Event, backward: Event) -> bool:
    """Whether one call of the step runs its closure, with the backward in it, again and again: LBFGS does."""
    made = steps.objects.made_by.get(steps.objects.own(step.object), ()) if steps.objects is not None else ()
    return _in_closure_of(step, backward) and bool(made) and all(name.rsplit(".", 1)[-1] == "LBFGS" for name in made)


def _in_closure_of(step: Event, event: Event) -> bool:
    """Whether an event happens in the closure that is handed to a step, and so where the step is called."""
    depth = len(step.frames)
    if len(event.frames) <= depth or event.frames[:depth] != step.frames:
        return False
    call = event.frames[depth].call
    return call is not None and (call.line, call.column) == (step.location.line, step.location.column)


def never_cleared(steps: StepFacts, turn: Turn, step: Event, inside: tuple[Frame, ...] = ()) -> bool:
    """Whether nothing in the iteration can clear the gradients of ``step``, or make its model or optimizer anew.

    ``inside``: of all its events, those in the function that these calls lead to.
    """
    if step.wrapper or not step.object:
        return False
    objects = steps.objects
    if objects is None or objects.own(step.object) in objects.engines:
        return False
    anew = _made_of_what_stays(turn, step)
    if _clears_by_event(steps, turn) or _wraps_an_unread_optimizer(steps, step):
        return False
    if not anew and not _handed_out(steps, step) and _another_each_turn(turn, step):
        return False
    # who clears by itself, once for each epoch, has no listener do it
    outside = turn.loop is not None and any(
        e.object == step.object and not turn.holds(k) for k, e in turn.region.of_kind("zero_grad")
    )
    for _, event in turn.events():
        if event.frames[: len(inside)] != inside:
            continue
        if event.kind == "zero_grad" and not _of_another(steps, turn, event, step):
            return False
        passed_over = outside and tells_listeners(event.name) and not event.given
        if event.kind == "unknown" and (event.doubt in {"strong", "clearing"} or event.given) and not passed_over:
            return False
        if event.kind == "make" and not (anew and event.object == step.object):
            return False
    return True


def _of_another(steps: StepFacts, turn: Turn, clear: Event, step: Event) -> bool:
    """Whether a clearing surely leaves the gradients of ``step`` alone: it is that of another optimizer that steps."""
    if steps.related(clear, step) is False or apart(steps, clear, step):
        return True
    if steps.related(clear, step) is True or clear.object == step.object:
        return False
    mine, owner = clear.object.rpartition(".")[0], step.object.rpartition(".")[0]
    both_held = all(key.startswith("self.") for key in (mine, owner))  # `self.policy.optim`, `self.q_function.optim`
    if mine != owner and not both_held:
        return False  # `self.opt` may be what another function calls `optimizer`
    return any(e.object == clear.object for _, e in turn.events("step"))


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


def _handed_out(steps: StepFacts, step: Event) -> bool:
    """Whether the optimizer is bound to what Lightning's ``self.optimizers()`` gives: the same ones each time."""
    made = steps.objects.made_by.get(step.object, frozenset()) if steps.objects is not None else frozenset()
    return bool(made) and all(name.endswith(".optimizers") for name in made)


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


# -- GL106


def unfed(steps: StepFacts, region: Region, index: int, step: Event) -> Turn | None:
    """The iteration of a step that only missing or cleared gradients can reach; None if a fresh one may."""
    turn = turn_of(region, index, frozenset({"step", "backward"}))
    cleared = turn or turn_of(region, index, frozenset({"step", "zero_grad"}))
    if cleared is not None and loss_left(steps, cleared, index, step) is not None:
        return cleared
    small = turn_of(region, index, frozenset({"step", "zero_grad"}))
    if small is not None and small.loop is not None and (turn is None or turn.loop != small.loop):
        turn = small  # the loop of the step has no backward of its own
    if turn is None and small is not None and _evaluates_without_backward(small, step):
        return small
    if small is not None and _never_backward(steps, small, step):
        return small
    if turn is None or step.wrapper or not step.object or any(True for _ in turn.events("accumulate")):
        return None
    # What was there ahead of a loop is gone after its first turn.
    start: Phase = "none" if not region.qualname or turn.loop is not None else "unknown"
    found = phases(steps, region.graph, step, start).get(index, frozenset())
    inside = phases(steps, turn.graph, step).get(index, frozenset())
    ahead_of_backward = _same_loop(turn, index) and _backward_next(turn, index)
    plain = inside == {"cleared"} and ahead_of_backward and _nothing_between(turn, index)
    if _doubtful(turn) and not plain:
        return None
    if "consumed" in inside and found <= {"consumed", "none", "unknown"}:
        return turn if repeated(steps, turn, step) is not None else None
    if not found or not found <= {"none", "cleared", "dropped", "spent"} or "dropped" in inside:
        return None
    if inside == frozenset({"spent"}):
        return turn
    if any(True for _ in turn.events("backward")):
        if ahead_of_backward:
            return turn
        same = [e for _, e in region.of_kind("step") if e.object == step.object]
        others = any(e.object != step.object for _, e in turn.events("step"))
        apart = others and len(same) == 1 and _alone_with_its_parameters(steps, turn, step)
        loops = turn.graph.nodes[index].loops
        behind = any(k < index and turn.graph.nodes[k].loops == loops for k, _ in turn.events("backward"))
        apart = apart or (behind and _alone_with_its_parameters(steps, turn, step))
    else:
        apart = "dropped" not in found and turn.loop is not None and only_computes(steps, turn, step, True)
    return turn if apart and inside == frozenset({"cleared"}) and _nothing_between(turn, index) else None


def _never_backward(steps: StepFacts, turn: Turn, step: Event) -> bool:
    """Whether a loop runs a model, clears and steps, and nothing in the program runs backward, nor may run one."""
    if turn.loop is None or step.wrapper or steps.objects is None or not steps.objects.of_torch(step.object):
        return False
    if any("backward" in steps.text(path) or "autograd" in steps.text(path) for path in steps.files):
        return False
    models = [e.object for _, e in turn.events("forward")]
    doubtful = any(e.doubt != "weak" or e.given for _, e in turn.events("unknown"))
    if doubtful or not only_computes(steps, turn, step):
        return False
    return bool(models) and not any((TRAINING_OWNERS - {"model"} | {"meta", "maml"}) & set(words(m)) for m in models)


def _evaluates_without_backward(turn: Turn, step: Event) -> bool:
    """Whether a step runs a closure that clears and computes, and nothing in it or around it runs backward."""
    inside = [e for _, e in turn.events() if _in_closure_of(step, e)]
    kinds = {e.kind for e in inside}
    if "zero_grad" not in kinds or not kinds & {"compute", "forward"} or step.wrapper:
        return False
    return not any(True for _ in turn.region.of_kind("backward")) and not any(e.kind == "unknown" for e in inside)


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


def mistaken(steps: StepFacts, turn: Turn, index: int, step: Event) -> str | None:
    """The optimizer that nothing steps, where ``step`` is one of two steps of another: its name was mixed up."""
    if steps.objects is None or step.wrapper or not steps.objects.of_torch(step.object):
        return None
    same = [k for k, e in turn.events("step") if e.object == step.object and e.location != step.location]
    backward = [k for k, _ in turn.events("backward") if k < index]
    if not same or not backward or not any(k > index for k in same):
        return None
    stepped = {e.object for region in steps.regions for _, e in region.of_kind("step")}
    given = {e.object for region in steps.regions for _, e in region.of_kind("unknown") if e.given}
    idle = [key for key, found in steps.objects.optimizers.items() if found and key not in stepped | given]
    return idle[0] if len(idle) == 1 and steps.objects.of_torch(idle[0]) else None


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
    doubtful = [e for e in between if e.kind == "unknown" or (e.kind == "compute" and not _is_criterion(e))]
    ran = any(True for _ in turn.events("forward")) or any(e.kind == "compute" for e in between)
    return ran and not doubtful


def _is_criterion(event: Event) -> bool:
    """Whether what is called computes a loss by its name, and so runs no backward: ``self.criterionGAN(...)``."""
    return bool(CRITERIA & set(words(event.name.rsplit(".", 1)[-1])))


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
