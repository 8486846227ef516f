"""The worker's main loop: import PyTorch once, then fork a confined child for every experiment.

``python -I -B zygote.py ANSWER_FD JOBS [--self-test]``: requests come in on descriptor 0, answers go out on
``ANSWER_FD``, both as frames (``wire.py``). The first answer is the hello. The zygote itself never runs any of the
code under test, and never a torch operation with more than one thread: a child forked after that would hang.
"""

from __future__ import annotations

import collections
import gc
import os
import selectors
import signal
import site
import sys
import sysconfig
import time
from typing import Any, Deque, Dict, List, NoReturn, Optional, Tuple

# An isolated interpreter (-I) does not put the script's folder on the path.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, _HERE)

import confine  # noqa: E402
import experiment  # noqa: E402
import wire  # noqa: E402

OLDEST_TORCH = (2, 4)
WALL_FACTOR = 3
"""The wall clock limit of an experiment, in its CPU limits: a machine may be busy with other things."""
IDLE_SECONDS = 5.0
"""How often an idle zygote looks whether its parent still lives."""
MEMORY_MOST, MEMORY_LEAST = 4 << 30, 1 << 30
"""Bytes an experiment may take on top of the zygote's size: half the machine by the number of jobs, within these."""
NONE_HOLDS = "the system offers neither Landlock nor seccomp to confine strangers' code"

_PR_SET_CHILD_SUBREAPER = 36


class Child:
    """One running experiment, as its parent sees it."""

    def __init__(self, request: Dict[str, Any], pid: int, pipe: int, nonce: str) -> None:
        self.request = request
        self.pid = pid
        self.pipe = pipe
        self.nonce = nonce.encode("ascii")
        self.timeout = float(request["timeout"])
        self.deadline = time.monotonic() + WALL_FACTOR * self.timeout
        self.said = bytearray()
        self.overdue = False

    def cpu_seconds(self) -> float:
        """CPU seconds used so far; 0 when the process is gone."""
        try:
            return time.clock_gettime(~self.pid << 3 | 2)  # the process' CPU clock: man 3 clock_getcpuclockid
        except OSError:
            return 0.0

    def patience(self) -> float:
        """Seconds until this child should be looked at again; not above 0 when it is overdue."""
        return min(self.deadline - time.monotonic(), self.timeout - self.cpu_seconds())

    def read(self) -> bool:
        """Take in what it said. False when that is all, or already too much or wrong."""
        data = os.read(self.pipe, 1 << 16)
        self.said += data
        prefix = bytes(self.said[: len(self.nonce)])
        return bool(data) and self.nonce.startswith(prefix) and len(self.said) <= wire.RESULT_CAP

    def reap(self) -> Tuple[int, float]:
        """Kill it with its session, collect it. Returns its wait status and CPU seconds."""
        for kill, target in ((os.killpg, self.pid), (os.kill, self.pid)):
            try:
                kill(target, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue  # gone already, or not yet the leader of its session
        os.close(self.pipe)
        _, status, usage = os.wait4(self.pid, 0)
        return status, usage.ru_utime + usage.ru_stime

    def outcome(self, status: int, cpu: float) -> Dict[str, Any]:
        """The answer to its request, from what it said and how it ended."""
        said = bytes(self.said)
        if said.startswith(self.nonce):
            try:
                return _checked(wire.parse_untrusted(said[len(self.nonce) :]))
            except wire.WireError as error:
                if os.WIFEXITED(status):
                    return _failure("tampered", str(error))
        elif said and not self.nonce.startswith(said):
            return _failure("tampered", "something else than the experiment wrote to the result pipe")
        if self.overdue or cpu >= self.timeout:
            return _failure("timeout", f"stopped after {cpu:.1f} s of CPU time")
        if os.WIFSIGNALED(status):
            return _failure("worker-died", f"killed by {signal.Signals(os.WTERMSIG(status)).name}")
        return _failure("worker-died", f"left with status {os.WEXITSTATUS(status)} and no result")


def _checked(said: Any) -> Dict[str, Any]:
    """What an experiment said, if it is one of the two things it may say. Raises :class:`wire.WireError`."""
    if isinstance(said, dict) and said.get("ok") is True and isinstance(said.get("body"), dict):
        return {"ok": True, "body": said["body"]}
    if isinstance(said, dict) and said.get("ok") is False and said.get("reason") in wire.REASONS:
        return _failure(said["reason"], str(said.get("detail", "")))
    raise wire.WireError("a result of the wrong form")


def _failure(reason: str, detail: str) -> Dict[str, Any]:
    return {"ok": False, "reason": reason, "detail": wire.printable(detail)}


class Zygote:
    """Requests waiting, children running, and the loop over both."""

    def __init__(self, answers: int, jobs: int, self_test: bool) -> None:
        self.answers = answers
        self.jobs = jobs
        self.waiting: Deque[Dict[str, Any]] = collections.deque()
        self.running: Dict[int, Child] = {}
        self.requests = wire.FrameReader()
        self.parent = os.getppid()
        self.runners = experiment.load_runners(self_test)
        self.cage = experiment.Cage(readable_paths(), _memory(jobs), [])
        forget_projects(self.cage.read_paths)
        self.cage = experiment.Cage(self.cage.read_paths, self.cage.memory_bytes, self.holding())

    def holding(self) -> List[str]:
        """The mechanisms that hold, found out by a child that goes into the cage and tries it."""
        receive, send = os.pipe()
        me = os.getpid()
        pid = os.fork()
        if pid == 0:
            experiment.trial(self.cage, send, me)
        os.close(send)
        with os.fdopen(receive, "rb") as pipe:
            said = pipe.read()
        os.waitpid(pid, 0)
        known = (confine.LANDLOCK, confine.SECCOMP, confine.RLIMIT)
        return [name for name in known if name in wire.parse_untrusted(said or b"[]")]

    def serve(self) -> None:
        """Answer requests until the other side closes its end."""
        confine.prctl(_PR_SET_CHILD_SUBREAPER, 1)
        selector = selectors.DefaultSelector()
        selector.register(0, selectors.EVENT_READ)
        try:
            while os.getppid() == self.parent:
                for key, _ in selector.select(self._patience()):
                    if key.data is None:
                        if not self._take_requests():
                            return
                    elif not key.data.read():
                        self._finish(selector, key.data)
                for child in [c for c in self.running.values() if c.patience() <= 0]:
                    child.overdue = True
                    self._finish(selector, child)
                while self.waiting and len(self.running) < self.jobs:
                    self._start(selector, self.waiting.popleft())
        finally:
            for child in list(self.running.values()):
                child.reap()
            self._end_strays()

    def _patience(self) -> float:
        return max(0.01, min([IDLE_SECONDS, *(child.patience() for child in self.running.values())]))

    def _take_requests(self) -> bool:
        data = os.read(0, 1 << 16)
        self.waiting.extend(self.requests.feed(data))
        return bool(data)

    def _start(self, selector: selectors.BaseSelector, request: Dict[str, Any]) -> None:
        runner = self.runners[request["kind"]]
        receive, send = os.pipe()
        nonce = os.urandom(experiment.NONCE_BYTES // 2).hex()
        me = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            os.close(receive)
            os.close(send)
            self._answer(request, _failure("worker-died", wire.describe(error)), 0.0)
            return
        if pid == 0:
            experiment.enter(self.cage, request, runner, send, nonce, me)
        os.close(send)
        child = Child(request, pid, receive, nonce)
        self.running[pid] = child
        selector.register(receive, selectors.EVENT_READ, child)

    def _finish(self, selector: selectors.BaseSelector, child: Child) -> None:
        selector.unregister(child.pipe)
        del self.running[child.pid]
        status, cpu = child.reap()
        self._end_strays()
        self._answer(child.request, child.outcome(status, cpu), cpu)

    def _end_strays(self) -> None:
        """Kill processes that an experiment left behind: being the subreaper, the zygote is their parent now.

        There are none where seccomp holds.
        """
        while confine.SECCOMP not in self.cage.mechanisms:
            strays = [pid for pid in _children_of(os.getpid()) if pid not in self.running]
            if not strays:
                return
            for pid in strays:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def _answer(self, request: Dict[str, Any], outcome: Dict[str, Any], cpu: float) -> None:
        write(self.answers, {"id": request["id"], "cpu_seconds": round(cpu, 4), **outcome})


def _children_of(pid: int) -> List[int]:
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                parent = file.read().rpartition(")")[2].split()[1]
        except OSError:
            continue  # ended meanwhile
        if int(parent) == pid:
            found.append(int(name))
    return found


def write(fd: int, message: Dict[str, Any]) -> None:
    """Write one frame; blocks until the reader has taken it."""
    view = memoryview(wire.frame(message))
    while view:
        view = view[os.write(fd, view) :]


def readable_paths() -> List[str]:
    """What an experiment may read: libraries and installed packages, and what these read of the machine.

    Not the interpreter's whole prefix: an environment may live in a project's own folder.
    """
    paths = {_HERE, *sysconfig.get_paths().values(), *site.getsitepackages()}
    for prefix in {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}:
        paths |= {os.path.join(prefix, part) for part in ("lib", "lib64", "share")}
    for name in ("torch", "numpy"):
        module = sys.modules.get(name)
        if module is not None and module.__file__:
            paths.add(os.path.dirname(os.path.dirname(module.__file__)))
    paths -= {sysconfig.get_paths()[name] for name in ("data", "scripts")}
    if sys.base_prefix.startswith("/nix/"):
        paths.add("/nix/store")
    paths |= {"/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache"}
    paths |= {"/etc/localtime", "/usr/share/zoneinfo", "/etc/mime.types"}
    paths |= {"/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system/cpu"}
    return sorted(paths)


def forget_projects(readable: List[str]) -> None:
    """Take folders outside ``readable`` off the import path.

    An editable installation puts a project's own folder there. Experiments cannot read it, and an import that finds
    a file and may not open it would fail otherwise than one that finds nothing.
    """
    roots = [os.path.realpath(path) for path in readable]
    sys.path[:] = [entry for entry in sys.path if _is_under(os.path.realpath(entry), roots)]
    sys.meta_path[:] = [f for f in sys.meta_path if not getattr(f, "__module__", "").startswith("__editable__")]


def _is_under(path: str, roots: List[str]) -> bool:
    return any(path == root or path.startswith(root + os.sep) for root in roots)


def _memory(jobs: int) -> int:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(MEMORY_LEAST, min(MEMORY_MOST, total // (2 * jobs)))


def _import_torch() -> Dict[str, Any]:
    """Import PyTorch with one thread and what experiments use of it. Returns the first fields of the hello."""
    hello: Dict[str, Any] = {"torch": None, "error": None, "detail": ""}
    _add_user_site()
    try:
        import torch
    except Exception as error:  # a broken installation raises what it likes
        return {**hello, "error": "no-torch", "detail": f"{sys.executable}: {wire.describe(error)}"}
    hello["torch"] = str(torch.__version__)
    if _version(str(torch.__version__)) < OLDEST_TORCH:
        return {**hello, "error": "torch-too-old", "detail": f"torch {torch.__version__}; 2.4 or later is needed"}
    _warm_up()
    return hello


def _add_user_site() -> None:
    """``pip install --user`` puts packages where an isolated interpreter does not look."""
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        site.addsitedir(site.getusersitepackages())


def _version(text: str) -> Tuple[int, ...]:
    """The leading numbers of ``2.13.0+cpu``."""
    return tuple(int(part) for part in text.split("+")[0].split(".")[:2] if part.isdigit())


def _warm_up() -> None:
    """Import and run once, tiny and on one thread, what nearly every experiment needs."""
    import no_compiler

    no_compiler.install()

    import torch
    import torch.amp
    import torch.fx
    import torch.nn.utils.parametrize
    import torch.optim

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    torch.fx.symbolic_trace(model)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 2)).sum().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        kind(model.parameters(), lr=0.0)  # the first of a class wraps its `step`, which must not look like tampering
    torch.nn.Conv2d(1, 1, 3)(torch.randn(1, 1, 4, 4))


def main(argv: List[str]) -> int:
    """Say hello, then serve. Returns the exit status."""
    answers, jobs = int(argv[1]), int(argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the core decides when to stop
    hello: Dict[str, Any] = {"kind": "hello", "python": "{}.{}.{}".format(*sys.version_info[:3]), "confinement": []}
    hello.update(_import_torch())
    zygote: Optional[Zygote] = None
    if hello["error"] is None:
        zygote = Zygote(answers, jobs, "--self-test" in argv)
        hello["confinement"] = zygote.cage.mechanisms
    gc.freeze()  # a collection in a child would touch, and so copy, every page it inherited
    write(answers, hello)
    if zygote is not None:
        zygote.serve()
    return 0


def run() -> NoReturn:
    """Leave without the handlers of the libraries imported: nothing is worth saving, and they take time."""
    status = 1
    try:
        status = main(sys.argv)
    except BrokenPipeError:
        status = 0
    finally:
        os._exit(status)


if __name__ == "__main__":
    run()
