"""Parameters that are surely different ones: what a clip reaches, and what the steps behind it update (GL108)."""

from __future__ import annotations

from collections.abc import Callable

from gradlint.facts.steps import Event, StepFacts
from gradlint.facts.steps_states import Turn, phases
from gradlint.facts.steps_words import PARAMETER_WORDS, word_set, words


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
    behind = steps_from(turn, index, further=True)
    if not behind or any(step.kind != "step" or not apart(steps, clip, step) for step in behind):
        return None
    clips = [e for _, e in turn.region.of_kind("clip") if e != clip]
    first = behind[0]
    return first if all(apart(steps, other, first) for other in clips) else None


def apart(steps: StepFacts, clip: Event, step: Event) -> bool:
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
    return all(
        _parts_of_one(root, other) or _toldapart(steps, objects.own(root), objects.own(other))
        for root in clip.roots
        for other in given
    )


_PAIRS = """teacher student, generator discriminator, netG netD, G D, actor critic, encoder decoder, policy value,
policy_net value_net, policy_net target_net, online target, online_net target_net, q_net target_net,
critic critic_target, actor actor_target, backbone head"""
_OPPOSITES = frozenset(word_set(pair) for pair in _PAIRS.split(","))
"""Two networks that are never one, going by their names."""


_COPIES = word_set("teacher target momentum ema shadow averaged frozen")
"""In the name of a network that no optimizer holds."""
_SAME_THING = word_set("model module net network ddp fsdp dp compiled unwrapped raw wrapped agent policy parallel base")
"""In the name of an attribute that may be another view of the same module."""


def _toldapart(steps: StepFacts, one: str, other: str) -> bool:
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
    return _named_for_two(one, other)


def _parts_of_one(one: str, other: str) -> bool:
    """Whether two names are those of two attributes of one object: ``model.backbone`` and ``model.classifier``."""
    base, _, name = one.rpartition(".")
    same, _, sibling = other.rpartition(".")
    if any((_SAME_THING | PARAMETER_WORDS) & set(words(part)) for part in (name, sibling)):
        return False
    return bool(base) and base == same and base != "self" and name != sibling


def _named_for_two(one: str, other: str) -> bool:
    """Whether two variables have the names of two networks: ``model_src`` and ``model_tgt``."""
    if not one.isidentifier() or not other.isidentifier():
        return False
    mine, others = words(one), words(other)
    shared = set(mine) & set(others)
    apart = [[w for w in said if w not in shared] for said in (mine, others)]
    return bool(shared & _SAME_THING) and all(len(w) == 1 and not _VIEWS & set(w) for w in apart)


_VIEWS = _SAME_THING | word_set("without no ema orig original main raw single local copy new old to train eval self")
"""In the name of what may be another view of the same module."""


def steps_from(
    turn: Turn, index: int, further: bool = False, passed_over: Callable[[Event], bool] = lambda event: False
) -> list[Event]:
    """The first step of each path behind a node, up to the next backward; ``further``: all of them.

    Calls that cannot be read are among them, but for those that are ``passed_over``.
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
        if event is not None and (event.kind == "step" or (event.doubt == "strong" and not passed_over(event))):
            found.append(event)
            if further:
                work.extend(graph.successors[current])
        elif event is None or event.kind != "backward":
            work.extend(graph.successors[current])
    return sorted(found, key=lambda event: event.line)
