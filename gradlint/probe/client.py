"""The core's side of the probe: one worker process, requests in, measurements out.

The worker imports PyTorch once and runs every experiment in a confined child of its own
(``worker/zygote.py``). Nothing that happens to it is an error of the run: a request that cannot be
answered is answered by a :class:`~gradlint.rule.Measurement` with a reason.
"""

from __future__ import annotations

import collections
import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal

from gradlint.probe.policy import vet
from gradlint.probe.process import Hello, Worker
from gradlint.rule import REASONS, Measurement

__all__ = ["Hello", "ProbeClient", "Request"]

WALL_FACTOR = 3
"""An experiment's wall clock limit in its CPU limits; the zygote keeps it."""
GRACE_SECONDS = 10.0
"""How long after that the zygote may be silent before it counts as hung."""
MOST_RESTARTS = 3
MECHANISMS = frozenset({"landlock", "seccomp"})


@dataclasses.dataclass(frozen=True)
class Request:
    """One experiment. ``id`` is the caller's, unique in a call of ``run_all``; ``body`` is plain data."""

    id: str
    kind: Literal["model", "step", "exec"]
    body: Mapping[str, Any]


OnDone = Callable[[str, Measurement], None]


class ProbeClient:
    """Runs experiments under ``python``. A context manager; use from one thread.

    ``timeout``: CPU seconds of one experiment. ``budget``: wall clock seconds of all :meth:`run_all` together.
    ``jobs``: experiments at once. With ``confinement_required`` nothing is run on a system that offers neither
    Landlock nor seccomp.
    """

    def __init__(
        self,
        python: str,
        timeout: float,
        budget: float,
        jobs: int,
        confinement_required: bool = True,
        *,
        worker_arguments: Sequence[str] = (),
    ) -> None:
        self.python = python
        self.timeout = timeout
        self.budget = budget
        self.jobs = max(1, jobs)
        self.confinement_required = confinement_required
        self._arguments = tuple(worker_arguments)
        self._worker: Worker | None = None
        self._hello: Hello | None = None
        self._spent = 0.0
        self._restarts = 0

    def __enter__(self) -> ProbeClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def launch(self) -> None:
        """Start the worker and do not wait for it: it imports PyTorch while the caller does other things."""
        if self._worker is not None or self._hello is not None:
            return
        if not sys.platform.startswith("linux"):
            self._hello = Hello(error="probe-off", detail="experiments can be confined on Linux only")
            return
        try:
            self._worker = Worker(self.python, self.jobs, self._arguments)
        except OSError as error:
            self._hello = Hello(error="no-torch", detail=f"{self.python} cannot be started: {error.strerror}")

    def hello(self) -> Hello:
        """Wait for the worker to be ready, two minutes at most. Never raises: ``Hello.error`` says what is wrong."""
        self.launch()
        if self._hello is None and self._worker is not None:
            self._hello = self._judged(self._worker.hello())
            if not self._hello.available:
                self.close()
        assert self._hello is not None
        return self._hello

    def start(self) -> Hello:
        """:meth:`launch` and :meth:`hello`."""
        return self.hello()

    def _judged(self, hello: Hello) -> Hello:
        if hello.available and self.confinement_required and not MECHANISMS & set(hello.confinement):
            why = "the system offers neither Landlock nor seccomp: strangers' code is run with --trust-project only"
            return dataclasses.replace(hello, error="probe-off", detail=why)
        return hello

    def run_all(self, requests: Sequence[Request], on_done: OnDone) -> None:
        """Run all ``requests`` and call ``on_done(id, measurement)`` once for each, as they finish.

        Returns when all are answered. What the budget does not reach is answered ``budget``.
        """
        hello = self.hello()
        if not hello.available:
            for request in requests:
                on_done(request.id, Measurement(None, hello.error, hello.detail))
            return
        started = time.monotonic()
        run = _Run(requests, on_done, started + self.budget - self._spent)
        try:
            self._drive(run)
        finally:
            self._spent += time.monotonic() - started

    @property
    def worker_pid(self) -> int | None:
        """The worker's process id; ``None`` when there is none."""
        return None if self._worker is None else self._worker.pid

    def close(self) -> None:
        """End the worker and everything it started, within a second."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _drive(self, run: _Run) -> None:
        while run.open():
            if time.monotonic() >= run.end:
                run.fail_all("budget", f"the probe's budget of {self.budget:g} s is used up")
                self.close()  # what still runs has no one to tell
                return
            if self._worker is None and not self._revive(run):
                return
            assert self._worker is not None
            for request in run.next_ones(self.jobs):
                self._worker.send(_message(request, self.timeout))
            try:
                answers = self._worker.receive(run.patience(self.timeout))
            except EOFError as error:
                self.close()
                run.worker_died(str(error))
                continue
            for answer in answers:
                run.answered(answer)
            if run.hung(self.timeout):
                self.close()
                run.worker_died("the worker hung")

    def _revive(self, run: _Run) -> bool:
        """Start another worker after one has died; False, and all requests answered, when that fails too often."""
        if self._restarts == MOST_RESTARTS:
            run.fail_all("worker-died", f"the worker died {MOST_RESTARTS + 1} times")
            return False
        self._restarts += 1
        self._hello = None
        hello = self.hello()
        if not hello.available:
            run.fail_all(hello.error or "worker-died", hello.detail)
        return hello.available


def _message(request: Request, timeout: float) -> dict[str, Any]:
    return {"id": request.id, "kind": request.kind, "timeout": timeout, "body": request.body}


class _Run:
    """The requests of one :meth:`ProbeClient.run_all`: to be sent, in flight, to be tried again alone."""

    def __init__(self, requests: Iterable[Request], on_done: OnDone, end: float) -> None:
        self.end = end
        self._on_done = on_done
        self._waiting: collections.deque[Request] = collections.deque()
        self._again: collections.deque[Request] = collections.deque()
        self._flying: dict[str, tuple[Request, float]] = {}
        self._alone: Request | None = None
        for request in requests:
            reason = vet(request.body.get("modules", ()))
            if reason is None:
                self._waiting.append(request)
            else:
                on_done(request.id, Measurement(None, "vetoed", reason))

    def open(self) -> bool:
        """Whether a request is unanswered."""
        return bool(self._waiting or self._again or self._flying)

    def next_ones(self, jobs: int) -> list[Request]:
        """The requests to send now. No more than run at once: what is not sent is not lost with the worker."""
        chosen: list[Request] = []
        if self._alone is None and not self._again:
            while self._waiting and len(self._flying) + len(chosen) < jobs:
                chosen.append(self._waiting.popleft())
        elif self._alone is None and not self._flying:
            self._alone = self._again.popleft()
            chosen.append(self._alone)
        now = time.monotonic()
        self._flying.update({request.id: (request, now) for request in chosen})
        return chosen

    def answered(self, answer: Mapping[str, Any]) -> None:
        """Pass on one answer of the worker."""
        request, _ = self._flying.pop(answer.get("id", ""), (None, 0.0))
        if request is None:
            return
        if request is self._alone:
            self._alone = None
        self._on_done(request.id, _measurement(answer))

    def worker_died(self, why: str) -> None:
        """Requests in flight are tried once more, one at a time; one that was alone has its answer."""
        flying = [request for request, _ in self._flying.values()]
        self._flying.clear()
        if self._alone is not None:
            self._alone = None
            for request in flying:
                self._on_done(request.id, Measurement(None, "worker-died", why))
        else:
            self._again.extend(flying)

    def fail_all(self, reason: str, detail: str) -> None:
        """Answer everything that is unanswered."""
        rest = [*(request for request, _ in self._flying.values()), *self._again, *self._waiting]
        self._flying.clear()
        self._again.clear()
        self._waiting.clear()
        for request in rest:
            self._on_done(request.id, Measurement(None, reason, detail))

    def patience(self, timeout: float) -> float:
        """Seconds to wait for answers before looking at the clock again."""
        return max(0.0, min(self._first_hung(timeout), self.end) - time.monotonic())

    def hung(self, timeout: float) -> bool:
        """Whether an answer is so late that the worker must be stuck."""
        return time.monotonic() >= self._first_hung(timeout)

    def _first_hung(self, timeout: float) -> float:
        sent = min((when for _, when in self._flying.values()), default=time.monotonic())
        return sent + WALL_FACTOR * timeout + GRACE_SECONDS


def _measurement(answer: Mapping[str, Any]) -> Measurement:
    body, reason = answer.get("body"), answer.get("reason")
    if answer.get("ok") is True and isinstance(body, dict):
        return Measurement(body)
    if reason in REASONS:
        return Measurement(None, reason, str(answer.get("detail", "")))
    return Measurement(None, "tampered", "an answer of the wrong form")
