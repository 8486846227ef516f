"""The cage of one experiment: Landlock, seccomp and resource limits, by ctypes alone. Linux on x86_64 and aarch64.

Called in a freshly forked child with a single thread, before any of the code under test is touched:

* **Landlock** (Linux 5.13 and later, see ``Documentation/userspace-api/landlock.rst``): no writing, creating,
  removing or executing anywhere; reading only under the paths given. Where the kernel can: no TCP, no
  device ioctl, no signals or abstract sockets across the border.
* **seccomp** (``Documentation/userspace-api/seccomp_filter.rst``): only the calls in ``syscalls.py``, some of them
  only with harmless arguments. No sockets, no programs, no processes, no signals to others, no tracing.
* **limits**: CPU time, address space, no file may grow, no core dump, few descriptors.

Each can be missing on a given kernel, so :func:`apply` says what it put in place. None can be taken off again.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import os
import platform
import resource
import stat
import struct
import sys
from typing import Iterable, List, Optional, Tuple

import syscalls

LANDLOCK = "landlock"
SECCOMP = "seccomp"
RLIMIT = "rlimit"

MEMORY_RESERVE = 64 << 20
"""Bytes between the soft and the hard address space limit: enough to report that the soft one was met."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one experiment may use. ``memory_bytes`` is on top of the address space in use when it starts."""

    cpu_seconds: int
    memory_bytes: int
    open_files: int = 64


def available() -> List[str]:
    """The mechanisms this system offers, by asking the kernel; empty on anything but Linux."""
    if not sys.platform.startswith("linux"):
        return []
    offered = [RLIMIT]
    if _machine() is not None and _libc.prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) == 0 and _has_seccomp_filter():
        offered.insert(0, SECCOMP)
    if landlock_abi() > 0:
        offered.insert(0, LANDLOCK)
    return offered


def apply(read_paths: Iterable[str], limits: Limits) -> List[str]:
    """Confine the calling thread and all it starts, for good. Returns what :func:`available` listed.

    Raises :class:`OSError` where the kernel refuses something that it offered: then nothing may be run.
    """
    offered = available()
    _be_first_to_go_when_memory_runs_out()
    _drop_capabilities()
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _limit(limits, processes=None if SECCOMP in offered else 0)
    if LANDLOCK in offered:
        _landlock(read_paths)
    if SECCOMP in offered:
        _seccomp(bpf_program(_require_machine(), os.getpid(), writing_open=LANDLOCK in offered))
    return offered


def prctl(option: int, argument: int) -> None:
    """Set a process attribute (``man 2 prctl``). Raises :class:`OSError`."""
    _check(_libc.prctl(option, argument, 0, 0, 0), "prctl")


# ---------------------------------------------------------------- limits

_PR_SET_NO_NEW_PRIVS = 38
_PR_GET_SECCOMP = 21
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2

_libc = ctypes.CDLL(None, use_errno=True)


def address_space() -> int:
    """Bytes of address space the process has mapped now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _limit(limits: Limits, processes: Optional[int]) -> None:
    """Set the resource limits. ``processes`` stays ``None`` under seccomp: the limit counts the threads
    of everything the user runs, so a small one would forbid the threads that seccomp allows."""
    memory = address_space() + limits.memory_bytes
    wanted = {
        resource.RLIMIT_CPU: (limits.cpu_seconds, limits.cpu_seconds + 1),
        resource.RLIMIT_AS: (memory, memory + MEMORY_RESERVE),
        resource.RLIMIT_NOFILE: (limits.open_files, limits.open_files),
        resource.RLIMIT_FSIZE: (0, 0),
        resource.RLIMIT_CORE: (0, 0),
    }
    if processes is not None:
        wanted[resource.RLIMIT_NPROC] = (processes, processes)
    for which, (soft, hard) in wanted.items():
        ceiling = resource.getrlimit(which)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(which, (soft, hard))


def release_memory_reserve() -> None:
    """Lift the soft address space limit to the hard one, so that a failure can still be written down."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _be_first_to_go_when_memory_runs_out() -> None:
    """Offer this process to the kernel's out-of-memory killer before the user's own; a courtesy, not a wall."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")
    except OSError:
        return


def _drop_capabilities() -> None:
    """Give up every capability: the superuser then has no more rights than files and kernel give a plain user."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    nothing = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; low and high words
    _check(_libc.capset(header, nothing), "capset")


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


# ---------------------------------------------------------------- Landlock

_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_RULE_PATH_BENEATH = 1

_FS_WRITE_FILE = 1 << 1
_FS_READ_FILE = 1 << 2
_FS_READ_DIR = 1 << 3
_FS_RIGHTS_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many access rights a kernel knows (bits from 0): REFER came with 2, TRUNCATE with 3, IOCTL_DEV with 5."""
_NET_ALL = 0b11  # bind and connect over TCP, from ABI 4
_SCOPE_ALL = 0b11  # abstract unix sockets and signals, from ABI 6

_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


def landlock_abi() -> int:
    """The kernel's Landlock version; 0 where there is none or it is switched off."""
    return max(0, int(_libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _VERSION_FLAG)))


def _landlock(read_paths: Iterable[str]) -> None:
    abi = landlock_abi()
    handled = (1 << _FS_RIGHTS_BY_ABI[min(abi, max(_FS_RIGHTS_BY_ABI))]) - 1
    attributes = struct.pack("<QQQ", handled, _NET_ALL if abi >= 4 else 0, _SCOPE_ALL if abi >= 6 else 0)
    # An older kernel takes the longer struct as long as the part it does not know is zero.
    ruleset = _check(
        _libc.syscall(_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0), "landlock ruleset"
    )
    try:
        for path in read_paths:
            _allow(ruleset, path, _FS_READ_FILE | _FS_READ_DIR)
        for path in _DEVICES:
            _allow(ruleset, path, _FS_READ_FILE | (_FS_WRITE_FILE if path == "/dev/null" else 0))
        _check(_libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0), "landlock")
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, access: int) -> None:
    """Allow ``access`` to the file, or beneath the folder, ``path``. What does not exist needs no rule."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            access &= ~_FS_READ_DIR
        rule = struct.pack("<Qi", access, fd)
        _check(_libc.syscall(_LANDLOCK_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0), f"landlock rule {path}")
    finally:
        os.close(fd)


# ---------------------------------------------------------------- seccomp

Instruction = Tuple[int, int, int, int]
"""A classic BPF instruction: code, jump if true, jump if false, operand."""

_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_OFFSET_NUMBER, _OFFSET_ARCH, _OFFSET_ARGS = 0, 4, 16  # in struct seccomp_data

ALLOW = 0x7FFF0000
KILL = 0x80000000
REFUSE = 0x00050000 | errno.EPERM
ABSENT = 0x00050000 | errno.ENOSYS

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the table, AUDIT_ARCH

_CLONE_THREAD = 0x00010000
_CLONE_NAMESPACES = 0x7E020000
_OPEN_FOR_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | 0o20000000  # the last: O_TMPFILE
_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)
"""Duplicate, flags, locks, pipe size. Not F_SETOWN and its kin: they make the kernel signal other processes."""
_IOCTL_REQUESTS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451, 0x802C542A)
"""Is it a terminal, its size, bytes waiting, non-blocking, close-on-exec. Not TIOCSTI: it types for the user."""
_PRCTL_OPTIONS = (2, 3, 15, 16, 21, 23, 39, 42, 0x53564D41)
"""Getters, and names of threads and of memory. Not PR_SET_PDEATHSIG: a child may not outlive its parent."""


def _machine() -> Optional[str]:
    """The machine's name in the table; ``None`` where the filter does not know it (32-bit Pythons included)."""
    name = platform.machine()
    return name if name in _MACHINES and sys.maxsize > 2**32 else None


def _require_machine() -> str:
    name = _machine()
    if name is None:
        raise OSError(errno.ENOSYS, "seccomp: unknown machine")
    return name


def _has_seccomp_filter() -> bool:
    """Asks for filter mode with a null program: EFAULT means that it is there (``man 2 seccomp``, NOTES)."""
    result = _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, None, 0, 0)
    return bool(result < 0 and ctypes.get_errno() == errno.EFAULT)


def bpf_program(machine: str, pid: int, writing_open: bool) -> List[Instruction]:
    """The filter for ``machine``. ``pid`` may signal itself; ``writing_open`` leaves the flags of open to Landlock."""
    column, arch = _MACHINES[machine]
    program: List[Instruction] = [
        (_LOAD, 0, 0, _OFFSET_ARCH),
        (_IF_EQUAL, 1, 0, arch),
        (_RETURN, 0, 0, KILL),  # another instruction set's numbers would mean other calls
        (_LOAD, 0, 0, _OFFSET_NUMBER),
        (_IF_AT_LEAST, 0, 1, syscalls.FIRST_UNKNOWN),  # x32 calls (bit 30) are up there too
        (_RETURN, 0, 0, ABSENT),
    ]
    checks = _checks(pid, writing_open)
    for name, numbers in syscalls.CALLS.items():
        number = numbers[column]
        if number is None:
            continue
        body = checks.get(name, [(_RETURN, 0, 0, ALLOW)])
        program += [(_IF_EQUAL, 0, len(body), number), *body]
    program.append((_RETURN, 0, 0, REFUSE))
    return program


def _checks(pid: int, writing_open: bool) -> "dict[str, List[Instruction]]":
    """The calls that are not simply allowed, and what decides. Only the low word of an argument is looked
    at: the kernel itself takes these arguments as 32-bit numbers (clone's flags of interest fit as well)."""
    absent: List[Instruction] = [(_RETURN, 0, 0, ABSENT)]
    checks = {
        "clone": _bits(0, forbidden=_CLONE_NAMESPACES, required=_CLONE_THREAD),
        "fcntl": _one_of(1, _FCNTL_COMMANDS),
        "ioctl": _one_of(1, _IOCTL_REQUESTS),
        "kill": _one_of(0, (pid,)),
        "tgkill": _one_of(0, (pid,)),
        "prctl": _one_of(0, _PRCTL_OPTIONS),
        "prlimit64": _one_of(0, (0, pid)),
        "clone3": absent,
        "openat2": absent,
    }
    if not writing_open:
        checks["open"] = _bits(1, forbidden=_OPEN_FOR_WRITING)
        checks["openat"] = _bits(2, forbidden=_OPEN_FOR_WRITING)
    return checks


def _argument(index: int) -> Instruction:
    return (_LOAD, 0, 0, _OFFSET_ARGS + 8 * index)


def _one_of(index: int, values: Iterable[int]) -> List[Instruction]:
    """Allow when argument ``index`` is one of ``values``."""
    body = [_argument(index)]
    for value in values:
        body += [(_IF_EQUAL, 0, 1, value), (_RETURN, 0, 0, ALLOW)]
    return [*body, (_RETURN, 0, 0, REFUSE)]


def _bits(index: int, forbidden: int, required: int = 0) -> List[Instruction]:
    """Allow when argument ``index`` has none of the ``forbidden`` bits and, if any are named, a ``required`` one."""
    body = [_argument(index), (_IF_ANY_BIT, 0, 1, forbidden), (_RETURN, 0, 0, REFUSE)]
    if required:
        body += [(_IF_ANY_BIT, 1, 0, required), (_RETURN, 0, 0, REFUSE)]
    return [*body, (_RETURN, 0, 0, ALLOW)]


def _seccomp(program: List[Instruction]) -> None:
    code = b"".join(struct.pack("<HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    filter_program = Program(len(program), ctypes.addressof(buffer))
    _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(filter_program), 0, 0), "seccomp")
