"""Colour, and text from user code made safe for a terminal."""

from __future__ import annotations

import dataclasses
import os
import unicodedata
from collections.abc import Mapping
from typing import TextIO

TAB = "    "


@dataclasses.dataclass(frozen=True)
class Style:
    """ANSI colours by hand: importing a library for ten escape codes would cost more than a small run."""

    colour: bool = False

    def bold(self, text: str) -> str:
        """Places and codes."""
        return self._paint("1", text)

    def red(self, text: str) -> str:
        """Confirmed errors."""
        return self._paint("1;31", text)

    def yellow(self, text: str) -> str:
        """Warnings and what could not be confirmed."""
        return self._paint("33", text)

    def cyan(self, text: str) -> str:
        """Line numbers, carets, labels."""
        return self._paint("36", text)

    def dim(self, text: str) -> str:
        """What was refuted."""
        return self._paint("2", text)

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text else text


def wants_colour(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Colour on a terminal only; ``NO_COLOR`` (https://no-color.org) and ``TERM=dumb`` switch it off."""
    return stream.isatty() and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"


def visible(text: str) -> str:
    """``text`` with everything escaped that could move a cursor, change colours or reorder what is read."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(char) for char in text)


def visible_lines(text: str) -> list[str]:
    """The lines of ``text``, each of them safe."""
    return [visible(line.expandtabs(4)) for line in text.split("\n")]


def width(text: str) -> int:
    """Cells that ``text`` takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(_cells(char) for char in text)


def _cells(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _escaped(char: str) -> str:
    category = unicodedata.category(char)
    if category in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return char.encode("unicode_escape", "surrogatepass").decode("ascii")
    return char
