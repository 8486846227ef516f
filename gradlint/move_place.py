"""The places directly ahead of some calls (the steps), for a statement that has to come first on every path to them."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import libcst as cst

from gradlint.move_cross import schedules
from gradlint.move_source import Body, Refused, Source, Standing, bodies, every_branch
from gradlint.move_unscale import is_unscaled, mentions_unscale, optimizers_of, unscale_for
from gradlint.move_write import Insertion
from gradlint.rule import Location


class Places:
    """Finds the places in one block: ahead of the calls ``before``, behind the calls ``after``.

    ``outer`` is the way to the block. Unless ``unscaled``, an ``unscale_`` has to come first.
    """

    def __init__(
        self,
        source: Source,
        outer: Sequence[Standing],
        before: Sequence[Location],
        after: Sequence[Location],
        unscaled: bool,
    ) -> None:
        self.source = source
        self.outer = outer
        self.before = before
        self.after = after
        self.unscaled = unscaled
        self.optimizers = optimizers_of(source, before)

    def holds(self, node: cst.CSTNode) -> bool:
        """Whether a statement holds one of the calls."""
        return self.source.holds(node, self.before)

    def certain(self, block: cst.CSTNode, strict: bool = False) -> bool:
        """Whether a block always comes to one of the calls, if it is not left.

        A loop counts as run, and a ``try`` as run to its end, unless ``strict``.
        """
        return any(self.holds(child) and self._surely(child, strict) for child in getattr(block, "body", ()))

    def find(self, block: Body, targets: Sequence[int], trail: tuple[Standing, ...] = ()) -> list[Insertion]:
        """Ahead of the first statement of the block that holds one of the calls, or inside of each that does."""
        here = (*trail, Standing(block, targets[0]))
        waiting = [k for k in range(targets[0], len(block.body)) if self.source.holds(block.body[k], self.after)]
        if any(k not in targets for k in waiting):
            raise Refused
        unscaled = self.unscaled or is_unscaled(self.source, (*self.outer, *here), self.after, self.optimizers)
        node = here[-1].statement
        if isinstance(node, (cst.SimpleStatementLine, cst.BaseSmallStatement)):
            if any(k != targets[0] for k in waiting):
                raise Refused
            if isinstance(node, cst.SimpleStatementLine):
                return self.find(node, self._targets(node), here)
            if waiting:
                raise Refused
            return [Insertion(here, unscale="" if unscaled else unscale_for(self.source, node, self.before))]
        inner = [block.body[k] for k in targets]
        if not waiting and unscaled and not any(mentions_unscale(self.source, node) for node in inner):
            if self.certain(block):
                return [Insertion(here)]
        elif not all(isinstance(node, cst.BaseCompoundStatement) for node in inner):
            raise Refused
        return [found for k in targets for found in self._inside((*trail, Standing(block, k)), unscaled)]

    def _inside(self, trail: tuple[Standing, ...], unscaled: bool) -> list[Insertion]:
        node = trail[-1].statement
        loop = isinstance(node, (cst.For, cst.While)) and not self.source.holds(node, self.after)
        found: list[Insertion] = []
        for body in bodies(node):
            targets = self._targets(body)
            if targets:
                found.extend(self.find(body, targets, trail))
        if not found or (loop and not unscaled):
            raise Refused
        return [dataclasses.replace(insertion, nested=True) for insertion in found]

    def _targets(self, block: Body) -> list[int]:
        return [k for k, child in enumerate(block.body) if self.holds(child)]

    def _surely(self, node: cst.CSTNode, strict: bool) -> bool:
        if isinstance(node, cst.If):
            return every_branch(node, lambda branch: self.certain(branch, strict))
        if isinstance(node, cst.With) or (isinstance(node, (cst.For, cst.While, cst.Try)) and not strict):
            return self.certain(node.body, strict)
        return isinstance(node, (cst.SimpleStatementLine, cst.BaseSmallStatement))


def directly_ahead(source: Source, place: Location) -> tuple[Standing, ...]:
    """The way to the statement that holds a call, if what is put in ahead of it is run just before the call.

    Refused in a lambda, in the condition of a loop and the like.
    """
    way = source.path(place)
    node = way[-1].statement
    if any(isinstance(inner, cst.Lambda) and source.contains(inner, place) for inner in source.ranges):
        raise Refused
    headers: Sequence[cst.CSTNode] = ()
    if isinstance(node, cst.If):
        headers = [node.test]
    elif isinstance(node, cst.For):
        headers = [node.iter]
    elif isinstance(node, cst.With):
        headers = node.items[:1]
    if not isinstance(node, cst.BaseSmallStatement) and not source.within(headers, place):
        raise Refused
    return tuple(way)


def outwards(trail: Sequence[Standing], held: Callable[[cst.CSTNode], bool], first: bool) -> tuple[Standing, ...]:
    """The way to a statement, cut at the outermost ``if`` around it that has what is asked in each of its branches.

    With ``first`` also at a ``with`` that begins with the statement.
    """
    trail = tuple(trail)
    while True:
        outer = [k for k, at in enumerate(trail[:-1]) if isinstance(at.statement, cst.BaseCompoundStatement)]
        node = trail[outer[-1]].statement if outer else None
        opens = first and isinstance(node, cst.With) and not any(at.at for at in trail[outer[-1] + 1 :])
        if not opens and not (node and every_branch(node, held)):
            return trail
        trail = trail[: outer[-1] + 1]


def earlier(trail: Sequence[Standing]) -> Iterator[tuple[tuple[Standing, ...], cst.CSTNode]]:
    """The statements ahead of a place in its block, the nearest first, each with the way to it.

    Of a line of several statements each is told. Functions and classes are left out: they do not run there.
    """
    for depth in range(len(trail), 0, -1):
        block, at = trail[depth - 1]
        for k in range(at - 1, -1, -1):
            way = (*trail[: depth - 1], Standing(block, k))
            node = block.body[k]
            if isinstance(node, cst.SimpleStatementLine):
                for part in range(len(node.body) - 1, -1, -1):
                    yield (*way, Standing(node, part)), node.body[part]
            elif not isinstance(node, (cst.FunctionDef, cst.ClassDef)):
                yield way, node
        if not isinstance(block, cst.SimpleStatementLine):
            return


def says(source: Source, node: cst.CSTNode, statement: ast.Module) -> bool:
    """Whether a statement is this one."""
    return ast.dump(source.tree(node)) == ast.dump(statement)


def steps_in(source: Source, node: cst.CSTNode) -> bool:
    """Whether a statement makes a step that is not a scheduler's."""
    return not all(schedules(call) for call in source.calls(node, frozenset(["step"])))


def passed(
    source: Source, insertion: Insertion, index: int, calls: Sequence[Location], upward: bool
) -> list[cst.CSTNode]:
    """The statements between a place and the statement ``index`` of the block that its trail begins in.

    Statements around or beside the place that hold one of the calls too are left out.
    """
    found: list[cst.CSTNode] = []
    for depth, (block, at) in enumerate(insertion.trail):
        last = depth == len(insertion.trail) - 1
        if upward:
            nodes = block.body[at if last else at + 1 : index if depth == 0 else None]
        else:
            nodes = block.body[0 if depth else index + 1 : at]
        found.extend(node for node in nodes if last or not source.holds(node, calls))
    return found
