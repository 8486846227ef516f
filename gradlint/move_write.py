"""Writing a move down: the same tree with some statements taken out of one block and put into others."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import libcst as cst
from libcst.metadata import CodeRange, MetadataWrapper, PositionProvider

from gradlint.move_names import survivors
from gradlint.rule import SourceEdit

Block = cst.Module | cst.IndentedBlock
Applicability = Literal["safe", "unsafe"]


@dataclasses.dataclass(frozen=True)
class Insertion:
    """Where the moved statements go: before ``block.body[index]``, with an ``unscale_`` of its own if needed."""

    block: Block
    index: int
    unscale: str = ""
    nested: bool = False
    bare: bool = False
    """Without the ``if`` around: the guard it goes into has the same condition."""


class Writer:
    """Makes the new text. ``holder`` is the statement that holds the moved call."""

    def __init__(
        self, text: str, module: cst.Module, ranges: Mapping[cst.CSTNode, CodeRange], holder: cst.BaseStatement
    ) -> None:
        self.text = text
        self.module = module
        self.ranges = ranges
        self.holder = holder

    def write(
        self,
        block: Block,
        remainder: cst.SimpleStatementLine | None,
        moved: Sequence[cst.BaseStatement],
        insertions: Sequence[Insertion],
        applicability: Applicability,
    ) -> SourceEdit:
        bodies = {block: self.without(block, remainder, moved)}
        placed: list[tuple[cst.CSTNode, int]] = []
        for insertion in reversed(insertions):
            body = bodies.setdefault(insertion.block, [_Kept(k, c, None) for k, c in enumerate(insertion.block.body)])
            at = sum(1 for op in body if op is remainder or (isinstance(op, _Kept) and op.index < insertion.index))
            new: list[cst.CSTNode | _Kept] = []
            if insertion.unscale:
                new.append(cst.parse_statement(insertion.unscale, config=self.module.config_for_parsing))
            for node in moved:
                new.extend(self.copies(node, insertion, placed))
            body[at:at] = new
        result = self.module.visit(_Replace(bodies))
        assert isinstance(result, cst.Module)
        return self.finished(result, placed, applicability)

    def without(
        self,
        block: Block,
        remainder: cst.SimpleStatementLine | None,
        moved: Sequence[cst.BaseStatement],
    ) -> list[cst.CSTNode | _Kept]:
        """The block without the moved statements; blank lines and comments that are not theirs stay."""
        kept: list[cst.CSTNode | _Kept] = []
        spare: list[cst.EmptyLine] = []
        for index, child in enumerate(block.body):
            if child is self.holder and remainder is not None:
                kept.append(remainder)
            elif child is self.holder or child in moved:
                spare.extend(_split_lead(child)[0])
            else:
                kept.append(_Kept(index, child, _joined(spare, child) if spare else None))
                spare = []
        return kept

    def copies(
        self,
        node: cst.BaseStatement,
        insertion: Insertion,
        placed: list[tuple[cst.CSTNode, int]],
    ) -> list[cst.CSTNode]:
        """A moved statement as it is inserted; with the line it had before noted in ``placed``."""
        origin = self.ranges[node if node in self.ranges else self.holder].start.line
        if insertion.bare and node is self.holder:
            inner = self.guarded(node)
            clones = [part.deep_clone() for part in inner]
            lines = [self.ranges[part].start.line if part in self.ranges else origin for part in inner]
            placed.extend(zip(clones, lines, strict=True))
            return list(clones)
        clone = node.with_changes(leading_lines=_split_lead(node)[1]).deep_clone()
        placed.append((clone, origin))
        return [clone]

    def guarded(self, node: cst.BaseStatement) -> list[cst.BaseStatement]:
        """The statements under the ``if`` that is moved."""
        if isinstance(node, cst.If) and isinstance(node.body, cst.IndentedBlock):
            return list(node.body.body)
        if isinstance(node, cst.If) and isinstance(node.body, cst.SimpleStatementSuite):
            return [cst.SimpleStatementLine(node.body.body)]
        return [node]

    def finished(
        self, module: cst.Module, placed: Sequence[tuple[cst.CSTNode, int]], applicability: Applicability
    ) -> SourceEdit:
        text = module.code
        ast.parse(text)
        ranges = MetadataWrapper(module, unsafe_skip_copy=True).resolve(PositionProvider)
        line_map: dict[int, int] = {}
        for node, origin in placed:
            span = ranges[node]
            for k in range(span.end.line - span.start.line + 1):
                line_map[span.start.line + k] = origin + k
        line_map = survivors(self.text, text, line_map)
        return SourceEdit(text, applicability, "move the clip to after the backward", line_map)


@dataclasses.dataclass(frozen=True)
class _Kept:
    """A statement that stays in its block, with other lines above it if ``lead`` is given."""

    index: int
    node: cst.CSTNode
    lead: Sequence[cst.EmptyLine] | None


class _Replace(cst.CSTTransformer):
    """Gives blocks a new body; what is kept is kept as its own blocks were changed."""

    def __init__(self, bodies: Mapping[Block, Sequence[cst.CSTNode | _Kept]]) -> None:
        super().__init__()
        self.bodies = bodies

    def leave_IndentedBlock(self, original_node: cst.IndentedBlock, updated_node: cst.IndentedBlock) -> cst.BaseSuite:
        return updated_node.with_changes(body=self.body(original_node, updated_node))

    def leave_Module(self, original_node: cst.Module, updated_node: cst.Module) -> cst.Module:
        return updated_node.with_changes(body=self.body(original_node, updated_node))

    def body(self, original: Block, updated: Block) -> Sequence[cst.CSTNode]:
        if original not in self.bodies:
            return updated.body
        body: list[cst.CSTNode] = []
        for op in self.bodies[original]:
            if not isinstance(op, _Kept):
                body.append(op)
                continue
            node = updated.body[op.index]
            body.append(node if op.lead is None else node.with_changes(leading_lines=op.lead))
        return body


def _split_lead(node: cst.CSTNode) -> tuple[list[cst.EmptyLine], list[cst.EmptyLine]]:
    """The lines above a statement: those that stay, and the comments directly on top of it, which go with it."""
    lines = list(getattr(node, "leading_lines", ()))
    own = len(lines)
    while own and lines[own - 1].comment is not None:
        own -= 1
    return lines[:own], lines[own:]


def _joined(spare: Sequence[cst.EmptyLine], node: cst.CSTNode) -> list[cst.EmptyLine]:
    """Lines that lost their statement, ahead of the next one's, without a doubled blank line."""
    lines = list(getattr(node, "leading_lines", ()))
    spare = list(spare)
    if lines and lines[0].comment is None and spare and spare[-1].comment is None:
        spare.pop()
    return [*spare, *lines]
