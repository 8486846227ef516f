"""Moving a call to after another one: the remedy for a clip that comes before its backward, made with libcst.

What is moved is the statement that holds the call (with an ``if`` or ``with`` around it that holds nothing else),
the comments above it, and the statements that need its result. The move is refused (None) where it would cross
something it does not understand: a new binding of a name the statement reads, or a way out of the block.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Sequence

import libcst as cst

from gradlint.move_cross import carry, check, check_result, understood
from gradlint.move_holder import held, take
from gradlint.move_source import Body, Refused, Source, Standing, attempt, blocks, every_branch
from gradlint.move_unscale import mentions_unscale, unscale_for
from gradlint.move_write import Insertion, Writer
from gradlint.rule import Location, SourceEdit


def move_after(
    text: str, what: Location, after: Sequence[Location], before: Sequence[Location], scaled: bool = False
) -> SourceEdit | None:
    """Move the call at ``what`` to after the calls ``after`` (backward) and ahead of the calls ``before`` (steps).

    With ``scaled`` the gradients are multiplied by a loss scale until an ``unscale_``: the call goes after it, and
    where there is none one is written. None where the move is refused.
    """
    return attempt(lambda: _Mover(Source(text), scaled).run(what, tuple(after), tuple(before)))


class _Mover:
    """One move in one text."""

    def __init__(self, source: Source, scaled: bool) -> None:
        self.source = source
        self.scaled = scaled
        self.crossed: list[cst.CSTNode] = []

    def run(self, what: Location, after: tuple[Location, ...], before: tuple[Location, ...]) -> SourceEdit:
        block, index = self.meet(self.source.module, what, after)
        holder = block.body[index]
        small = held(self.source, holder, what)
        insertions = self.plan(block, index + 1, after, before, holder)
        taken = take(self.source, holder, small)
        self.crossed[:0] = taken.behind
        following = [node for node in block.body[index + 1 :] if node in self.crossed]
        moved = [taken.first, *carry(self.source, taken.first, following)]
        check(self.source, moved, self.crossed)
        if any(insertion.nested for insertion in insertions):
            check_result(self.source, moved, ast.parse(self.source.text))
        safe = all(understood(self.source.tree(node)) for node in self.crossed if node not in moved)
        safe = safe and not any(insertion.unscale or insertion.nested for insertion in insertions)
        writer = Writer(self.source)
        writer.move(taken, moved, insertions)
        return writer.finish("safe" if safe else "unsafe", "move the clip to after the backward")

    def holds(self, node: cst.CSTNode, places: Sequence[Location]) -> bool:
        return self.source.holds(node, places)

    def meet(self, block: Body, what: Location, after: Sequence[Location]) -> tuple[Body, int]:
        """The innermost block in which the call and the calls it goes after stand in different statements."""
        contains = self.source.contains
        for index, child in enumerate(block.body):
            if not contains(child, what):
                continue
            if not self.holds(child, after):
                return block, index
            for inner in blocks(child, functions=True):
                if contains(inner, what):
                    if not all(contains(inner, place) for place in after):
                        raise Refused
                    return self.meet(inner, what, after)
        raise Refused

    # -- where the call goes

    def plan(
        self, block: Body, low: int, after: Sequence[Location], before: Sequence[Location], holder: cst.CSTNode | None
    ) -> list[Insertion]:
        """After the last backward ahead of the first step; the statements passed on the way are noted as crossed."""
        backward = [k for k in range(low, len(block.body)) if self.holds(block.body[k], after)]
        steps = [k for k in range(low, len(block.body)) if self.holds(block.body[k], before)]
        steps = [k for k in steps if backward and k >= backward[0]]
        if not backward:
            raise Refused
        first = steps[0] if steps else len(block.body)
        last = max((k for k in backward if k <= first), default=first)
        self.crossed.extend(block.body[low:last])
        if last == first:
            return self.inside(block.body[last], after, before)
        self.crossed.append(block.body[last])
        return self.between(block, last + 1, first, before, holder)

    def inside(self, node: cst.CSTNode, after: Sequence[Location], before: Sequence[Location]) -> list[Insertion]:
        """Into a compound statement that holds the backward and the step."""
        found: list[Insertion] = []
        for inner in blocks(node):
            if self.holds(inner, after) != self.holds(inner, before):
                raise Refused
            if self.holds(inner, after):
                found.extend(self.plan(inner, 0, after, before, None))
        if not found:
            raise Refused
        return [dataclasses.replace(insertion, nested=True) for insertion in found]

    def between(
        self, block: Body, low: int, step: int, before: Sequence[Location], holder: cst.CSTNode | None
    ) -> list[Insertion]:
        """Directly behind the backward if the step is in the same block; else into the guard of the step."""
        for k in range(step - 1, low - 1, -1):
            if mentions_unscale(self.source, block.body[k]):
                self.crossed.extend(block.body[low : k + 1])
                return [_behind(block, k + 1, nested=not isinstance(block.body[k], cst.SimpleStatementLine))]
        if step >= len(block.body):
            if self.scaled:
                raise Refused
            return [_behind(block, low)]
        target = block.body[step]
        if isinstance(target, cst.SimpleStatementLine):
            return [_behind(block, low, unscale=self.unscale(target, before))]
        plain = not self.scaled and not mentions_unscale(self.source, target)
        bare = same_guard(self.source, holder, target)
        if plain and (bare or every_branch(target, lambda branch: self.holds(branch, before))):
            return [_behind(block, low)]
        self.crossed.extend(block.body[low:step])
        found = [
            insertion
            for inner in blocks(target)
            if self.holds(inner, before)
            for insertion in self.ahead(inner, before)
        ]
        if not found:
            raise Refused
        return [dataclasses.replace(insertion, nested=True, bare=bare) for insertion in found]

    def ahead(self, block: Body, before: Sequence[Location]) -> list[Insertion]:
        """Directly ahead of the step in its block."""
        step = next(k for k, child in enumerate(block.body) if self.holds(child, before))
        target = block.body[step]
        if isinstance(target, cst.SimpleStatementLine):
            for k in range(step - 1, -1, -1):
                if mentions_unscale(self.source, block.body[k]):
                    self.crossed.extend(block.body[: k + 1])
                    return [_behind(block, k + 1)]
            self.crossed.extend(block.body[:step])
            return [_behind(block, step, unscale=self.unscale(target, before))]
        return self.between(block, 0, step, before, None)

    def unscale(self, line: cst.SimpleStatementLine, before: Sequence[Location]) -> str:
        return unscale_for(self.source, line, before) if self.scaled else ""


def _behind(block: Body, at: int, unscale: str = "", nested: bool = False) -> Insertion:
    return Insertion((Standing(block, at),), behind=True, unscale=unscale, nested=nested)


def same_guard(source: Source, holder: cst.CSTNode | None, target: cst.CSTNode) -> bool:
    """Whether two statements are an ``if`` with the same condition, and the second has no ``else``."""
    if not isinstance(holder, cst.If) or not isinstance(target, cst.If) or target.orelse is not None:
        return False
    return source.code(holder.test) == source.code(target.test)
