"""The core's side of the probe: streaming, budgets, workers that die, interpreters that are none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import venv
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from gradlint.probe import client as client_module
from gradlint.probe import process as process_module
from gradlint.probe.client import ProbeClient, Request
from gradlint.probe.policy import choose_python, vet
from gradlint.rule import Measurement

if not sys.platform.startswith("linux"):
    pytest.skip("the worker runs on Linux only", allow_module_level=True)

Fake = Callable[[str], str]

FAKE = """\
#!{python}
import json, os, struct, sys, time
OUT = int(sys.argv[4])
def say(message):
    data = json.dumps(message).encode()
    os.write(OUT, struct.pack(">I", len(data)) + data)
def hear():
    head = os.read(0, 4)
    if len(head) < 4:
        sys.exit(0)
    left, data = struct.unpack(">I", head)[0], b""
    while left > len(data):
        data += os.read(0, left - len(data))
    return json.loads(data)
HELLO = {{"kind": "hello", "torch": "2.13.0", "python": "3.11.0", "confinement": ["seccomp"], "error": None}}
{body}
"""

ECHO = """
say(HELLO)
while True:
    request = hear()
    if request["id"].startswith("poison"):
        os._exit(3)
    if request["id"] == "stuck":
        time.sleep(60)
    say({"id": request["id"], "ok": True, "body": {"pid": os.getpid(), "size": len(json.dumps(request))}})
"""


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    """Makes an executable that stands in for an interpreter running the zygote: no PyTorch, no waiting."""

    def make(body: str) -> str:
        path = tmp_path / "python"
        path.write_text(FAKE.format(python=sys.executable, body=textwrap.dedent(body)))
        path.chmod(0o755)
        return str(path)

    return make


def run(client: ProbeClient, *ids: str, body: Mapping[str, object] | None = None) -> dict[str, Measurement]:
    done: dict[str, Measurement] = {}

    def on_done(name: str, measurement: Measurement) -> None:
        assert name not in done
        done[name] = measurement

    client.run_all([Request(name, "step", body or {}) for name in ids], on_done)
    assert sorted(done) == sorted(ids)
    return done


def probe(python: str, timeout: float = 1.0, budget: float = 60.0, jobs: int = 2) -> ProbeClient:
    return ProbeClient(python, timeout, budget, jobs)


# ---------------------------------------------------------------- what an interpreter can be


@pytest.mark.parametrize(
    ("python", "part"),
    [
        ("/nonexistent/python", "No such file"),
        ("/etc/passwd", "cannot be started"),
        ("/bin/true", "ended with status 0"),
        ("/bin/cat", "ended with status 1"),
        ("/bin", "Permission denied"),
    ],
)
def test_what_is_no_interpreter_is_said_in_one_line(python: str, part: str) -> None:
    with probe(python) as client:
        hello = client.start()
        assert (hello.available, hello.error) == (False, "no-torch")
        assert python in hello.detail
        assert part in hello.detail
        assert "\n" not in hello.detail
        assert run(client, "a", "b")["b"] == Measurement(None, "no-torch", hello.detail)


def test_an_interpreter_that_hangs_is_given_up(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "HELLO_SECONDS", 0.3)
    with probe(fake("time.sleep(60)")) as client:
        assert "was not ready within 0.3 s" in client.start().detail


@pytest.mark.parametrize(
    "body", ["os.write(OUT, b'Hello, world!')", "say([1])\nsay({'kind': 'x'})", "os.write(OUT, b'\\0\\0\\0\\1x')"]
)
def test_something_that_does_not_speak_the_protocol(fake: Fake, body: str) -> None:
    with probe(fake(body)) as client:
        hello = client.start()
        assert hello.error == "no-torch"
        assert "protocol" in hello.detail


def test_no_confinement_no_run_unless_asked_for(fake: Fake) -> None:
    python = fake(ECHO.replace("say(HELLO)", 'say({**HELLO, "confinement": ["rlimit"]})'))
    with probe(python) as client:
        hello = client.start()
        assert (hello.error, hello.confinement) == ("probe-off", ("rlimit",))
        assert "--trust-project" in hello.detail
        assert run(client, "a")["a"].reason == "probe-off"
    with ProbeClient(python, 1.0, 60.0, 1, confinement_required=False) as client:
        assert run(client, "a")["a"].data is not None


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment without any package."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    return folder / "bin" / "python"


def test_no_torch_and_torch_too_old(bare_python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(bare_python.parent))  # no packages of the user's own
    with probe(str(bare_python)) as client:
        hello = client.start()
        assert hello.error == "no-torch"
        assert "ModuleNotFoundError" in hello.detail
    (site,) = bare_python.parent.parent.glob("lib/python3*/site-packages")
    (site / "torch").mkdir()
    (site / "torch" / "__init__.py").write_text('__version__ = "2.3.1+cpu"')
    with probe(str(bare_python)) as client:
        hello = client.start()
        assert (hello.error, hello.torch) == ("torch-too-old", "2.3.1+cpu")
        assert "2.4" in hello.detail


# ---------------------------------------------------------------- requests and answers


def test_answers_stream_and_each_comes_once(fake: Fake) -> None:
    with probe(fake(ECHO)) as client:
        client.launch()
        assert client.start().torch == "2.13.0"
        done = run(client, *map(str, range(50)))
        assert all(measurement.data for measurement in done.values())
        assert run(client) == {}


def test_a_request_larger_than_a_pipe(fake: Fake) -> None:
    with probe(fake(ECHO)) as client:
        done = run(client, "a", "b", "c", body={"text": "x" * 3_000_000})
        assert all((m.data or {})["size"] > 3_000_000 for m in done.values())


def test_a_worker_that_dies_takes_nothing_else_with_it(fake: Fake) -> None:
    with probe(fake(ECHO)) as client:
        done = run(client, "a", "poison", "b", "c", "d")
        assert done.pop("poison") == Measurement(None, "worker-died", "it ended with status 3")
        assert all(measurement.data for measurement in done.values())


def test_after_three_restarts_the_rest_is_given_up(fake: Fake) -> None:
    with probe(fake(ECHO), jobs=1) as client:
        done = run(client, *(f"poison{i}" for i in range(5)), "a")
        assert {measurement.reason for measurement in done.values()} == {"worker-died"}
        assert "4 times" in done["a"].detail


def test_a_worker_that_hangs_is_replaced(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "GRACE_SECONDS", 0.1)
    with probe(fake(ECHO), timeout=0.1) as client:
        done = run(client, "a", "stuck", "b")
        assert done["stuck"].reason == "worker-died"
        assert done["a"].data
        assert done["b"].data


def test_the_budget_ends_the_run(fake: Fake) -> None:
    with probe(fake(ECHO), timeout=5.0, budget=0.3, jobs=1) as client:
        started = time.monotonic()
        done = run(client, "a", "stuck", "b")
        assert time.monotonic() - started < 2.0
        assert done["a"].data
        assert {done["stuck"].reason, done["b"].reason} == {"budget"}
        assert run(client, "c")["c"].reason == "budget"  # it is the whole run's


def test_vetoed_sources_are_not_sent(fake: Fake) -> None:
    body = {"modules": [{"path": "a.py", "source": "import subprocess as sp\nsp.run(['ls'])\n"}]}
    with probe(fake(ECHO)) as client:
        assert run(client, "a", body=body)["a"] == Measurement(None, "vetoed", "a.py:2: subprocess.run on import")


# ---------------------------------------------------------------- endings


def gone(pid: int, seconds: float = 2.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


def test_close_is_quick_even_when_the_worker_does_not_listen(fake: Fake) -> None:
    client = probe(fake("say(HELLO)\nimport signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)"))
    client.start()
    pid = client.worker_pid
    assert pid is not None
    started = time.monotonic()
    client.close()
    client.close()
    assert time.monotonic() - started < 1.0
    assert gone(pid)


def test_an_interrupt_leaves_nothing_running(fake: Fake) -> None:
    pids = []

    def interrupt(name: str, measurement: Measurement) -> None:
        pids.append((measurement.data or {})["pid"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), probe(fake(ECHO)) as client:
        client.run_all([Request(str(i), "step", {}) for i in range(3)], interrupt)
    assert len(pids) == 1
    assert gone(pids[0])


CORE = """
import os, sys
from gradlint.probe.client import ProbeClient, Request
client = ProbeClient(sys.executable, 20.0, 60.0, 2, worker_arguments=["--self-test"])
client.start()
print(client.worker_pid, flush=True)
client.run_all([Request(str(i), "exec", {"source": "while True: pass"}) for i in range(2)], print)
"""


@pytest.mark.parametrize("victim", ["core", "worker"])
def test_experiments_die_with_the_core_and_with_the_worker(victim: str) -> None:
    core = subprocess.Popen(
        [sys.executable, "-c", CORE], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent
    )
    assert core.stdout is not None
    with core.stdout:
        worker = int(core.stdout.readline())
        end = time.monotonic() + 5
        while len(children := children_of(worker)) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        assert len(children) == 2
        os.kill(core.pid if victim == "core" else worker, signal.SIGKILL)
        try:
            assert all(gone(pid) for pid in (worker, *children))
        finally:
            core.kill()
            core.wait()


def test_a_real_worker_that_is_killed_is_replaced() -> None:
    seen: list[int] = []
    with ProbeClient(sys.executable, 5.0, 60.0, 1, worker_arguments=["--self-test"]) as client:
        for name in ("before", "after"):
            client.run_all(
                [Request(name, "exec", {"source": "import os\nRESULT = os.getppid()"})],
                lambda _, measurement: seen.append((measurement.data or {})["value"]),
            )
            assert seen[-1] == client.worker_pid
            os.kill(seen[-1], signal.SIGKILL)
    assert seen[0] != seen[1]


def children_of(pid: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found.append(int(folder.name))
    return found


def test_signals_of_the_terminal_do_not_reach_the_worker(fake: Fake) -> None:
    with probe(fake(ECHO)) as client:
        client.start()
        assert client.worker_pid is not None
        assert os.getsid(client.worker_pid) != os.getsid(0)


# ---------------------------------------------------------------- policy


def test_the_interpreter_is_the_first_named_or_with_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"PATH": os.environ.get("PATH", ""), "VIRTUAL_ENV": str(tmp_path)}
    assert choose_python(sys.executable, "/nonexistent", environ).path == sys.executable
    assert choose_python(None, sys.executable, environ).path == sys.executable
    missing = choose_python("/nonexistent/python", None, environ)
    assert missing.path is None
    assert missing.why == "--python: no interpreter at /nonexistent/python"
    assert choose_python(None, None, environ).path == sys.executable  # the tests run where torch is

    monkeypatch.setattr(sys, "path", ["", str(Path.cwd())])
    nothing = choose_python(None, None, environ)
    assert nothing.path is None
    assert "--python" in nothing.why
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to("/bin/true")
    package = tmp_path / "lib" / "python3.11" / "site-packages" / "torch"
    package.mkdir(parents=True)
    (package / "version.py").touch()
    assert choose_python(None, None, environ).why == "$VIRTUAL_ENV"
    assert choose_python(None, None, {"CONDA_PREFIX": str(tmp_path)}).path == str(tmp_path / "bin" / "python")


def test_an_environment_without_torch_of_its_own_is_asked(bare_python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    empty = bare_python.parent / "prefix"
    (empty / "bin").mkdir(parents=True)
    python = empty / "bin" / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    assert choose_python(None, None, {"VIRTUAL_ENV": str(empty)}).path is None
    python.write_text("#!/bin/sh\nexit 0\n")
    assert choose_python(None, None, {"VIRTUAL_ENV": str(empty)}).path == str(python)


@pytest.mark.parametrize(
    ("source", "vetoed"),
    [
        ("import os\nos.system('make')\n", True),
        ("from subprocess import run\nout = run(['git'])\n", True),
        ("import urllib.request\nurllib.request.urlretrieve('u', 'f')\n", True),
        ("import os\ndef build():\n    os.system('make')\n", False),
        ("import os\ntry:\n    os.system('make')\nexcept OSError:\n    pass\n", False),
        ("import os\nif __name__ == '__main__':\n    os.system('make')\n", False),
        ("class os:\n    system = print\nos.system('make')\n", False),
        ("import torch\nmodel = torch.nn.Linear(2, 2)\nmodel.run()\n", False),
        ("def (: subprocess.run\n", False),
    ],
)
def test_only_what_plainly_cannot_work_is_vetoed(source: str, vetoed: bool) -> None:
    assert (vet([{"path": "m.py", "source": source}]) is not None) is vetoed
