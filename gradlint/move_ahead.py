"""Moving a call to directly ahead of other ones: the remedy for a clip that comes after its step, made with libcst.

It is also that of a clip which runs in every micro-batch ahead of the guard of the step (it moves into the guard).

What moves is the statement that holds the call, as in :mod:`gradlint.move`, also an ``if`` that chooses between clips,
and an ``unscale_`` beside it. Where the steps stand in branches it goes ahead of the branches, or into each of those
with a step; from behind ``optimizer.step(closure)`` it goes into the closure. What is refused and what is safe is told
in :mod:`gradlint.move_cross`. Into a block, across a way out of the block, and with an ``unscale_`` that is moved or
written, a move is not safe; nor is it made where the result of the call is read where it may then be missing.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import libcst as cst

from gradlint.move import same_guard
from gradlint.move_closure import closures_of, move_into
from gradlint.move_cross import BACKWARD, carry, check_result, scope_of
from gradlint.move_edit import relocated, reordered
from gradlint.move_holder import Taken, held, only_clips, plain, take
from gradlint.move_names import binds, leaves, reads
from gradlint.move_place import Places, passed
from gradlint.move_source import Refused, Source, Standing, attempt
from gradlint.move_unscale import is_unscaled, mentions_unscale, only_unscales, optimizers_of, unscale_for, unscales
from gradlint.move_write import Insertion
from gradlint.rule import Location, SourceEdit

_DESCRIPTION = "move the clip to ahead of the step"


def move_before(
    text: str, what: Location, before: Sequence[Location], after: Sequence[Location] = (), scaled: bool = False
) -> SourceEdit | None:
    """Move the call at ``what`` to directly ahead of the calls ``before`` (steps), behind the calls ``after``.

    With ``scaled`` an ``unscale_`` has to come first: where there is none since the backward, one is written.
    None where the move is refused, and where there is nothing to move.
    """

    return attempt(lambda: _move(Source(text), what, before, after, scaled))


def _move(
    source: Source, what: Location, before: Sequence[Location], after: Sequence[Location], scaled: bool
) -> SourceEdit:
    closures = closures_of(source, before)
    if len(closures) == 1 and not scaled:
        return move_into(source, closures[0], what, before, _DESCRIPTION)
    if closures:
        raise Refused
    way, near = source.meet(what, before)
    if isinstance(way[-1].block, (cst.SimpleStatementLine, cst.SimpleStatementSuite)):
        return _within(source, way, what, near, after, scaled)
    return _Mover(source, way, near, after).run(what, scaled)


class _Mover:
    """The move of a statement up or down to other ones of its block, or into them."""

    def __init__(
        self,
        source: Source,
        way: Sequence[Standing],
        before: Sequence[Location],
        after: Sequence[Location],
    ) -> None:
        self.source = source
        self.way = way
        self.block, self.index = way[-1]
        self.before = before
        self.targets = [k for k, child in enumerate(self.block.body) if source.holds(child, before)]
        self.upward = self.targets[0] < self.index
        first = self.block.body[: self.targets[0] + 1]
        own = [at for at in after if source.within(first, at)] if self.upward else []
        behind = self.block.body[self.index + 1 :] if self.upward else ()
        self.after = own or [at for at in after if not source.within(behind, at)]

    def run(self, what: Location, scaled: bool) -> SourceEdit:
        source = self.source
        taken = self.take(what)
        own = self.own_unscales()
        after = [at for at in self.after if not source.within((taken.holder, *own), at)]
        unscaled = not scaled or bool(own) or mentions_unscale(source, taken.holder)
        places = Places(source, self.way[:-1], self.before, after, unscaled)
        insertions = self.conditions(places.find(self.block, self.targets), taken.holder)
        crossed = self.crossed(insertions, taken, own)
        conditional = any(insertion.nested for insertion in insertions)
        if conditional and taken.remainder is not None and mentions_unscale(source, taken.remainder):
            raise Refused
        if not self.upward and not conditional and not any(source.holds(node, after) for node in crossed):
            raise Refused  # it is there already
        moved = [*own, taken.first, *self.carried(taken, crossed, conditional)]
        if conditional and (self.jumps() or not places.certain(self.block, strict=True)):
            check_result(source, moved, scope_of(source, self.way, moved), insertions)
        jumps = not self.upward
        return relocated(
            source, taken, moved, insertions, crossed, self.before, _DESCRIPTION, jumps=jumps, safe=not own
        )

    def take(self, what: Location) -> Taken:
        holder = self.block.body[self.index]
        if only_clips(self.source, holder):
            return take(self.source, holder, None)
        result = binds(self.source.tree(self.source.path(what)[-1].statement))

        def beside(node: cst.CSTNode) -> bool:
            return only_unscales(self.source, node) or bool(reads(self.source.tree(node)) & result)

        small = held(self.source, holder, what, beside)
        if isinstance(holder, cst.SimpleStatementLine) and all(it is small or beside(it) for it in holder.body):
            return take(self.source, holder, None)
        return take(self.source, holder, small)

    def between(self) -> Sequence[cst.CSTNode]:
        """The statements of the block between the one that moves and those it moves to."""
        first = self.targets[0]
        return self.block.body[first + 1 : self.index] if self.upward else self.block.body[self.index + 1 : first]

    def jumps(self) -> bool:
        """Whether the block may be left on the way down, as with ``if not last: continue``."""
        return not self.upward and any(leaves(self.source.tree(node)) for node in self.between())

    def own_unscales(self) -> list[cst.BaseStatement]:
        """The ``unscale_`` that moves along: one that came after the step too, or in every micro-batch too."""
        nodes: Sequence[cst.CSTNode] = ()
        if self.upward:
            nodes = self.between()
        elif self.jumps() or not Places(self.source, (), self.before, (), True).certain(self.block):
            above = self.block.body[: self.index]
            backward = [k for k, node in enumerate(above) if self.source.calls(node, BACKWARD)]
            nodes = above[backward[-1] if backward else 0 :]
        optimizers = optimizers_of(self.source, self.before)
        own = [node for node in nodes if unscales(self.source, node, optimizers)]
        if not self.upward and not all(only_unscales(self.source, node) for node in own):
            raise Refused  # it would still be run in every micro-batch
        return [n for n in own if isinstance(n, cst.BaseStatement) and only_unscales(self.source, n)]

    def conditions(self, insertions: Sequence[Insertion], holder: cst.CSTNode) -> list[Insertion]:
        """The places, with whether the call becomes conditional there; under its own condition it does not."""
        target = self.block.body[self.targets[0]]
        bare = len(self.targets) == 1 and same_guard(self.source, holder, target)
        if bare and all(insertion.depth == 1 for insertion in insertions):
            return [dataclasses.replace(insertion, bare=True, nested=False) for insertion in insertions]
        return [dataclasses.replace(insertion, nested=insertion.nested or self.jumps()) for insertion in insertions]

    def crossed(self, insertions: Sequence[Insertion], taken: Taken, own: Sequence[cst.CSTNode]) -> list[cst.CSTNode]:
        """What the statements pass on their way."""
        nodes: list[cst.CSTNode] = [*(taken.ahead if self.upward else taken.behind)]
        for insertion in insertions:
            nodes.extend(passed(self.source, insertion, self.index, self.before, self.upward))
        if own and not self.upward:
            nodes.extend(self.block.body[list(self.block.body).index(own[0]) : self.index])
        return [node for node in dict.fromkeys(nodes) if node not in own]

    def carried(self, taken: Taken, crossed: Sequence[cst.CSTNode], conditional: bool) -> list[cst.BaseStatement]:
        """The statements that need the call's result: those passed, or (of a move up) those directly behind it."""
        behind = self.block.body[self.index + 1 :]
        if not self.upward:
            return carry(self.source, taken.first, [node for node in behind if node in crossed])
        result = binds(self.source.tree(taken.first))
        if not conditional or taken.behind or not result:
            return []
        needing = itertools.takewhile(lambda node: reads(self.source.tree(node)) & result, behind)
        return carry(self.source, taken.first, needing)


def _within(
    source: Source,
    way: Sequence[Standing],
    what: Location,
    before: Sequence[Location],
    after: Sequence[Location],
    scaled: bool,
) -> SourceEdit:
    """The move of one of several statements on a line: ``optimizer.step(); clip(...)``."""
    line, at = way[-1]
    assert isinstance(line, (cst.SimpleStatementLine, cst.SimpleStatementSuite))
    smalls = list(line.body)
    first = next(k for k, small in enumerate(smalls) if source.holds(small, before))
    if at < first or not plain(source, smalls[at], what):
        raise Refused
    moved = [*(k for k in range(first, at) if only_unscales(source, smalls[k])), at]
    if any(source.holds(smalls[k], after) for k in range(first, at) if k not in moved):
        raise Refused
    unscaled = not scaled or len(moved) > 1
    unscaled = unscaled or is_unscaled(source, [*way[:-1], Standing(line, first)], after, optimizers_of(source, before))
    written = "" if unscaled else unscale_for(source, line, before)
    return reordered(source, line, moved, first, before, _DESCRIPTION, written, safe=len(moved) == 1)
