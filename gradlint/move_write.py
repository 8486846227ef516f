"""Writing an edit down: the same tree with some statements taken out of blocks and others put in."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal, TypeVar

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider

from gradlint.move_holder import Taken
from gradlint.move_names import survivors
from gradlint.move_source import Body, Line, Refused, Source, Standing, line_of
from gradlint.rule import SourceEdit

Applicability = Literal["safe", "unsafe"]


@dataclasses.dataclass(frozen=True)
class Insertion:
    """Where statements go."""

    trail: tuple[Standing, ...]
    """The way to the statement that they go before, from some block around it."""
    behind: bool = False
    """They follow the statement before; else they belong to the one behind, and go below the blank lines above it."""
    unscale: str = ""
    """An ``unscale_`` to be written ahead of them."""
    nested: bool = False
    """It is in an inner block: they become conditional."""
    bare: bool = False
    """Without the ``if`` around: the guard it goes into has the same condition."""

    @property
    def depth(self) -> int:
        """How many compound statements it is in, of those on its trail."""
        return sum(isinstance(at.statement, cst.BaseCompoundStatement) for at in self.trail[:-1])

    def following(self) -> list[cst.CSTNode]:
        """The statements behind the place, in its block."""
        block, at = self.trail[-1]
        found: list[cst.CSTNode] = list(block.body[at:])
        if isinstance(block, cst.SimpleStatementLine) and len(self.trail) > 1:
            outer, line = self.trail[-2]
            found.extend(outer.body[line + 1 :])
        return found


_LineT = TypeVar("_LineT", cst.SimpleStatementLine, cst.SimpleStatementSuite)
_SEMICOLON = cst.Semicolon(whitespace_after=cst.SimpleWhitespace(" "))


class Writer:
    """Collects the changes of one text."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.gone: set[cst.CSTNode] = set()
        self.instead: dict[cst.CSTNode, list[cst.BaseStatement]] = {}
        self.order: dict[cst.CSTNode, list[cst.BaseSmallStatement]] = {}
        self.added: dict[tuple[Body, int], list[tuple[bool, list[cst.BaseStatement]]]] = {}
        self.placed: dict[cst.CSTNode, int] = {}
        """The statements that were put in, with the lines they had."""

    # -- changes

    def move(self, taken: Taken, moved: Sequence[cst.BaseStatement], insertions: Sequence[Insertion]) -> None:
        """Take statements out, ``taken.first`` among them, and put them in where they go."""
        self.gone.update(node for node in moved if node is not taken.first)
        self.take_out(taken)
        for insertion in insertions:
            new: list[cst.BaseStatement] = []
            if insertion.unscale:
                new.append(self.written(insertion.unscale))
            for node in moved:
                line = taken.line if node is taken.first else self.source.start(node)[0]
                new.extend(self.copies(node, line, insertion.bare and node is taken.holder))
            self.insert(insertion, new)

    def take_out(self, taken: Taken) -> None:
        """Take a statement out of its block, or of its line."""
        if taken.remainder is None:
            self.gone.add(taken.holder)
        else:
            self.replace(taken.holder, [taken.remainder])

    def insert(self, insertion: Insertion, statements: list[cst.BaseStatement]) -> None:
        """Put new statements in."""
        block, at = insertion.trail[-1]
        if isinstance(block, cst.SimpleStatementLine) and at in {0, len(block.body)}:
            outer, line = insertion.trail[-2]
            block, at = outer, line + (at > 0)
        if isinstance(block, (cst.SimpleStatementLine, cst.SimpleStatementSuite)):
            self.instead[block] = self.split(block, at, statements)
        else:
            self.added.setdefault((block, at), []).append((insertion.behind, statements))

    def replace(self, node: cst.CSTNode, statements: list[cst.BaseStatement]) -> None:
        """Put new statements in the place of one, whose lines they are."""
        self.instead[node] = statements
        self.placed.update((statement, self.source.start(node)[0]) for statement in statements)

    def reorder(self, line: Line, smalls: Sequence[cst.BaseSmallStatement]) -> None:
        """Put the statements of a line in another order, with new ones among them."""
        marks = [small.semicolon for small in line.body]
        marks[-1:] = [_SEMICOLON] * (len(smalls) - len(marks)) + marks[-1:]
        self.order[line] = [small.with_changes(semicolon=mark) for small, mark in zip(smalls, marks, strict=True)]

    def smalls(self, code: str) -> list[cst.BaseSmallStatement]:
        """Small statements made from text."""
        line = self.written(code) if code else None
        return list(line.body) if isinstance(line, cst.SimpleStatementLine) else []

    def written(self, code: str) -> cst.BaseStatement:
        """A statement made from text."""
        return cst.parse_statement(code, config=self.source.module.config_for_parsing)

    def guard(
        self, condition: str, statements: Sequence[cst.BaseStatement], above: Sequence[cst.EmptyLine] = ()
    ) -> cst.If:
        """New statements under an ``if``."""
        test = cst.parse_expression(condition, config=self.source.module.config_for_parsing)
        return cst.If(test, cst.IndentedBlock(statements), leading_lines=above)

    def split(
        self, line: cst.SimpleStatementLine | cst.SimpleStatementSuite, part: int, statements: list[cst.BaseStatement]
    ) -> list[cst.BaseStatement]:
        """The statements of a line on lines of their own, with others between them."""
        before, after = line.body[:part], line.body[part:]
        lines = [line_of(smalls) for smalls in (before, after) if smalls]
        lines[-1 if after else 0] = lines[-1 if after else 0].with_changes(trailing_whitespace=line.trailing_whitespace)
        if isinstance(line, cst.SimpleStatementLine):
            lines[0] = lines[0].with_changes(leading_lines=line.leading_lines)
        starts = [self.source.start(smalls[0])[0] for smalls in (before, after) if smalls]
        self.placed.update(zip(lines, starts, strict=True))
        at = 1 if before else 0
        return [*lines[:at], *statements, *lines[at:]]

    def copies(self, node: cst.BaseStatement, line: int, bare: bool = False) -> list[cst.BaseStatement]:
        """A moved statement as it is put in; where it stood is noted."""
        if bare:
            parts = _guarded(node)
            lines = [self.source.start(part)[0] if part in self.source.ranges else line for part in parts]
        else:
            parts, lines = [node.with_changes(leading_lines=split_lead(node)[1])], [line]
        clones = [part.deep_clone() for part in parts]
        self.placed.update(zip(clones, lines, strict=True))
        return clones

    # -- the new text

    def finish(self, applicability: Applicability, description: str) -> SourceEdit:
        changed: set[cst.CSTNode] = {block for block, _ in self.added}
        wanted = self.gone | set(self.instead)
        module = self.source.module.visit(_Replace(self, changed, wanted))
        assert isinstance(module, cst.Module)
        text = module.code
        ast.parse(text)
        if text == self.source.text:
            raise Refused
        ranges = MetadataWrapper(module, unsafe_skip_copy=True).resolve(PositionProvider)
        line_map: dict[int, int] = {}
        for node, origin in self.placed.items():
            span = ranges[node]
            for k in range(span.end.line - span.start.line + 1):
                line_map[span.start.line + k] = origin + k
        line_map = survivors(self.source.text, text, line_map)
        return SourceEdit(text, applicability, description, line_map)

    def body(
        self, original: cst.Module | cst.IndentedBlock, updated: cst.Module | cst.IndentedBlock
    ) -> tuple[list[cst.BaseStatement], list[cst.EmptyLine]]:
        """A block's new statements, and lines that are left for its end.

        Blank lines and comments that do not belong to what is taken out stay.
        """
        body: list[cst.BaseStatement] = []
        spare: list[cst.EmptyLine] = []
        for index, (child, now) in enumerate(zip(original.body, updated.body, strict=True)):
            stays = [] if child in self.gone else list(self.instead.get(child, [now]))
            for behind, statements in self.added.get((original, index), ()):
                if not behind and stays:
                    above, own = split_lead(stays[0])
                    statements[0] = self.headed(statements[0], [*_joined(spare, above), *_lead(statements[0])])
                    stays[0] = self.headed(stays[0], own)
                    spare = []
                body.extend(statements)
            if stays and spare:
                stays[0] = self.headed(stays[0], _joined(spare, _lead(stays[0])))
                spare = []
            if not stays:
                spare.extend(split_lead(child)[0])
            body.extend(stays)
        for _, statements in self.added.get((original, len(original.body)), ()):
            body.extend(statements)
        if not body:
            raise Refused
        while spare and spare[-1].comment is None:
            spare.pop()
        return body, spare

    def headed(self, node: cst.BaseStatement, lines: Sequence[cst.EmptyLine]) -> cst.BaseStatement:
        """A statement with other lines above it."""
        headed = node.with_changes(leading_lines=lines)
        if node in self.placed:
            self.placed[headed] = self.placed.pop(node)
        return headed


class _Replace(cst.CSTTransformer):
    """Gives the changed blocks their new statements."""

    def __init__(self, writer: Writer, changed: Iterable[cst.CSTNode], wanted: Iterable[cst.CSTNode]) -> None:
        super().__init__()
        self.writer = writer
        self.changed = set(changed)
        self.wanted = set(wanted)

    def leave_IndentedBlock(self, original_node: cst.IndentedBlock, updated_node: cst.IndentedBlock) -> cst.BaseSuite:
        if not self.concerns(original_node):
            return updated_node
        body, spare = self.writer.body(original_node, updated_node)
        return updated_node.with_changes(body=body, footer=[*spare, *updated_node.footer])

    def leave_Module(self, original_node: cst.Module, updated_node: cst.Module) -> cst.Module:
        if not self.concerns(original_node):
            return updated_node
        body, spare = self.writer.body(original_node, updated_node)
        return updated_node.with_changes(body=body, footer=[*spare, *updated_node.footer])

    def leave_SimpleStatementSuite(
        self, original_node: cst.SimpleStatementSuite, updated_node: cst.SimpleStatementSuite
    ) -> cst.BaseSuite:
        lines = self.writer.instead.get(original_node)
        return cst.IndentedBlock(lines) if lines else self.reordered(original_node, updated_node)

    def leave_SimpleStatementLine(
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> cst.SimpleStatementLine:
        return self.reordered(original_node, updated_node)

    def reordered(self, original: _LineT, updated: _LineT) -> _LineT:
        if original not in self.writer.order:
            return updated
        line = updated.with_changes(body=self.writer.order[original])
        self.writer.placed[line] = self.writer.source.start(original)[0]
        return line

    def concerns(self, block: cst.Module | cst.IndentedBlock) -> bool:
        return block in self.changed or not self.wanted.isdisjoint(block.body)


def split_lead(node: cst.CSTNode) -> tuple[list[cst.EmptyLine], list[cst.EmptyLine]]:
    """The lines above a statement: those that stay, and the comments directly on top of it, which go with it."""
    lines = _lead(node)
    own = len(lines)
    while own and lines[own - 1].comment is not None:
        own -= 1
    return lines[:own], lines[own:]


def _lead(node: cst.CSTNode) -> list[cst.EmptyLine]:
    return list(getattr(node, "leading_lines", ()))


def _joined(spare: Sequence[cst.EmptyLine], lines: Sequence[cst.EmptyLine]) -> list[cst.EmptyLine]:
    """Lines that lost their statement, ahead of the next one's, without a doubled blank line."""
    spare = list(spare)
    if lines and lines[0].comment is None and spare and spare[-1].comment is None:
        spare.pop()
    return [*spare, *lines]


def _guarded(node: cst.BaseStatement) -> list[cst.BaseStatement]:
    """The statements under an ``if``."""
    if isinstance(node, cst.If) and isinstance(node.body, cst.IndentedBlock):
        return [child for child in node.body.body if isinstance(child, cst.BaseStatement)]
    if isinstance(node, cst.If) and isinstance(node.body, cst.SimpleStatementSuite):
        return [cst.SimpleStatementLine(node.body.body)]
    return [node]
