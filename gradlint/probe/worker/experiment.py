"""The child's side of one experiment: go into the cage, run, say one thing, leave."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import signal
import sys
import tempfile
from typing import Any, Callable, Dict, List, NoReturn, cast

import confine
import integrity
import wire
from probe_errors import ProbeError, is_out_of_memory

NONCE_BYTES = 32
_RESULT_FD = 3
_PR_SET_PDEATHSIG = 1

RUNNERS = {"model": "measure_model", "step": "replay"}
"""The module whose ``run(body)`` carries out a request of each kind."""
UNKNOWN_FAILURE = {"model": "not-built", "step": "not-sliced", "exec": "not-built"}
"""The reason given for an exception that a runner did not foresee."""

NOWHERE = "/nonexistent"
ENVIRONMENT = {
    "HOME": NOWHERE,
    "PATH": NOWHERE,
    "LOGNAME": "nobody",
    "MPLBACKEND": "Agg",
    "LC_ALL": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "TORCHDYNAMO_DISABLE": "1",
    "TORCHINDUCTOR_CACHE_DIR": "/",  # made on import, if it is not there
}
"""The whole environment of an experiment. Constants: nothing of the user's is in it."""

Runner = Callable[[Dict[str, Any]], Dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Cage:
    """What every experiment of one zygote shares. ``mechanisms`` are the ones that must hold."""

    read_paths: List[str]
    memory_bytes: int
    mechanisms: List[str]


def load_runners(self_test: bool) -> Dict[str, Runner]:
    """Import the runners before any fork, so that experiments share them."""
    runners: Dict[str, Runner] = {}
    for kind, name in RUNNERS.items():
        try:
            runners[kind] = importlib.import_module(name).run
        except Exception as error:  # whatever an unforeseen Python or torch makes of it, the other kind still runs
            runners[kind] = _missing(f"{name} cannot be imported here: {wire.describe(error)}")
    if self_test:
        runners["exec"] = _exec
    return runners


def _missing(why: str) -> Runner:
    def run(body: Dict[str, Any]) -> Dict[str, Any]:
        raise ProbeError("worker-died", why)

    return run


def _exec(body: Dict[str, Any]) -> Dict[str, Any]:
    """The sandbox's own tests: run ``source``, give back the plain data that it leaves in ``RESULT``."""
    scope: Dict[str, Any] = {"__name__": "__experiment__"}
    exec(compile(body["source"], "<experiment>", "exec"), scope)
    result = scope["RESULT"]
    return result if isinstance(result, dict) else {"value": result}


def enter(cage: Cage, request: Dict[str, Any], runner: Runner, pipe: int, nonce: str, zygote: int) -> NoReturn:
    """Confine this freshly forked process, run ``request``, write the result to ``pipe``, exit."""
    status = 1
    try:
        _leave_the_parent_behind(zygote)
        _only_descriptor(pipe)
        _forget_the_environment()
        limits = confine.Limits(cpu_seconds=int(request["timeout"]) + 1, memory_bytes=cage.memory_bytes)
        holds = confine.apply(cage.read_paths, limits)
        if set(cage.mechanisms) - set(holds):
            raise OSError(f"confined by {holds} only")
        _say(nonce, _carry_out(request, runner))
        status = 0
    finally:
        # Not sys.exit: no handler, thread or buffer of the code under test has anything left to do.
        os._exit(status)


def trial(cage: Cage, pipe: int, zygote: int) -> NoReturn:
    """Go into the cage and tell which mechanisms hold, by trying what they forbid."""
    status = 1
    try:
        _leave_the_parent_behind(zygote)
        _only_descriptor(pipe)
        holds = confine.apply(cage.read_paths, confine.Limits(cpu_seconds=5, memory_bytes=cage.memory_bytes))
        if confine.LANDLOCK in holds and _can_open("/proc/1/status"):
            holds.remove(confine.LANDLOCK)
        if confine.SECCOMP in holds and _can_make_socket():
            holds.remove(confine.SECCOMP)
        os.write(_RESULT_FD, json.dumps(holds).encode())
        status = 0
    finally:
        os._exit(status)


def _can_open(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY))
    except OSError:
        return False
    return True


def _can_make_socket() -> bool:
    import socket

    try:
        socket.socket().close()
    except PermissionError:
        return False
    return True


def _leave_the_parent_behind(zygote: int) -> None:
    """A session of its own, plain signal handling, and death with the zygote."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)
    confine.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != zygote:  # it died before the line above
        os._exit(1)


def _only_descriptor(pipe: int) -> None:
    """Standard streams on /dev/null, the result pipe at 3, nothing else open."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    if pipe != _RESULT_FD:
        os.dup2(pipe, _RESULT_FD, inheritable=False)
    os.closerange(_RESULT_FD + 1, 65536)
    os.chdir("/")


def _forget_the_environment() -> None:
    os.environ.clear()
    os.environ.update(ENVIRONMENT)
    sys.argv[:] = ["gradlint-experiment"]
    # Packages ask on import where temporary files go, and make a folder there that they may never use.
    tempfile.tempdir = NOWHERE
    tempfile.mkdtemp = cast(Any, _folder_that_is_not_there)


def _folder_that_is_not_there(suffix: Any = None, prefix: Any = None, dir: Any = None) -> str:
    """In place of ``tempfile.mkdtemp``: a path. Writing under it fails, as it does everywhere."""
    return os.path.join(NOWHERE, f"{prefix or 'tmp'}{os.urandom(4).hex()}{suffix or ''}")


def _carry_out(request: Dict[str, Any], runner: Runner) -> Dict[str, Any]:
    """The outcome as plain data: the runner's body, or a reason and a detail."""
    kind = request["kind"]
    try:
        body = _guarded(runner, request["body"])
    except ProbeError as error:
        return _failure(error.reason, error.detail)
    except MemoryError:
        return _failure("memory", "the experiment wanted more memory than it may have")
    except RuntimeError as error:
        if is_out_of_memory(error):
            return _failure("memory", wire.describe(error))
        return _failure(UNKNOWN_FAILURE[kind], wire.describe(error))
    except BaseException as error:  # SystemExit and KeyboardInterrupt of the code under test end its experiment only
        return _failure(UNKNOWN_FAILURE[kind], wire.describe(error))
    return {"ok": True, "body": body}


def _guarded(runner: Runner, body: Dict[str, Any]) -> Dict[str, Any]:
    """``runner(body)``; ``tampered`` where the code under test replaced what brings the result out."""
    reporting = integrity.take(integrity.REPORTING)
    functions = integrity.Builtins()
    try:
        result = runner(body)
    finally:
        replaced = functions.restore()
    replaced += reporting.changed()
    if replaced:
        raise integrity.tampered(replaced)
    return result


def _failure(reason: str, detail: str) -> Dict[str, Any]:
    return {"ok": False, "reason": reason, "detail": detail[: wire.TEXT_CAP]}


def _say(nonce: str, outcome: Dict[str, Any]) -> None:
    confine.release_memory_reserve()
    try:
        text = json.dumps(outcome)
    except (TypeError, ValueError, RecursionError) as error:
        text = json.dumps(_failure("not-built", f"a result that is not plain data: {wire.describe(error)}"))
    data = nonce.encode("ascii") + text.encode("ascii")
    if len(data) > wire.RESULT_CAP:
        data = (nonce + json.dumps(_failure("memory", f"a result of {len(data)} bytes"))).encode("ascii")
    view = memoryview(data)
    while view:
        view = view[os.write(_RESULT_FD, view) :]
