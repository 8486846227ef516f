"""The worker as a process: started, spoken to over two pipes, ended."""

from __future__ import annotations

import dataclasses
import json
import os
import selectors
import signal
import struct
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradlint.rule import REASONS

HELLO_SECONDS = 120.0
"""How long an interpreter may take to import PyTorch: from a cold network disk it takes a minute."""
CLOSE_SECONDS = 0.5
FRAME_CAP = 64 << 20

ZYGOTE = Path(__file__).with_name("worker") / "zygote.py"
KEPT_VARIABLES = ("PATH", "HOME", "LD_LIBRARY_PATH")
"""What an interpreter may need to start: wrappers look for programs, some installations for libraries. Experiments see
none of it."""
FIXED_VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "TORCHDYNAMO_DISABLE": "1",
    "LC_ALL": "C.UTF-8",
}


@dataclasses.dataclass(frozen=True)
class Hello:
    """What the worker can do. ``error`` is one of ``gradlint.rule.REASONS`` where it cannot run anything."""

    torch: str | None = None
    python: str | None = None
    confinement: tuple[str, ...] = ()
    error: str | None = None
    detail: str = ""

    @property
    def available(self) -> bool:
        """Whether experiments can be run."""
        return self.error is None


class Worker:
    """A zygote process (``worker/zygote.py``) and the two pipes to it."""

    def __init__(self, python: str, jobs: int, arguments: Sequence[str]) -> None:
        """Raises :class:`OSError` where ``python`` cannot be executed."""
        self._started = time.monotonic()
        self._buffer = bytearray()
        self._unsent = bytearray()
        self._answers, theirs = os.pipe()
        try:
            self._process = subprocess.Popen(
                [python, "-I", "-B", str(ZYGOTE), str(theirs), str(jobs), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs,),
                env={**{k: os.environ[k] for k in KEPT_VARIABLES if k in os.environ}, **FIXED_VARIABLES},
                cwd="/",
                start_new_session=True,
                bufsize=0,
            )
        except BaseException:
            os.close(self._answers)
            raise
        finally:
            os.close(theirs)
        assert self._process.stdin is not None
        self.pid = self._process.pid
        self._requests = self._process.stdin.fileno()
        os.set_blocking(self._requests, False)
        os.set_blocking(self._answers, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._answers, selectors.EVENT_READ)

    def hello(self) -> Hello:
        """The worker's first answer."""
        name = self._process.args[0] if isinstance(self._process.args, list) else ""
        while True:
            left = self._started + HELLO_SECONDS - time.monotonic()
            if left <= 0:
                return Hello(error="no-torch", detail=f"{name} was not ready within {HELLO_SECONDS:g} s")
            try:
                messages = self.receive(left)
            except EOFError as error:
                return Hello(error="no-torch", detail=f"{name} is no Python 3.9 or later that works: {error}")
            for message in messages:
                return _hello(message)

    def send(self, message: Mapping[str, Any]) -> None:
        """Queue one message; :meth:`receive` writes it as the pipe takes it: neither side waits for the other."""
        data = json.dumps(message, allow_nan=False).encode()
        self._unsent += struct.pack(">I", len(data)) + data
        self._write()

    def receive(self, seconds: float) -> list[dict[str, Any]]:
        """The messages that arrive first, or none within ``seconds``. Raises :class:`EOFError` with what ended it."""
        end = time.monotonic() + seconds
        while True:
            left = end - time.monotonic()
            for key, _ in self._selector.select(max(0.0, left)):
                if key.fd == self._requests:
                    self._write()
                else:
                    self._read()
            messages = self._cut()
            if messages or left <= 0:
                return messages

    def close(self) -> None:
        """End the process: politely, by closing its input, then by force."""
        self._selector.close()
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(CLOSE_SECONDS)
        except BaseException as error:  # a second Ctrl-C must not leave it running either
            self._kill()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
        finally:
            os.close(self._answers)

    def _kill(self) -> None:
        """Its experiments, in sessions of their own, die with it (PR_SET_PDEATHSIG)."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self._process.kill()
        self._process.wait()

    def _write(self) -> None:
        while self._unsent:
            try:
                del self._unsent[: os.write(self._requests, self._unsent)]
            except BlockingIOError:
                break
            except BrokenPipeError:
                self._unsent.clear()  # reading will find the end of the other pipe and say why
        wanted, registered = bool(self._unsent), self._requests in self._selector.get_map()
        if wanted and not registered:
            self._selector.register(self._requests, selectors.EVENT_WRITE)
        elif registered and not wanted:
            self._selector.unregister(self._requests)

    def _read(self) -> None:
        try:
            data = os.read(self._answers, 1 << 18)
        except BlockingIOError:
            return
        if not data:
            raise EOFError(self._last_words())
        self._buffer += data

    def _last_words(self) -> str:
        try:
            status = self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            return "it closed its answers"
        if status < 0:
            return f"killed by {signal.Signals(-status).name}"
        return f"it ended with status {status}"

    def _cut(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        while len(self._buffer) >= 4:
            (length,) = struct.unpack(">I", self._buffer[:4])
            if length > FRAME_CAP:
                raise EOFError("it does not speak the protocol")
            if len(self._buffer) < 4 + length:
                break
            try:
                message = json.loads(bytes(self._buffer[4 : 4 + length]))
            except ValueError as error:
                raise EOFError("it does not speak the protocol") from error
            del self._buffer[: 4 + length]
            if isinstance(message, dict):
                messages.append(message)
        return messages


def _hello(message: Mapping[str, Any]) -> Hello:
    error = message.get("error")
    if message.get("kind") != "hello" or not (error is None or error in REASONS):
        return Hello(error="no-torch", detail="the worker does not speak the protocol")
    return Hello(
        torch=message.get("torch"),
        python=message.get("python"),
        confinement=tuple(message.get("confinement", ())),
        error=error,
        detail=str(message.get("detail", "")),
    )
