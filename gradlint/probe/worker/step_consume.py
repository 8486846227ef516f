"""Watches iterators of parameters: who takes their items, and how many there are left to take."""

from __future__ import annotations

from collections.abc import Iterator as AnyIterator
from typing import Any, Iterator, List, Optional

from ghost import Ghost
from step_record import Event, Recorder


class Watched:
    """An iterator that behaves as the one inside, and records each run over its items."""

    def __init__(self, recorder: Recorder, inside: Any, name: str) -> None:
        self.gl_inside = inside
        self.name = name
        self._recorder = recorder
        self._direct: Optional[_Run] = None
        self.last: Optional[Event] = None
        """The event of the latest consumer."""
        self.runs = 0

    def __iter__(self) -> Iterator[Any]:
        return _Run(self)

    def __next__(self) -> Any:
        """One item, taken by ``next(params)``: such calls in a row are one consumer for each line."""
        line = self._recorder.where()[1]
        if self._direct is None or self._direct.line != line:
            self._direct = _Run(self, line)
        return next(self._direct)

    def begin(self) -> Event:
        """A consumer takes its first item, or finds none."""
        self.last = self._recorder.add("consume", name=self.name, yielded=0, first=not self.runs)
        self.last["by"] = self._recorder.consumer
        self.runs += 1
        return self.last


class _Run:
    """One consumer's way through the items."""

    def __init__(self, watched: Watched, line: int = 0) -> None:
        self.watched = watched
        self.line = line
        self.event: Optional[Event] = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self.event is None:
            self.event = self.watched.begin()
        item = next(self.watched.gl_inside)
        self.event["yielded"] += 1
        return item


class WatchedList(List[Any]):
    """A list that records each run over its items, as :class:`Watched` does for an iterator."""

    def __init__(self, recorder: Recorder, items: List[Any], name: str) -> None:
        super().__init__(items)
        self.gl_name = name
        self._recorder = recorder
        self._runs = 0

    def __iter__(self) -> Iterator[Any]:
        event = self._recorder.add("consume", name=self.gl_name, yielded=len(self), first=not self._runs)
        event["by"] = self._recorder.consumer
        self._runs += 1
        return super().__iter__()


def watch(recorder: Recorder, value: Any, name: str) -> Any:
    """``value``, watched if it is an iterator or a list; anything else, an unknown value too, stays what it is."""
    if "iterator" in recorder.stubs and isinstance(value, AnyIterator):
        value = list(value)  # the control: an iterator that is never used up
    if type(value) is list and value:
        return WatchedList(recorder, value, name)
    if isinstance(value, (Ghost, Watched)) or not isinstance(value, AnyIterator):
        return value
    return Watched(recorder, value, name)
