"""What code under test tries, and what comes of it: every case is a program that a linter might meet.

The attacks run as real experiments, in the child of a zygote started with ``--self-test``, which then takes
requests of kind ``exec``. Each sets ``RESULT`` to what it met; what it wanted to do is looked up from outside.
"""

from __future__ import annotations

import os
import platform
import socket
import struct
import subprocess
import sys
import textwrap
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradlint.probe.client import ProbeClient, Request
from gradlint.probe.process import ZYGOTE
from gradlint.rule import Measurement

WORKER = ZYGOTE.parent
sys.path.append(str(WORKER))

import confine  # noqa: E402
import syscalls  # noqa: E402

SECRET = "hunter2-the-secret"

if not sys.platform.startswith("linux"):
    pytest.skip("the confinement is made of Linux mechanisms", allow_module_level=True)


@pytest.fixture(scope="module")
def client() -> Iterator[ProbeClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADLINT_TEST_TOKEN", SECRET)
        with ProbeClient(
            sys.executable, timeout=0.8, budget=300.0, jobs=2, worker_arguments=["--self-test"]
        ) as started:
            assert started.start().available, started.start()
            yield started


def measure(client: ProbeClient, *sources: str) -> list[Measurement]:
    """Run ``sources`` as experiments, at once; what came of each."""
    found: dict[str, Measurement] = {}
    requests = [Request(str(i), "exec", {"source": textwrap.dedent(s)}) for i, s in enumerate(sources)]
    client.run_all(requests, found.__setitem__)
    return [found[request.id] for request in requests]


HARMLESS = """
    import torch
    layer = torch.nn.Linear(4, 3)
    layer(torch.ones(2, 4)).sum().backward()
    RESULT = {"bias": layer.bias.grad.tolist()}
"""
MET = """
    def met(do, *arguments):
        try:
            return f"did it: {do(*arguments)!r}"
        except Exception as error:
            return type(error).__name__
    def call(name, *arguments):
        import ctypes, errno
        libc = ctypes.CDLL(None, use_errno=True)
        result = getattr(libc, name)(*arguments)
        return "did it" if result >= 0 else errno.errorcode[ctypes.get_errno()]
"""


def attempt(client: ProbeClient, source: str) -> object:
    """What the program met, seen beside a harmless one that must be untouched by it."""
    attack, harmless = measure(client, textwrap.dedent(MET) + textwrap.dedent(source), HARMLESS)
    assert harmless.data == {"bias": [2.0, 2.0, 2.0]}, harmless
    assert attack.reason is None, attack
    assert attack.data is not None
    return attack.data.get("value", attack.data)


def test_all_mechanisms_of_this_kernel_hold(client: ProbeClient) -> None:
    assert list(client.start().confinement) == confine.available()
    assert {"landlock", "seccomp"} & set(client.start().confinement)


# ---------------------------------------------------------------- files


def test_no_file_is_written_changed_or_removed(client: ProbeClient, tmp_path: Path) -> None:
    target = tmp_path / "weights.pt"
    target.write_text("precious")
    before = target.stat()
    met = attempt(
        client,
        f"""
        import os, shutil, torch
        path, new = {str(target)!r}, {str(tmp_path / "new")!r}
        RESULT = {{
            "write": met(open, path, "w"), "append": met(open, path, "a"), "create": met(open, new, "x"),
            "save": met(torch.save, torch.ones(1), new), "remove": met(os.remove, path), "mkdir": met(os.mkdir, new),
            "rename": met(os.rename, path, new), "truncate": met(os.truncate, path, 0), "link": met(os.link, path, new),
            "symlink": met(os.symlink, path, new), "chmod": met(os.chmod, path, 0), "utime": met(os.utime, path),
            "mkfifo": met(os.mkfifo, new), "rmtree": met(shutil.rmtree, {str(tmp_path)!r}),
            "xattr": met(os.setxattr, path, "user.a", b"b"), "tmpfile": met(os.open, "/tmp", os.O_TMPFILE | os.O_RDWR),
        }}
        """,
    )
    assert isinstance(met, dict)
    assert set(met.values()) <= {"PermissionError", "RuntimeError"}, met
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.pt"]
    assert target.read_text() == "precious"
    assert (target.stat().st_mtime_ns, target.stat().st_mode) == (before.st_mtime_ns, before.st_mode)


def test_nothing_but_packages_is_read(client: ProbeClient, tmp_path: Path) -> None:
    (tmp_path / "id_rsa").write_text(SECRET)
    met = attempt(
        client,
        f"""
        import os, pathlib, torch
        parent = os.getppid()
        RESULT = {{name: met(lambda: open(name, "rb").read(8)) for name in [
            {str(tmp_path / "id_rsa")!r}, {__file__!r}, "/etc/passwd", "/etc/hostname",
            "/proc/self/environ", "/proc/1/cmdline",
            f"/proc/{{parent}}/environ", f"/proc/{{parent}}/mem", f"/proc/{{parent}}/maps", "/dev/tty", "/dev/kmsg"]}}
        RESULT["list"] = met(os.listdir, {str(tmp_path)!r})
        RESULT["home"] = met(os.listdir, os.path.dirname({str(Path.home())!r}) or "/")
        RESULT["up"] = met(os.listdir, "/proc/self/root" + {str(tmp_path)!r})
        """,
    )
    assert isinstance(met, dict)
    assert set(met.values()) <= {"PermissionError"}, met


def test_a_project_that_holds_the_environment_stays_closed(tmp_path: Path) -> None:
    """With ``.venv`` in the project's folder, and the project installed in it as editable."""
    import torch

    project = tmp_path / "project"
    (project / "package").mkdir(parents=True)
    (project / "package" / "__init__.py").write_text("")
    (project / ".env").write_text(SECRET)
    venv.create(project / ".venv", with_pip=False, symlinks=True)
    (site,) = (project / ".venv").glob("lib/python3*/site-packages")
    (site / "editable.pth").write_text(f"{project}\n{Path(torch.__file__).parent.parent}\n")
    python = project / ".venv" / "bin" / "python"
    with ProbeClient(str(python), 0.8, 60.0, 1, worker_arguments=["--self-test"]) as client:
        met = attempt(
            client,
            f"""
            import sys
            RESULT = [met(open, {str(project / ".env")!r}), met(__import__, "package"), {str(project)!r} in sys.path,
                      sys.prefix]
            """,
        )
    assert met == ["PermissionError", "ModuleNotFoundError", False, str(project / ".venv")]


def test_packages_devices_and_threads_work(client: ProbeClient) -> None:
    """The cage is no use if what people write does not run in it."""
    met = attempt(
        client,
        """
        import os, threading, inspect, random, torch, torch.utils.data
        import colorsys, wave  # nothing has imported these yet
        seen = []
        thread = threading.Thread(target=seen.append, args=(1,)); thread.start(); thread.join()
        with open(os.devnull, "w") as null: print("gone", file=null)
        print("gone")
        data = torch.utils.data.TensorDataset(torch.randn(8, 2))
        data = torch.utils.data.DataLoader(data, batch_size=2, shuffle=True)
        torch.set_num_threads(2)
        x = torch.randn(300, 300, requires_grad=True); (x @ x).sum().backward()
        RESULT = [len(open("/dev/urandom", "rb").read(4)), seen, len(inspect.getsource(torch.nn.Linear)) > 100,
                  len(list(data)), bool(torch.isfinite(x.grad).all()), met(torch.compile, seen)]
        """,
    )
    assert met == [4, [1], True, 4, True, "did it: [1]"]


def test_an_optimizer_does_not_import_the_compiler(client: ProbeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "timeout", 10.0)  # importing it takes longer than anything else here
    met = attempt(
        client,
        """
        import sys, torch
        layer = torch.nn.Linear(2, 2)
        for kind in (torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop):
            optimizer = kind(layer.parameters(), lr=0.1)
            layer(torch.ones(1, 2)).sum().backward()
            optimizer.step()
        before = "torch._dynamo.eval_frame" in sys.modules
        import torch._dynamo.config  # whoever asks for it gets it
        RESULT = [before, "torch._dynamo.eval_frame" in sys.modules, isinstance(torch._dynamo.config.verbose, bool)]
        """,
    )
    assert met == [False, True, True]


# ---------------------------------------------------------------- network, programs, processes


def test_no_sockets(client: ProbeClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        met = attempt(
            client,
            f"""
            import socket, urllib.request
            RESULT = [met(socket.create_connection, ("127.0.0.1", {server.getsockname()[1]})),
                      met(socket.socket, socket.AF_UNIX), met(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW),
                      met(socket.socket, socket.AF_INET, socket.SOCK_DGRAM), met(socket.socketpair),
                      met(urllib.request.urlopen, "http://127.0.0.1:{server.getsockname()[1]}")]
            """,
        )
        with pytest.raises(TimeoutError):
            server.accept()
    assert met == ["PermissionError"] * 5 + ["URLError"]


def test_no_programs_and_no_processes(client: ProbeClient) -> None:
    met = attempt(
        client,
        """
        import multiprocessing, os, subprocess
        RESULT = [met(os.fork), met(os.execv, "/bin/true", ["true"]), met(subprocess.run, ["/bin/true"]),
                  met(os.posix_spawn, "/bin/true", ["true"], {}), met(multiprocessing.Process(target=print).start),
                  met(os.forkpty)]
        """,
    )
    assert isinstance(met, list)
    assert set(met) <= {"PermissionError", "OSError"}, met


def test_no_signals_to_others(client: ProbeClient) -> None:
    me = os.getpid()
    met = attempt(
        client,
        f"""
        import fcntl, os, resource, signal
        receive, send = os.pipe()
        RESULT = [met(os.kill, os.getppid(), 9), met(os.kill, {me}, 0), met(os.kill, -1, 9), met(os.kill, 0, 9),
                  met(os.killpg, os.getppid(), 9), met(fcntl.fcntl, receive, fcntl.F_SETOWN, {me}),
                  met(os.setpriority, os.PRIO_PROCESS, {me}, 19), met(os.sched_setaffinity, {me}, [0]),
                  met(resource.prlimit, {me}, resource.RLIMIT_CPU, (1, 1)), call("prctl", 1, 0, 0, 0, 0),
                  met(resource.setrlimit, resource.RLIMIT_CPU, (-1, -1))]
        """,
    )
    assert met == ["PermissionError"] * 9 + ["EPERM"] + ["ValueError"]


def test_no_tracing_no_memory_files_no_kernel_doors(client: ProbeClient) -> None:
    x86 = platform.machine() == "x86_64"
    numbers = {"bpf": 321 if x86 else 280, "perf_event_open": 298 if x86 else 241, "userfaultfd": 323 if x86 else 282}
    numbers |= {"io_uring_setup": 425, "pidfd_open": 434, "open_tree": 428, "keyctl": 250 if x86 else 219}
    numbers |= {"open_by_handle_at": 304 if x86 else 265, "seccomp": 317 if x86 else 277}
    met = attempt(
        client,
        f"""
        import os
        RESULT = {{name: call("syscall", number, 0, 0, 0, 0, 0) for name, number in {numbers!r}.items()}}
        RESULT["ptrace"] = call("ptrace", 16, os.getppid(), 0, 0)
        RESULT["traceme"] = call("ptrace", 0, 0, 0, 0)
        RESULT["memfd"] = call("memfd_create", b"x", 0)
        RESULT["vm_readv"] = call("process_vm_readv", os.getppid(), 0, 0, 0, 0, 0)
        RESULT["unshare"] = call("unshare", 0x10000000)
        RESULT["mount"] = call("mount", b"none", b"/tmp", b"tmpfs", 0, 0)
        RESULT["chroot"] = call("chroot", b"/tmp")
        RESULT["shmget"] = call("shmget", 1, 4096, 0o1600)
        """,
    )
    assert isinstance(met, dict)
    assert set(met.values()) == {"EPERM"}, met


def test_system_calls_of_the_future_are_absent(client: ProbeClient) -> None:
    assert attempt(client, 'RESULT = [call("syscall", n, 0, 0, 0) for n in (435, 437, 451, 600)]') == ["ENOSYS"] * 4


# ---------------------------------------------------------------- secrets, descriptors


def test_no_secret_of_the_environment(client: ProbeClient) -> None:
    met = attempt(
        client,
        """
        import ctypes, gc, os
        getenv = ctypes.CDLL(None).getenv
        getenv.restype = ctypes.c_char_p
        token = "GRADLINT_TEST_TOKEN"
        RESULT = [os.environ.get(token), getenv(token.encode()), os.getcwd(), dict(os.environ)]
        """,
    )
    assert isinstance(met, list)
    assert met[:3] == [None, None, "/"]
    assert not {os.environ["PATH"], os.environ["HOME"], os.environ["PWD"]} & set(met[3].values())


def test_standard_streams_and_one_pipe_are_all_that_is_open(client: ProbeClient) -> None:
    met = attempt(
        client,
        """
        import os, sys
        null = os.stat("/dev/null")
        opened = []
        for fd in range(64):
            try:
                seen = os.fstat(fd)
            except OSError:
                continue
            opened.append("null" if seen.st_rdev == null.st_rdev else oct(seen.st_mode)[:4])
        RESULT = [opened, sys.stdin.read(1), os.getsid(0) == os.getpid()]
        """,
    )
    assert met == [["null", "null", "null", "0o10"], "", True]


# ---------------------------------------------------------------- how experiments end


@pytest.mark.parametrize(
    ("reason", "source"),
    [
        ("memory", "RESULT = len(bytearray(1 << 40))"),
        ("memory", "import torch\nkept = []\nwhile True: kept.append(torch.empty(1 << 28))"),
        ("memory", "import torch\nRESULT = torch.empty(1 << 40).sum().item()"),
        ("timeout", "while True: pass"),
        ("timeout", "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"),
        ("timeout", "import os\nos.close(1)\nwhile True:\n try: pass\n except BaseException: pass"),
        ("worker-died", "import os\nos._exit(0)"),
        ("worker-died", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"),
        ("worker-died", "import ctypes\nctypes.string_at(0)"),
        ("worker-died", "import os\nos.close(3)\nRESULT = 1"),
        ("worker-died", "import ctypes\nctypes.CDLL(None).abort()"),
        ("not-built", "import sys\nsys.exit(0)"),
        ("not-built", "raise KeyboardInterrupt"),
        ("not-built", "def f(): f()\nf()"),
        ("not-built", "RESULT = object()"),
        ("tampered", 'import os\nos.write(3, b\'{"ok": true, "body": {}}\')\nRESULT = 1'),
        ("tampered", 'import os\nos.write(3, b\'{"ok": true, "body": {}}\')\nos._exit(0)'),
        ("tampered", "import os\nwhile True: os.write(3, b'x' * 65536)"),
        ("tampered", "import json\njson.JSONEncoder.encode = lambda self, o: '{\"ok\": true}'\nRESULT = 1"),
        ("tampered", "import builtins\nbuiltins.isinstance = lambda o, t: True\nRESULT = 1"),
        ("memory", "RESULT = {str(i): 'x' * 100 for i in range(90000)}"),
    ],
)
def test_an_experiment_that_ends_badly_has_a_reason(client: ProbeClient, reason: str, source: str) -> None:
    bad, harmless = measure(client, source, HARMLESS)
    assert (bad.data, bad.reason) == (None, reason), bad
    assert harmless.data == {"bias": [2.0, 2.0, 2.0]}


def test_sleeping_is_stopped_by_the_wall_clock(client: ProbeClient) -> None:
    (met,) = measure(client, "import time\ntime.sleep(60)")
    assert met.reason == "timeout"


def test_printing_a_flood_is_harmless(client: ProbeClient) -> None:
    assert attempt(client, "for _ in range(200): print('x' * 100000)\nRESULT = 1") == 1


def test_what_comes_back_is_plain_short_and_printable(client: ProbeClient) -> None:
    met = attempt(
        client,
        """
        RESULT = {"nan": float("nan"), "inf": [float("-inf"), float("inf")], "big": 10 ** 30, "long": "a" * 1000,
                  "escape": "\\x1b[2J\\u202e", "lone": "\\ud800", "key\\n": None}
        """,
    )
    assert isinstance(met, dict)
    assert met["nan"] == "nan"
    assert met["inf"] == ["-inf", "inf"]
    assert met["big"] == str(10**30)
    assert len(met["long"]) == 200
    assert met["escape"] == "\\x1b[2J\\u202e"
    assert met["lone"] == "\\ud800"
    assert met["key\\n"] is None


def test_the_text_of_an_exception_is_short_and_printable(client: ProbeClient) -> None:
    (met,) = measure(client, "raise ValueError('\\x1b]0;title\\x07' + 'long ' * 1000)")
    assert met.reason == "not-built"
    assert met.detail.startswith("ValueError: \\x1b]0;title\\x07long")
    assert len(met.detail) <= 200
    assert met.detail.isprintable()


# ---------------------------------------------------------------- the cage without the rest

CAGED = """
import sys
sys.path.insert(0, {worker!r})
import confine
confine.available = lambda: {mechanisms!r}
confine.apply([sys.prefix + "/lib", sys.base_prefix + "/lib"], confine.Limits(cpu_seconds=5, memory_bytes=1 << 30))
def met(do, *arguments):
    try:
        do(*arguments)
    except Exception as error:
        return type(error).__name__
    return "did it"
import os, socket
print(met(open, {target!r}, "w"), met(open, {target!r}), met(socket.socket), met(os.fork) if {fork!r} else "")
"""


@pytest.mark.parametrize(
    ("mechanisms", "expected"),
    [
        (["seccomp", "rlimit"], "PermissionError did it PermissionError PermissionError"),
        (["landlock", "rlimit"], "PermissionError PermissionError did it"),
    ],
)
def test_each_mechanism_alone_stops_writing(mechanisms: list[str], expected: str, tmp_path: Path) -> None:
    target = tmp_path / "data"
    target.write_text("kept")
    code = CAGED.format(worker=str(WORKER), mechanisms=mechanisms, target=str(target), fork="seccomp" in mechanisms)
    ran = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=30)
    assert (ran.stdout.strip(), ran.returncode) == (expected, 0), ran.stderr
    assert target.read_text() == "kept"


def decide(machine: str, arch: int, number: int, *arguments: int, writing_open: bool = True) -> int:
    """What the filter for ``machine`` answers, by interpreting it: the other machine's is tested here too."""
    data = struct.pack("<IIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    program = confine.bpf_program(machine, 77, writing_open)
    assert len(program) < 4096  # BPF_MAXINSNS
    word, at = 0, 0
    while True:
        code, if_true, if_false, operand = program[at]
        at += 1
        if code == 0x20:
            (word,) = struct.unpack_from("<I", data, operand)
        elif code == 0x06:
            return operand
        else:
            holds = {0x15: word == operand, 0x35: word >= operand, 0x45: bool(word & operand)}[code]
            at += if_true if holds else if_false


@pytest.mark.parametrize(("machine", "arch"), [("x86_64", 0xC000003E), ("aarch64", 0xC00000B7)])
def test_the_filter_of_each_machine(machine: str, arch: int) -> None:
    def answer(name: str, *arguments: int, writing_open: bool = True) -> int:
        number = syscalls.CALLS[name][machine == "aarch64"]
        assert number is not None
        return decide(machine, arch, number, *arguments, writing_open=writing_open)

    allow, refuse, absent = confine.ALLOW, confine.REFUSE, confine.ABSENT
    assert answer("read") == answer("mmap") == answer("futex") == allow
    assert answer("clone", 0x3D0F00) == allow  # what pthread_create asks for
    assert answer("clone", 17) == answer("clone", 0x10000 | 0x40000000) == refuse
    assert answer("clone3") == answer("openat2") == absent
    assert answer("kill", 77) == answer("tgkill", 77, 78) == allow
    assert answer("kill", 76) == answer("kill", 2**64 - 1) == answer("tgkill", 1, 1) == refuse
    assert answer("ioctl", 0, 0x5401) == allow
    assert answer("ioctl", 0, 0x5412) == refuse  # TIOCSTI
    assert answer("fcntl", 0, 8) == refuse  # F_SETOWN
    assert answer("openat", 0, 0, os.O_WRONLY) == allow
    assert answer("openat", 0, 0, os.O_WRONLY, writing_open=False) == refuse
    assert answer("openat", 0, 0, os.O_RDONLY | os.O_CLOEXEC, writing_open=False) == allow
    assert decide(machine, arch, 0x40000000) == decide(machine, arch, 1000) == absent  # x32, and the future
    assert decide(machine, 0x40000003, 0) == confine.KILL  # 32-bit calls
    never = {"x86_64": [41, 42, 53, 56 + 1, 58, 59, 101, 322], "aarch64": [117, 198, 199, 203, 221, 281]}[machine]
    assert {decide(machine, arch, number) for number in never} == {refuse}
