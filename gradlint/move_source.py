"""A source text as libcst reads it: statements, the blocks they stand in, and the places of calls."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import libcst as cst
from libcst.metadata import CodeRange, MetadataWrapper, PositionProvider

from gradlint.move_names import callee
from gradlint.rule import Location, SourceEdit

Line = cst.SimpleStatementLine | cst.SimpleStatementSuite
"""What holds small statements, separated by semicolons; the suite is that of ``if c: a(); b()``."""
Body = cst.Module | cst.IndentedBlock | Line
"""What holds statements."""


class Refused(Exception):
    """The edit cannot be made."""


def attempt(make: Callable[[], SourceEdit]) -> SourceEdit | None:
    """An edit, or None where it is refused or the text, as it stands or as edited, does not parse."""
    try:
        return make()
    except (Refused, cst.ParserSyntaxError, SyntaxError, RecursionError):
        return None


class Standing(NamedTuple):
    """Where a statement stands."""

    block: Body
    at: int

    @property
    def statement(self) -> cst.CSTNode:
        return self.block.body[self.at]


class Source:
    """One text with the ranges of its nodes."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.module = cst.parse_module(text)
        wrapper = MetadataWrapper(self.module, unsafe_skip_copy=True)
        self.ranges: Mapping[cst.CSTNode, CodeRange] = wrapper.resolve(PositionProvider)

    # -- nodes and places

    def contains(self, node: cst.CSTNode, place: Location) -> bool:
        """Whether a place begins inside a node."""
        return self.start(node) <= (place.line, place.column - 1) < self.end(node)

    def holds(self, node: cst.CSTNode, places: Sequence[Location]) -> bool:
        """Whether any of the places begins inside a node."""
        return any(self.contains(node, place) for place in places)

    def within(self, nodes: Iterable[cst.CSTNode], place: Location) -> bool:
        """Whether a place begins inside any of the nodes."""
        return any(self.contains(node, place) for node in nodes)

    def spans(self, node: cst.CSTNode, place: Location) -> bool:
        """Whether a node is just what stands at a place."""
        return self.begins(node, place) and self.end(node) == (place.end_line, place.end_column - 1)

    def begins(self, node: cst.CSTNode, place: Location) -> bool:
        return self.start(node) == (place.line, place.column - 1)

    def start(self, node: cst.CSTNode) -> tuple[int, int]:
        return self.ranges[node].start.line, self.ranges[node].start.column

    def end(self, node: cst.CSTNode) -> tuple[int, int]:
        return self.ranges[node].end.line, self.ranges[node].end.column

    # -- statements

    def path(self, place: Location) -> list[Standing]:
        """The statements around a place, from the module's own inwards to the smallest on a line."""
        way: list[Standing] = []
        block: Body | None = self.module
        while block is not None:
            index = next((k for k, child in enumerate(block.body) if self.contains(child, place)), None)
            if index is None:
                raise Refused
            way.append(Standing(block, index))
            child = block.body[index]
            if isinstance(child, cst.SimpleStatementLine):
                block = child
            else:
                inner = bodies(child, functions=True)
                block = next((body for body in inner if self.contains(body, place)), None)
        return way

    def meet(self, what: Location, others: Sequence[Location]) -> tuple[list[Standing], list[Location]]:
        """The way to the statement with ``what`` in the innermost block it shares with the others, and those others.

        What stands in another branch of the same ``if`` or ``match`` is left out.
        """
        way = self.path(what)
        levels: dict[int, list[Location]] = {}
        for other in others:
            there = self.path(other)
            shared = [k for k in range(min(len(way), len(there))) if way[k].block is there[k].block]
            level = shared[-1]
            if way[level].at == there[level].at:
                exclusive = isinstance(way[level].statement, (cst.If, cst.Match))
                if exclusive and min(len(way), len(there)) > level + 1:
                    continue
                raise Refused
            levels.setdefault(level, []).append(other)
        if len(levels) != 1:
            raise Refused
        level, near = levels.popitem()
        return way[: level + 1], near

    # -- text and standard trees

    def code(self, node: cst.CSTNode) -> str:
        return self.module.code_for_node(node)

    def tree(self, node: cst.CSTNode) -> ast.Module:
        """The standard tree of one statement."""
        if isinstance(node, cst.BaseCompoundStatement | cst.SimpleStatementLine):
            node = node.with_changes(leading_lines=[])
        return ast.parse(textwrap.dedent(self.code(node)).strip("; \t"))

    def call_at(self, place: Location) -> ast.Call | None:
        """The standard tree of the call at a place."""
        for node in self.ranges:
            if isinstance(node, cst.Call) and self.spans(node, place):
                call = ast.parse(self.code(node).strip(), mode="eval").body
                return call if isinstance(call, ast.Call) else None
        return None

    def calls(self, node: cst.CSTNode, names: frozenset[str]) -> list[ast.Call]:
        """The calls in a statement of methods or functions with these names."""
        inner = ast.walk(self.tree(node))
        return [call for call in inner if isinstance(call, ast.Call) and callee(call) in names]


def bodies(node: cst.CSTNode, functions: bool = False) -> Iterator[cst.IndentedBlock | cst.SimpleStatementSuite]:
    """The blocks and one-line suites of a compound statement."""
    if isinstance(node, (cst.FunctionDef, cst.ClassDef)) and not functions:
        return
    body = getattr(node, "body", None)
    if isinstance(body, (cst.IndentedBlock, cst.SimpleStatementSuite)):
        yield body
    for name in ("orelse", "finalbody"):
        part = getattr(node, name, None)
        if isinstance(part, cst.CSTNode):
            yield from bodies(part, functions)
    for part in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
        yield from bodies(part, functions)


def blocks(node: cst.CSTNode, functions: bool = False) -> Iterator[cst.IndentedBlock]:
    """The blocks of a compound statement."""
    return (body for body in bodies(node, functions) if isinstance(body, cst.IndentedBlock))


def every_branch(node: cst.CSTNode, held: Callable[[cst.CSTNode], bool]) -> bool:
    """Whether a statement is an ``if`` with an ``else`` in which each branch has what is asked."""
    branch = node if isinstance(node, cst.If) else None
    while branch is not None:
        if not held(branch.body):
            return False
        if isinstance(branch.orelse, cst.Else):
            return held(branch.orelse.body)
        branch = branch.orelse
    return False


def line_of(smalls: Sequence[cst.BaseSmallStatement]) -> cst.SimpleStatementLine:
    """A line of its own for some small statements."""
    return cst.SimpleStatementLine([*smalls[:-1], smalls[-1].with_changes(semicolon=cst.MaybeSentinel.DEFAULT)])
