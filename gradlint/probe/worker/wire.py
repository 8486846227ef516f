"""What travels between the core, the zygote and an experiment: framed JSON, and text that is safe to print.

Core and zygote speak frames: four bytes, big-endian, the length of the UTF-8 JSON that follows. An experiment
says one thing, once: its nonce, then JSON to the end of the pipe.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any, Dict, List, Optional

TEXT_CAP = 200
"""Characters of a string that came from code under test."""
RESULT_CAP = 8 << 20
"""Bytes of one experiment's result."""
FRAME_CAP = 64 << 20
"""Bytes of one frame: a request holds source texts, an answer at most a result with its text escaped."""
DEPTH_CAP = 40
"""Nesting of one experiment's result."""

REASONS = frozenset(
    {
        "no-torch",
        "torch-too-old",
        "probe-off",
        "vetoed",
        "not-sliced",
        "not-built",
        "not-traced",
        "no-gradient",
        "timeout",
        "memory",
        "worker-died",
        "budget",
        "tampered",
        "inconclusive",
    }
)
"""Why there is no measurement: the closed list of ``gradlint.rule.REASONS``, which cannot be imported here."""


class WireError(ValueError):
    """The other side said something that is not in the protocol."""


def frame(message: Dict[str, Any]) -> bytes:
    """``message`` as one frame."""
    data = json.dumps(message, allow_nan=False).encode("utf-8", "surrogatepass")
    return struct.pack(">I", len(data)) + data


class FrameReader:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> List[Dict[str, Any]]:
        """The messages that ``data`` completes. Raises :class:`WireError` on what is not a frame."""
        self._buffer += data
        messages: List[Dict[str, Any]] = []
        while True:
            message = self._next()
            if message is None:
                return messages
            messages.append(message)

    def _next(self) -> Optional[Dict[str, Any]]:
        if len(self._buffer) < 4:
            return None
        (length,) = struct.unpack(">I", self._buffer[:4])
        if length > FRAME_CAP:
            raise WireError(f"a frame of {length} bytes")
        if len(self._buffer) < 4 + length:
            return None
        data = bytes(self._buffer[4 : 4 + length])
        del self._buffer[: 4 + length]
        try:
            message = json.loads(data)
        except ValueError as error:
            raise WireError("a frame that is not JSON") from error
        if not isinstance(message, dict):
            raise WireError("a frame that is not an object")
        return message


def printable(text: str, cap: int = TEXT_CAP) -> str:
    """``text`` in one line of at most ``cap`` characters, with whatever a terminal could obey escaped."""
    text = text[: cap + 1]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return text if len(text) <= cap else text[: cap - 3] + "..."


def describe(error: BaseException) -> str:
    """Type and message of an exception of the code under test, in one short line."""
    name = type(error).__name__
    try:
        message = str(error)
    except Exception:  # the code under test wrote __str__ and may raise what it likes in it
        message = "(its message cannot be read)"
    message = " ".join(message[: 4 * TEXT_CAP].split())
    return printable(f"{name}: {message}" if message else name)


def parse_untrusted(data: bytes) -> Any:
    """JSON from an experiment as plain data: text capped and escaped, numbers that are not finite as strings.

    Raises :class:`WireError` on anything else.
    """
    try:
        value = json.loads(data, parse_int=_integer, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise WireError("a result that is not JSON") from error
    return _clean(value, DEPTH_CAP)


def _integer(digits: str) -> Any:
    """Python reads long integers in quadratic time; no measurement has more than 64 bits."""
    return int(digits) if len(digits) <= 20 else printable(digits)


def _constant(name: str) -> str:
    return {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}[name]


def _clean(value: Any, depth: int) -> Any:
    if depth == 0:
        raise WireError("a result nested too deep")
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, list):
        return [_clean(item, depth - 1) for item in value]
    if isinstance(value, dict):
        return {printable(key): _clean(item, depth - 1) for key, item in value.items()}
    return value
