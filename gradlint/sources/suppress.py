"""Comments that speak to gradlint: suppressions and hints.

``# noqa``, ``# noqa: GL101``, ``# gradlint: ignore[GL101] reason`` silence what is reported on their line (for a
span of lines: on its first or last); ``# gradlint: ignore-file[GL101]`` silences the whole file;
``# gradlint: input=(32, 10)`` tells the shape of a model's input. Rules go by code, prefix or name.
"""

from __future__ import annotations

import dataclasses
import io
import re
import tokenize
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Literal

from gradlint.rule import Location

Kind = Literal["noqa", "ignore", "ignore-file"]
Shape = tuple[int, ...]

_NAMED = re.compile(r"#[^\n]*(?:noqa\s*:[^\n]*\bGL[0-9]|gradlint\s*:)", re.IGNORECASE)
_BARE = re.compile(r"#\s*noqa\b(?!\s*:)", re.IGNORECASE)
_NOQA = re.compile(r"#\s*noqa\b(?:\s*:\s*(?P<codes>[A-Za-z]+[0-9]+(?:[\s,]+[A-Za-z]+[0-9]+)*))?", re.IGNORECASE)
_IGNORE = re.compile(r"#\s*gradlint\s*:\s*(?P<kind>ignore-file|ignore)\b(?:\s*\[(?P<codes>[^\]\n]*)\])?", re.IGNORECASE)
_SHAPE = r"[\[(]\s*[0-9]{1,9}(?:\s*,\s*[0-9]{1,9})*\s*,?\s*[\])]"
_INPUT = re.compile(rf"#\s*gradlint\s*:\s*input\s*=\s*\[?\s*(?P<shapes>{_SHAPE}(?:\s*,\s*{_SHAPE})*)", re.IGNORECASE)
_OWN_CODES = ("GL001", "GL002", "GL003")
"""Not candidates of any check, so a suppression of them is never called unused."""


@dataclasses.dataclass(frozen=True)
class Comment:
    """One suppression. ``codes`` is empty where it silences every rule. Column and line count from 1."""

    kind: Kind
    line: int
    column: int
    end_column: int
    codes: tuple[str, ...]

    def covers(self, code: str, name: str, location: Location) -> bool:
        """Whether it silences the rule ``code`` (called ``name``) at ``location``."""
        if self.kind != "ignore-file" and self.line not in (location.line, last_line(location)):
            return False
        return not self.codes or any(_means(said, code, name) for said in self.codes)


@dataclasses.dataclass(frozen=True)
class Unused:
    """A suppression that met nothing, for GL002."""

    location: Location
    message: str


@dataclasses.dataclass(frozen=True)
class Suppressions:
    """Every such comment of one file. ``inputs`` maps a line to the shapes that stand there."""

    comments: tuple[Comment, ...] = ()
    inputs: Mapping[int, tuple[Shape, ...]] = dataclasses.field(default_factory=dict)

    def covers(self, code: str, name: str, location: Location) -> bool:
        """Whether a finding of the rule ``code`` (called ``name``) at ``location`` is silenced."""
        return any(comment.covers(code, name, location) for comment in self.comments)

    def unused(
        self,
        candidates: Iterable[tuple[str, Location]],
        names: Mapping[str, str],
        selected: Collection[str],
    ) -> list[Unused]:
        """The suppressions that met no candidate.

        ``candidates`` are all static candidates of the file, silenced or not; ``names`` maps the code of every
        known rule to its name. Rules that are not selected are not judged; a ``noqa`` only where it names a
        ``GL`` code.
        """
        places = list(candidates)
        found = []
        for comment in self.comments:
            for said in comment.codes or ([""] if comment.kind != "noqa" else []):
                alone = dataclasses.replace(comment, codes=(said,) if said else ())
                message = _complaint(alone, places, names, selected)
                if message is not None:
                    span = Location(comment.line, comment.column, comment.line, comment.end_column)
                    found.append(Unused(span, message))
        return found


def read_suppressions(text: str) -> Suppressions:
    """Read the comments of ``text`` (line ends ``\\n``). Strings that look like comments are none.

    ``tokenize`` is as slow as a parse by libcst, so a file is only split into tokens if it speaks to gradlint.
    """
    comments: list[Comment] = []
    inputs: dict[int, tuple[Shape, ...]] = {}
    for line, column, comment in _comments(text) if _NAMED.search(text) else _bare_comments(text):
        comments.extend(_suppressions(line, column, comment))
        hint = _INPUT.search(comment)
        shapes = _shapes(hint["shapes"]) if hint else ()
        if shapes:
            inputs[line] = shapes
    return Suppressions(tuple(comments), inputs)


def last_line(location: Location) -> int:
    """The last line that a span touches; its end is exclusive."""
    if location.end_column <= 1 and location.end_line > location.line:
        return location.end_line - 1
    return location.end_line


def _suppressions(line: int, column: int, comment: str) -> Iterator[Comment]:
    for match in _NOQA.finditer(comment):
        codes = tuple(code.upper() for code in re.split(r"[\s,]+", match["codes"] or "") if code)
        if not codes and comment[match.end() :].lstrip().startswith(":"):
            continue  # codes in a form of another linter: nothing that gradlint was told
        yield Comment("noqa", line, column + match.start(), column + match.end(), codes)
    for match in _IGNORE.finditer(comment):
        codes = tuple(code.strip() for code in (match["codes"] or "").split(",") if code.strip())
        kind: Kind = "ignore-file" if match["kind"].lower() == "ignore-file" else "ignore"
        yield Comment(kind, line, column + match.start(), column + match.end(), codes)


def _complaint(
    comment: Comment,
    places: Iterable[tuple[str, Location]],
    names: Mapping[str, str],
    selected: Collection[str],
) -> str | None:
    """What is wrong with ``comment``, which names one rule or none."""
    said = comment.codes[0] if comment.codes else ""
    if comment.kind == "noqa" and not said.startswith("GL"):
        return None
    if said in _OWN_CODES or any(_means(said, code, names[code]) for code in _OWN_CODES if code in names and said):
        return None
    meant = {code for code, name in names.items() if not said or _means(said, code, name)}
    if not meant:
        return f"no rule is called {said}, so this comment silences nothing"
    if not meant & set(selected):
        return None
    if any(comment.covers(code, names.get(code, ""), location) for code, location in places):
        return None
    where = "in this file" if comment.kind == "ignore-file" else "here"
    what = f"{said} would report nothing {where}" if said else f"nothing would be reported {where}"
    return f"this comment is not needed: {what}"


def _means(said: str, code: str, name: str) -> bool:
    return code.startswith(said.upper()) or said.lower() == name


def _comments(text: str) -> Iterator[tuple[int, int, str]]:
    """Line, column and text of every comment; what cannot be split into tokens is guessed line by line."""
    reached = 0
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            reached = token.end[0]
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.start[1] + 1, token.string
    except (tokenize.TokenError, SyntaxError):
        for number, line in enumerate(text.split("\n")[reached:], start=reached + 1):
            match = re.search(r"#.*(?:noqa|gradlint)", line, re.IGNORECASE)
            if match:
                yield number, match.start() + 1, line[match.start() :]


def _bare_comments(text: str) -> Iterator[tuple[int, int, str]]:
    """Comments with a bare ``noqa``: they only matter where a finding stands, so their line alone decides."""
    end, number = 0, 1
    for match in _BARE.finditer(text):
        number += text.count("\n", end, match.start())
        end = match.start()
        start = text.rfind("\n", 0, end) + 1
        stop = text.find("\n", end)
        line = text[start : stop if stop >= 0 else len(text)]
        for _, column, comment in _comments(line.lstrip()):
            yield number, column + len(line) - len(line.lstrip()), comment


def _shapes(text: str) -> tuple[Shape, ...]:
    """``(32, 10)``, or ``(32, 10), (32, 4)`` for two arguments. A size of 0 makes the hint none."""
    rows = tuple(tuple(int(size) for size in re.findall(r"[0-9]+", row)) for row in re.findall(_SHAPE, text))
    return rows if all(size > 0 for row in rows for size in row) else ()
