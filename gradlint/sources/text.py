"""One file: from bytes to text by its declared encoding, and from text to a syntax tree.

A file that never mentions torch is passed over before it is decoded. What mentions torch and cannot be read
becomes a :class:`Problem`, which is reported as GL001.
"""

from __future__ import annotations

import ast
import dataclasses
import io
import os
import re
import stat
import tokenize
import warnings

MENTIONS = (b"torch", b"lightning", b"accelerat", b"clip_grad_", b"zero_grad")
"""Bytes of which one occurs in every file that trains with torch, if only through Lightning, Accelerate or what another
file of the project imports."""

MAX_NESTING = 200
"""CPython refuses more than 200 open brackets; libcst would overflow the stack instead of refusing."""

_OPENING = "([{"


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """The text of one file.

    ``text`` has ``\\n`` line ends whatever the file has. ``encoding`` is the declared one (``utf-8-sig`` where
    there is a byte order mark), ``newline`` the file's most frequent line end.
    """

    path: str
    text: str
    encoding: str = "utf-8"
    newline: str = "\n"


@dataclasses.dataclass(frozen=True)
class Problem:
    """Why a file that mentions torch could not be checked. Line and column count from 1."""

    path: str
    line: int
    column: int
    message: str


def read(path: str) -> SourceFile | Problem | None:
    """Read one file; ``None`` for what is not a regular file or never mentions torch."""
    try:
        with open(path, "rb", opener=_open_without_waiting) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                return None
            data = stream.read()
    except OSError as error:
        return Problem(path, 1, 1, f"the file cannot be read: {error.strerror or error}")
    return decode(path, data)


def decode(path: str, data: bytes) -> SourceFile | Problem | None:
    """Decode ``data`` as Python would (PEP 263, byte order mark); ``None`` if it never mentions torch."""
    if not any(word in data for word in MENTIONS):
        return None
    nul = data.find(b"\0")
    if nul >= 0:
        return Problem(path, _line_of(data, nul), 1, "the file holds a NUL byte: it is damaged or no Python text")
    try:
        encoding = tokenize.detect_encoding(_first_lines(data).readline)[0]
        text = data.decode(encoding)
    except SyntaxError as error:
        return Problem(path, 1, 1, f"the declared encoding cannot be used: {error.msg}")
    except LookupError as error:
        return Problem(path, 1, 1, f"the declared encoding cannot be used: {error}")
    except UnicodeDecodeError as error:
        line = _line_of(data, error.start)
        return Problem(path, line, 1, f"byte 0x{data[error.start]:02x} is not valid {error.encoding}")
    except UnicodeError as error:
        return Problem(path, 1, 1, f"the text cannot be decoded: {error}")
    newline = _newline(text)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return SourceFile(path, text.removeprefix("\ufeff"), encoding, newline)


def parse(source: SourceFile) -> ast.Module | Problem | None:
    """The syntax tree; a :class:`Problem` if the text is no Python; ``None`` if it is newer than this Python.

    A running ``ast`` does not know the syntax of later versions; what libcst can read is no fault of the file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            return ast.parse(source.text)
    except (RecursionError, MemoryError):
        return too_deep(source)
    except SyntaxError as error:
        if "too many" in error.msg:
            return Problem(source.path, error.lineno or 1, 1, f"the code is nested too deep to be read: {error.msg}")
        if _newer_syntax(source.text):
            return None
        column = max(1, error.offset or 1)
        return Problem(source.path, _within(source.text, error.lineno), column, f"syntax error: {error.msg}")
    except ValueError as error:
        return Problem(source.path, 1, 1, f"the file is no Python text: {error}")


def too_deep(source: SourceFile) -> Problem:
    """The problem of code whose nesting exhausts the stack of whoever walks it."""
    return Problem(source.path, 1, 1, "the code is nested too deep to be read")


def _newer_syntax(text: str) -> bool:
    if _risky(text):
        return False
    import libcst

    try:
        libcst.parse_module(text)
    except (libcst.ParserSyntaxError, RecursionError, UnicodeError):
        return False
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # libcst's native parser gave up; not an Exception
            return False
        raise
    return True


def _risky(text: str) -> bool:
    """Whether nesting could overflow libcst's native stack; strings and comments count too, to be safe."""
    depth = 0
    for match in re.finditer(r"[()\[\]{}]", text):
        depth += 1 if match[0] in _OPENING else -1
        if depth > MAX_NESTING:
            return True
        depth = max(depth, 0)
    longest = max((len(run[0]) for run in re.finditer(r"(?:[-+~]|not\b|await\b|[ \t\\\n])+", text)), default=0)
    return longest > 10 * MAX_NESTING


def _first_lines(data: bytes) -> io.BytesIO:
    """The lines that may declare an encoding, also where they end in a carriage return alone."""
    end = 0
    for _ in range(2):
        match = re.compile(rb"[^\r\n]*(?:\r\n|\r|\n)?").match(data, end)
        end = match.end() if match else end
    return io.BytesIO(data[:end].replace(b"\r\n", b"\n").replace(b"\r", b"\n"))


def _newline(text: str) -> str:
    windows = text.count("\r\n")
    counted = {"\n": text.count("\n") - windows, "\r\n": windows, "\r": text.count("\r") - windows}
    return max(counted, key=lambda newline: counted[newline])


def _line_of(data: bytes, offset: int) -> int:
    head = data[:offset]
    return 1 + head.count(b"\n") + head.count(b"\r") - head.count(b"\r\n")


def _within(text: str, line: int | None) -> int:
    return min(max(1, line or 1), 1 + text.count("\n"))


def _open_without_waiting(path: str, flags: int) -> int:
    """A FIFO without a writer would block ``open`` for ever."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
