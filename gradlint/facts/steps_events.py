"""Training events: what one call does to gradients, where it stands and through which helpers it was reached."""

from __future__ import annotations

import ast
import dataclasses
import re
from typing import Literal

from gradlint.rule import Location

APEX = "amp.scale_loss"
"""The scaler of a loss that apex scales for a block."""

Kind = Literal[
    "forward",
    "backward",
    "clip",
    "unscale",
    "scale",
    "step",
    "zero_grad",
    "scaler_update",
    "make",
    "iterator",
    "consume",
    "accumulate",
    "compute",
    "read",
    "unknown",
]
"""What an event does. ``scale``: a name is bound to a scaled loss; ``make``: a model or optimizer is made anew;
``iterator``: a name is bound to an iterator of parameters (or, without roots, to something else), ``consume``: such
an iterator is used up; ``accumulate``: a wrapper is told that micro-batches follow; ``compute``: a function that
cannot be read computes something, going by its name; ``read``: gradients are copied, or used for something else than
a norm."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """One function on the way to an event. ``call`` is the call that entered it (None for the region itself)."""

    qualname: str
    path: str
    line: int
    call: Location | None


@dataclasses.dataclass(frozen=True)
class Event:
    """One call that touches gradients, or may.

    ``object`` is the key of what is acted on: the optimizer of a step, ``unscale_`` or ``zero_grad``, the loss of a
    backward. ``roots`` are the objects whose parameters a clip or a ``zero_grad`` reaches (``optimizer:key`` for those
    of an optimizer). Both are empty where the text does not tell.
    """

    kind: Kind
    name: str
    location: Location
    path: str
    object: str = ""
    roots: frozenset[str] = frozenset()
    limit: str = ""
    """A clip's ``max_norm`` or ``clip_value`` as written."""
    by_value: bool = False
    logging: bool = False
    """A clip with an infinite limit: it only measures."""
    scaler: str = ""
    """The gradient scaler of a scaled backward, an ``unscale_``, or a step through the scaler."""
    written: str = ""
    """A step's optimizer as its own function calls it; ``object`` is its name in the region. For ``iterator``: the
    name that it had before."""
    written_scaler: str = ""
    own_scale: bool = False
    """A clip whose limit is multiplied by the loss scale."""
    wrapper: bool = False
    """A call of a training wrapper (accelerate, Fabric, Lightning, DeepSpeed), which may do more than its name says."""
    window: bool = False
    """For ``step``: it is told by an argument whether a window of micro-batches ends (``update_grad=i % n == 0``)."""
    value: Location | None = None
    """For ``iterator``: the expression that makes it."""
    raises: bool = False
    """For ``consume``: the consumer raises an error where it gets nothing (an optimizer)."""
    doubt: Literal["", "weak", "used", "clearing", "strong"] = ""
    """For ``unknown``: whether the name or the arguments suggest that gradients are touched.
    For a clip: a helper that cannot be read."""
    mild: bool = False
    """For ``unknown``: its name is one that every kind of object may have; it only counts as a statement of its own."""
    given: bool = False
    """For ``unknown``: a call that cannot be read is given a model, an optimizer or a loss."""
    frames: tuple[Frame, ...] = ()

    @property
    def line(self) -> int:
        """The line the call begins on."""
        return self.location.line


class Lines:
    """The lines of one text as the parser counts them, for columns in characters."""

    def __init__(self, text: str) -> None:
        self._lines = re.split(r"\r\n|\r|\n", text)

    def column(self, line: int, offset: int) -> int:
        """The 1-based column in characters of a 0-based offset in UTF-8 bytes."""
        text = self._lines[line - 1] if 0 < line <= len(self._lines) else ""
        if text.isascii():
            return offset + 1
        return len(text.encode("utf-8", "surrogatepass")[:offset].decode("utf-8", "ignore")) + 1

    def location(self, node: ast.expr | ast.stmt) -> Location:
        """The span of a node; the end is exclusive."""
        end_line = node.end_lineno or node.lineno
        end = node.end_col_offset if node.end_col_offset is not None else node.col_offset
        return Location(node.lineno, self.column(node.lineno, node.col_offset), end_line, self.column(end_line, end))
