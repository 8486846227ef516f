"""An alarm on the CPU time of this process: leaves what is too slow to be worth going on with."""

from __future__ import annotations

import contextlib
import signal
import time
from types import FrameType
from typing import Iterator, Optional

AGAIN = 0.25
"""Seconds after which the alarm goes off again where the program under test caught it."""


class TooSlow(BaseException):
    """Raised between two instructions of whatever runs when the time is up."""


@contextlib.contextmanager
def alarm(at: float) -> Iterator[None]:
    """Raise :class:`TooSlow` in the block once the process has used ``at`` CPU seconds, where the system has alarms."""
    left = at - time.process_time()
    if not hasattr(signal, "setitimer") or left == float("inf"):
        yield
        return

    def ring(number: int, frame: Optional[FrameType]) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, max(left, 0.01), AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)
