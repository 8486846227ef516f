"""The loop limiter: a training loop runs until it has shown what it does, and no longer."""

from __future__ import annotations

import itertools
from typing import Any, Iterator, Optional

from ghost import ASSUMED_LENGTH, Ghost, GhostIterator, GhostRange
from step_record import MAX_PASSES, MAX_ROUNDS, MAX_STEPS, MAX_TOTAL_STEPS, Loop, Recorder, Stop
from step_same import SameBatch, seed

MAX_QUIET = 20_000
"""Rounds of a ``while`` loop that trains nothing."""
MAX_QUIET_ITEMS = 2_000
"""Items of a ``for`` loop that trains nothing: it prepares data, of which less does as well."""
MAX_QUIET_IN_ALL = 500
"""Rounds of loops that train nothing, inside of each other or one after another, after which each is left early."""
MAX_MICRO_BATCHES = 16
"""Rounds of a ``for`` loop that runs backward while the step stands outside of it."""
MAX_ALL_STEPS = 60
"""Steps after which a path ends, whatever loops it is in."""


class _Round:
    """What was recorded before an iteration, to see what the iteration added."""

    def __init__(self, recorder: Recorder, loop: Loop) -> None:
        self.steps = recorder.steps
        self.backwards = recorder.backwards
        self.forwards = recorder.forwards
        self.events = loop.events
        self.nested = loop.nested_steps
        self.rounds = loop.rounds


def limited(
    recorder: Recorder,
    items: Any,
    module: str,
    line: int,
    same: Optional[SameBatch] = None,
    brief: bool = False,
    forced: bool = False,
) -> Iterator[Any]:
    """The items of a ``for`` loop of the user's, until it has trained enough.

    An iterable that raises goes on with ghosts: a data set that cannot be read still has a loop over it.
    ``same``: given for a training loop all of whose iterations are to get the same data. ``brief``: nothing steps in
    the loop, so that going on with unknown items shows nothing new. ``forced``: it runs also if it has no items.
    """
    source = _iterator(items)
    loop = _open(recorder, module, line)
    loop.unknown = isinstance(items, Ghost)
    endless = brief and (loop.unknown or isinstance(items, GhostRange))
    item: Any = None
    try:
        while True:
            try:
                item = next(source)
            except StopIteration:
                if same is not None and loop.iteration == loop.steps == 1 and type(item) is int:
                    source = iter([item] * (MAX_STEPS - 1))  # a data set of unknown size need not be one batch long
                    continue
                if not forced or loop.iteration:
                    return
                source, forced = _instead(items, line), False
                continue
            except Exception as error:
                recorder.note(f"{type(error).__name__}: {error}", line)
                source = iter(GhostIterator(Ghost(f"items@{line}")))
                loop.unknown = True
                continue
            if same is not None:
                item = same.item((module, line), item)
                seed()
            before = _Round(recorder, loop)
            yield item
            if _enough(recorder, loop, before):
                return
            loop.iteration += 1
            if brief and loop.gathering >= MAX_MICRO_BATCHES:
                return
            if (endless and loop.iteration >= ASSUMED_LENGTH) or loop.quiet >= MAX_QUIET_ITEMS:
                return
    finally:
        _close(recorder, loop)


def _instead(items: Any, line: int) -> Iterator[Any]:
    """Items for a loop that has none, since the program's state is not its real one."""
    if isinstance(items, range):
        return itertools.count(items.start, items.step)
    return iter(GhostIterator(Ghost(f"items@{line}")))


def rounds(recorder: Recorder, module: str, line: int, same: Optional[SameBatch] = None) -> Iterator[Loop]:
    """The rounds of a ``while`` loop; the caller marks it ``unknown`` when its condition is unknown."""
    loop = _open(recorder, module, line)
    try:
        while True:
            if same is not None:
                seed()
            before = _Round(recorder, loop)
            yield loop
            if _enough(recorder, loop, before):
                return
            loop.iteration += 1
            if loop.quiet >= (ASSUMED_LENGTH if loop.unknown else MAX_QUIET):
                return
    finally:
        _close(recorder, loop)


def _iterator(items: Any) -> Iterator[Any]:
    if isinstance(items, Ghost):
        return iter(GhostIterator(items))
    try:
        return iter(items)
    except Exception:
        # not iterable here (a stand-in, a collection that needs its files): unknown items
        return iter(GhostIterator(Ghost("items")))


def _open(recorder: Recorder, module: str, line: int) -> Loop:
    recorder.loop_count += 1
    loop = Loop(module, line, recorder.loop_count)
    recorder.loops.append(loop)
    return loop


def _close(recorder: Recorder, loop: Loop) -> None:
    if loop not in recorder.loops:
        return
    recorder.loops.remove(loop)
    if recorder.loops and loop.hopeless:
        recorder.loops[-1].gave_up = True
    if recorder.loops and (loop.steps or loop.rounds):
        recorder.loops[-1].nested_steps += loop.all_steps


def _enough(recorder: Recorder, loop: Loop, before: _Round) -> bool:
    """Judge the iteration that just ended; True where the loop has shown enough."""
    steps = recorder.steps - before.steps
    nested = loop.nested_steps - before.nested
    loop.all_steps += steps
    if recorder.steps >= MAX_ALL_STEPS:
        raise Stop("steps")
    if (nested and steps <= nested) or (loop.gave_up and not steps):
        loop.rounds += 1
        loop.gave_up = False
        return loop.rounds >= MAX_ROUNDS or recorder.steps >= MAX_TOTAL_STEPS
    if steps and (recorder.backwards > before.backwards or "backward" in recorder.stubs):
        loop.steps += 1
        loop.idle = loop.gathering = 0
        return loop.steps >= MAX_STEPS
    if loop.events == before.events:
        loop.quiet += 1
        recorder.quiet += 1
        loop.passes += recorder.forwards > before.forwards
    elif loop.unknown or recorder.backwards > before.backwards:
        # a known loop over parameters or optimizers without a backward ends by itself, and must not be cut
        loop.idle += 1
        loop.gathering += recorder.backwards > before.backwards
    if recorder.quiet >= MAX_QUIET_IN_ALL and loop.quiet >= ASSUMED_LENGTH:
        return True
    return loop.hopeless or loop.passes >= MAX_PASSES
