"""A file's own text with everything blanked out but some statements: what is kept stays at its line and column."""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from gradlint.facts.names import blocks

_FILLER = "0;"  # before a kept statement that has something blanked before it on its line
Position = tuple[int, int]  # line from 0, column from 0 in characters


@dataclass(frozen=True)
class Keep:
    """What survives of a file. Statements are told apart by identity."""

    whole: Collection[ast.stmt]
    """Statements that stay as they are."""
    partly: Collection[ast.stmt] = ()
    """Compound statements of whose blocks only the kept statements stay; an empty block becomes ``pass``."""
    replaced: Mapping[ast.stmt, str] = field(default_factory=dict)
    """New text for a statement, on its first line: narrowed imports, ``pass`` for a ``return``."""
    headers: Mapping[ast.stmt, str] = field(default_factory=dict)
    """New header for a statement with a body (``if 1:`` for a ``def``); its first block is kept partly."""


def blanked(text: str, body: Sequence[ast.stmt], keep: Keep) -> str:
    """``text``, whose module body is ``body``, with everything but ``keep`` blanked; as many lines as before.

    Columns of what is kept do not change, except behind a replacement that is longer than what it replaces.
    """
    page = _Page(text, keep)
    page.block(body, None)
    return "\n".join(line or "" for line in page.out)


class _Page:
    def __init__(self, text: str, keep: Keep) -> None:
        self.lines = text.split("\n")
        self.keep = keep
        self.out: list[str | None] = [None] * len(self.lines)

    # -- positions

    def at(self, line: int, column: int) -> Position:
        """From the ``ast``'s line (from 1) and column (in UTF-8 bytes)."""
        text = self.lines[line - 1]
        if not text.isascii():
            column = len(text.encode()[:column].decode(errors="ignore"))
        return line - 1, column

    def start(self, node: ast.stmt) -> Position:
        line, column = self.at(node.lineno, node.col_offset)
        decorators: list[ast.expr] = getattr(node, "decorator_list", [])
        if decorators:
            line = decorators[0].lineno - 1
            while line > 0 and self.lines[line][column : column + 1] != "@":
                line -= 1
        return line, column

    def end(self, node: ast.stmt) -> Position:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self.at(node.end_lineno, node.end_col_offset)

    # -- writing

    def put(self, where: Position, text: str) -> None:
        """Writes a piece of one line at its column, or right behind what is there already."""
        line, column = where
        before = self.out[line]
        if before is None:
            prefix = self.lines[line][:column]
            before = prefix if not prefix.strip() else ""
        self.out[line] = before + " " * (column - len(before)) + text

    def copy(self, start: Position, end: Position) -> None:
        """Writes the original text from ``start`` to ``end``."""
        if start >= end:
            return
        if start[0] == end[0]:
            self.put(start, self.lines[start[0]][start[1] : end[1]])
            return
        self.put(start, self.lines[start[0]][start[1] :])
        for line in range(start[0] + 1, end[0]):
            self.out[line] = self.lines[line]
        if end[1]:
            self.out[end[0]] = self.lines[end[0]][: end[1]]

    def begin(self, where: Position, indent: str) -> None:
        """Makes a line ready for a statement that must not seem indented by what was blanked before it."""
        line, column = where
        if (self.out[line] or "").strip():
            return
        joined = line > 0 and self.lines[line - 1].endswith("\\")
        if self.lines[line][:column].strip() or (joined and column != len(indent)):
            self.out[line] = indent + _FILLER

    # -- statements

    def block(self, body: Sequence[ast.stmt], filler: str | None) -> None:
        """The kept statements of one block; ``filler`` stands for a block of which nothing is kept."""
        kept = [node for node in body if self.kept(node)]
        if not kept:
            if filler is not None and body:
                self.put(self.start(body[0]), filler)
            return
        line, column = self.start(body[0])
        indent = self.lines[line][:column]
        indent = indent if not indent.strip() else ""
        last: Position | None = None
        for node in kept:
            start = self.start(node)
            if last is not None and last[0] == start[0] and (self.out[last[0]] or "").strip():
                self.put((start[0], self.lines[start[0]].index(";", last[1])), ";")
            else:
                self.begin(start, indent)
            self.statement(node)
            last = self.end(node)

    def kept(self, node: ast.stmt) -> bool:
        keep = self.keep
        return node in keep.whole or node in keep.partly or node in keep.replaced or node in keep.headers

    def statement(self, node: ast.stmt) -> None:
        keep = self.keep
        if node in keep.replaced:
            self.put(self.start(node), keep.replaced[node])
        elif node in keep.headers:
            self.put(self.at(node.lineno, node.col_offset), keep.headers[node])
            self.suite(node.body)  # type: ignore[attr-defined]
        elif node in keep.partly or self.touched(node):
            self.compound(node)
        else:
            self.copy(self.start(node), self.end(node))

    def touched(self, node: ast.stmt) -> bool:
        """Whether something inside a statement that is kept whole is replaced."""
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            return False
        last = node.end_lineno or node.lineno
        return any(node.lineno <= r.lineno <= last for r in self.keep.replaced) and any(True for _ in blocks(node))

    def compound(self, node: ast.stmt) -> None:
        """Headers as they are, and of each block what is kept."""
        cursor = self.start(node)
        for body, _ in blocks(node):
            if not body:
                continue
            self.copy(cursor, self.start(body[0]))
            if node in self.keep.partly:
                self.suite(body)
            else:
                self.everything(body)
            cursor = self.behind(body[-1])

    def suite(self, body: Sequence[ast.stmt]) -> None:
        """What is kept of a block under a header; all of it where it shares the header's line and goes on below."""
        line, column = self.start(body[0])
        shares = bool(self.lines[line][:column].strip())
        if shares and self.end(body[-1])[0] > line and any(map(self.kept, body)):
            self.everything(body)
        else:
            self.block(body, "pass")

    def everything(self, body: Sequence[ast.stmt]) -> None:
        """All statements of a block, replaced ones in their new text."""
        cursor = self.start(body[0])
        for node in body:
            self.copy(cursor, self.start(node))
            self.statement(node)
            cursor = self.end(node)

    def behind(self, node: ast.stmt) -> Position:
        """The end of a block's last statement, a ``;`` that follows it included."""
        line, column = self.end(node)
        rest = self.lines[line][column:]
        blank = len(rest) - len(rest.lstrip())
        return (line, column + blank + 1) if rest[blank : blank + 1] == ";" else (line, column)
