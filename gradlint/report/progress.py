"""How far a run is: one line on a terminal, after a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

FIRST_AFTER = 1.0
"""Seconds of silence: a run that is over by then shows nothing."""
AT_MOST_EVERY = 0.1

_CLEAR = "\r\x1b[2K"


class TerminalProgress:
    """A :class:`gradlint.result.Progress` on ``stream``. It is silent where that is no terminal."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._on = stream.isatty()
        self._due = clock() + FIRST_AFTER
        self._name = ""
        self._total: int | None = None
        self._done = 0
        self._shown = False

    def phase(self, name: str, total: int | None = None) -> None:
        """Show ``name`` from now on; it is drawn at once if the run is slow already."""
        self._name, self._total, self._done = name, total, 0
        self._draw()

    def advance(self, steps: int = 1) -> None:
        """Count ``steps`` more."""
        self._done += steps
        self._draw()

    def close(self) -> None:
        """Wipe the line."""
        if self._shown:
            self._stream.write(_CLEAR)
            self._stream.flush()
            self._shown = False
        self._on = False

    def _draw(self) -> None:
        now = self._clock()
        if not self._on or now < self._due:
            return
        self._due = now + AT_MOST_EVERY
        self._shown = True
        counted = f" {self._done}/{self._total}" if self._total else ""
        self._stream.write(f"{_CLEAR}gradlint: {self._name}{counted}")
        self._stream.flush()
