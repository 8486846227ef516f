"""From a suspected place in a training step to the candidate that a rule proposes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from gradlint.facts import FileFacts
from gradlint.facts.steps import Event, Frame, Kind, Region, StepFacts
from gradlint.facts.steps_states import Turn, place_in
from gradlint.rule import Candidate, Location, Related, SourceEdit, StepExperiment

_CLIPS_OF_TRAINERS = {
    "Lightning": "clip with gradient_clip_val of the Trainer, or in configure_gradient_clipping()",
    "transformers": "clip with max_grad_norm of the TrainingArguments, or behind the backward",
}
_PASSIVE = frozenset({"consume", "iterator", "compute", "read", "unscale"})
"""Kinds of event that change no gradient: a helper that has them beside its clip is right all the same."""
Finder = Callable[[StepFacts, Region, int, Event], "Candidate | None"]


def own_events(facts: FileFacts, kind: Kind) -> Iterator[list[tuple[Region, int, Event]]]:
    """The certain events of a kind, in this file and in helpers of others, each with every region it is built into."""
    found: dict[tuple[str, Location], list[tuple[Region, int, Event]]] = {}
    for region in (facts.steps or StepFacts()).regions:
        for index, event in region.of_kind(kind):
            if not event.doubt:
                found.setdefault((event.path, event.location), []).append((region, index, event))
    for places in found.values():
        trained = [place for place in places if place[0].trainer]
        own = [place for place in places if not place[0].trainer]
        chosen = (trained or own) if kind == "clip" else own  # by itself a hook is no training step
        if chosen:
            yield chosen


def proposed(facts: FileFacts, kind: Kind, find: Finder) -> Iterator[Candidate]:
    """One candidate for each place of a kind that ``find`` suspects in every region it is built into.

    Where a helper is wrong at one of its calls only, that call is reported.
    """
    steps = facts.steps or StepFacts()
    for places in own_events(facts, kind):
        found = [find(steps, *place) for place in places]
        if all(candidate is not None for candidate in found) and found[0] is not None:
            yield found[0]
        elif any(found):
            yield from at_calls(facts, steps, places, [one is not None for one in found], find)


def at_calls(
    facts: FileFacts,
    steps: StepFacts,
    places: Sequence[tuple[Region, int, Event]],
    suspected: Sequence[bool],
    find: Finder,
) -> Iterator[Candidate]:
    """The calls of a helper that does nothing else, where all that they lead to is suspected, and at others is not."""
    by_call: dict[Location, list[tuple[bool, tuple[Region, int, Event]]]] = {}
    for suspect, place in zip(suspected, places, strict=True):
        call = place[2].frames[-1].call
        if call is None or len(place[2].frames) < 2 or place[2].frames[-2].path != facts.path:
            return
        by_call.setdefault(call, []).append((suspect, place))
    for call, reached in by_call.items():
        region, index, inner = reached[0][1]
        if not all(suspect for suspect, _ in reached) or not _does_only(region, inner):
            continue
        name = inner.frames[-1].qualname.rpartition(".")[2]
        outer = dataclasses.replace(inner, location=call, path=facts.path, frames=inner.frames[:-1], name=name)
        made = find(steps, region, index, outer)
        if made is not None:
            edit = made.experiment.edit if isinstance(made.experiment, StepExperiment) else None
            lines = moved_to(edit, inner.line) if inner.path == facts.path and edit is not None else (inner.line,)
            told = {**steps.spot(inner), "through": call.line, "edited_lines": list(lines)}
            yield dataclasses.replace(made, facts={**made.facts, **told})


def _does_only(region: Region, inner: Event) -> bool:
    """Whether the helper that an event stands in has no other kind of event that matters."""
    depth = len(inner.frames)
    inside = [e for _, e in region.events if e.frames[:depth] == inner.frames]
    return all(e.kind == inner.kind or e.kind in _PASSIVE for e in inside)


def candidate(
    code: str,
    facts: FileFacts,
    steps: StepFacts,
    turn: Turn,
    place: Event,
    others: Sequence[Event],
    message: str,
    help: str,
    *,
    edit: SourceEdit | None = None,
    related: Sequence[tuple[Event, str]] = (),
    told: Mapping[str, Any] | None = None,
    same_batch: bool = False,
    overflow: bool = False,
    accumulation: int = 1,
    iterators: tuple[tuple[int, str, str], ...] = (),
    edit_path: str = "",
    remedy: Literal["", "clip-at-step", "clear-after-step"] = "",
) -> Candidate:
    """A candidate on ``place``; the experiment starts in the function that holds its iteration.

    ``place`` may be in a helper of another file: the experiment then starts in this one, where the helper is called.
    """
    frame = frame_in(turn, [place, *others], facts.path)
    inner = frame
    if place.path != facts.path and "." in place.frames[-1].qualname and place.frames[-1].path == place.path:
        frame = in_region(turn.region, [*others, place], facts.path)  # where the object is made that has the method
    if turn.region.trainer:
        edit, help = None, _CLIPS_OF_TRAINERS[turn.region.trainer]
    changed = edit_path or place.path
    lines = moved_to(edit, place.line) if changed == place.path else (place.line,)
    own = place.path == facts.path
    if edit is None and remedy:
        lines, changed = (place.line,), place.path
    path, at = _reported(turn, place, facts.path)
    return Candidate(
        code=code,
        path=path,
        location=at,
        symbol=symbol(steps, frame.qualname, place),
        message=message,
        experiment=StepExperiment(
            facts.path,
            frame.qualname,
            entered_at(place, facts.path),
            edit,
            lines if own else entered_at(place, facts.path),
            same_batch=same_batch,
            overflow=overflow,
            accumulation=accumulation,
            remedy=remedy if edit is None else "",
            watched=steps.spot(place),
            fallbacks=_inner_frames(place, others, frame, facts.path) or _other(inner, frame),
            edit_path=changed,
            iterators=iterators,
        ),
        help=help,
        group=f"{path}:{at.line}",
        related=tuple(Related(e.path, e.line, text) for e, text in related),
        facts={
            **steps.spot(place),
            "edited_lines": list(lines),
            "has_edit": edit is not None or bool(remedy),
            **(told or {}),
        },
    )


def _reported(turn: Turn, place: Event, path: str) -> tuple[str, Location]:
    """Where to tell of an event: a helper of another file that does nothing else is right, and its call is not."""
    if len(place.frames) < 2 or place.path == place.frames[-2].path:
        return place.path, place.location
    outer, helper = place.frames[-2], place.frames[-1]
    inside = [e for _, e in turn.region.events if e.frames[: len(place.frames)] == place.frames]
    alone = [e for e in inside if e.kind not in _PASSIVE]
    if helper.call is None or any(e.location != place.location for e in alone):
        return place.path, place.location
    return outer.path, helper.call


def _other(inner: Frame, frame: Frame) -> tuple[str, ...]:
    return (inner.qualname,) if inner.qualname and inner.qualname != frame.qualname else ()


def _inner_frames(place: Event, others: Sequence[Event], outer: Frame, path: str) -> tuple[str, ...]:
    """The innermost function of the file that holds all the events, if it is another than the one to start in."""
    depth = depth_of_events([place, *others])
    inner = place.frames[depth]
    return (inner.qualname,) if inner.path == path and inner.qualname not in {"", outer.qualname} else ()


def entered_at(event: Event, path: str) -> tuple[int, ...]:
    """The line of an event in the file ``path``; of the call that leads to it, where it is in another.

    A loop that clears by hand does it on a line of its own.
    """
    if event.path == path:
        inside = event.value.line if event.kind == "zero_grad" and event.value is not None else event.line
        return (event.line, inside) if inside != event.line else (event.line,)
    calls = [
        inner.call.line
        for outer, inner in itertools.pairwise(event.frames)
        if outer.path == path and inner.path != path and inner.call is not None
    ]
    return tuple(calls[-1:])


def frame_in(turn: Turn, events: Sequence[Event], path: str) -> Frame:
    """The innermost function of the file ``path`` that holds the iteration with all the events."""
    frames = turn.frames(events)
    while len(frames) > 1 and frames[-1].path != path:
        frames = frames[:-1]
    return frames[-1]


def in_region(region: Region, events: Sequence[Event], path: str) -> Frame:
    """The outermost function of the file ``path`` that leads to all the events."""
    frames = [frame for frame in events[-1].frames if frame.path == path]
    return frames[0] if frames else Frame(region.qualname, path, 1, None)


def in_one_function(events: Sequence[Event], path: str) -> list[Location] | None:
    """Where the events stand in the innermost function of the file that holds them all; None if it is elsewhere.

    None too where one call there leads to two of them: to move it would move both.
    """
    depth = depth_of_events(events)
    if events[0].frames[depth].path != path:
        return None
    found = [place_in(event, depth) for event in events]
    if len(set(found)) < len({(e.path, e.location) for e in events}):
        return None
    return found


def depth_of_events(events: Sequence[Event]) -> int:
    """How many calls lead to the innermost function in which all the events happen."""
    first = events[0].frames
    depth = 1
    while depth < len(first) and all(e.frames[depth : depth + 1] == first[depth : depth + 1] for e in events):
        depth += 1
    return depth - 1


def moved_to(edit: SourceEdit | None, line: int) -> tuple[int, ...]:
    """The lines of the edited text that stand for a line of the original."""
    return tuple(sorted(new for new, old in edit.line_map.items() if old == line)) if edit else ()


def symbol(steps: StepFacts, qualname: str, event: Event) -> str:
    """The function; for module statements the class of the model, where the file shows it."""
    if qualname:
        return qualname
    classes = {steps.models[root] for root in event.roots if root in steps.models}
    return classes.pop() if len(classes) == 1 else "<module>"


def where(event: Event, path: str) -> str:
    """``line 12``, with the file if it is another one."""
    return f"line {event.line}" if event.path == path else f"{event.path}:{event.line}"


def short(event: Event) -> str:
    """The last part of what is called: ``clip_grad_norm_``."""
    return event.name.rsplit(".", 1)[-1]
