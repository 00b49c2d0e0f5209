"""Shuts a worker in before it touches a bundle: native code that reads foreign weights gets nothing else.

As far as the kernel allows: no new privileges; no core files, no files written, few descriptors and threads, not all of
the memory, and the first to go when that runs out; Landlock (read what Python and the bundle need, write nothing, no
TCP, no signals to others); seccomp (no sockets but UNIX ones, none of them connected or addressed, no new processes,
nothing done to other processes or to the modes and times of files, no memory that is shared, no tracing, no mounts).
What could not be had is left out and the level that was reached is reported, so that an old kernel still
serves. Under systemd the unit does the same from outside.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import agent
import contract
from agent.host.memory import total_memory
from agent.host.process_priority import OOM_SCORE_WORKER, set_oom_score_adj
from agent.worker.seccomp import deny_program
from contract.bundle.device_plan import SYSTEM_BYTES
from contract.errors import StoreBroken

PR_SET_NO_NEW_PRIVS = 38
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_NUMBERS = {"x86_64": 317, "aarch64": 277}
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
LANDLOCK_CREATE_RULESET_VERSION = 1
LANDLOCK_RULE_PATH_BENEATH = 1

EXECUTE, READ_FILE, READ_DIR = 1 << 0, 1 << 2, 1 << 3
FS_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
"""ABI version -> how many file-system rights it knows; naming one it does not know is an error."""

NET_ABI, NET_RIGHTS = 4, 0b11
SCOPE_ABI, SCOPES = 6, 0b11

MAX_DESCRIPTORS = 256

MEMORY_SHARE = 0.9
"""Of the RAM there is, for what a worker allocates (mapped weights do not count): the rest keeps the machine alive.
More where the plan for memory gives it more, which leaves ``SYSTEM_BYTES``: on 4 GiB a large model needs that.
"""

MAX_THREADS = 128
"""More than a worker's own that its account may have then; the runtime takes one for each core."""

SYSTEM_PATHS = (
    *("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/dev/null", "/dev/zero", "/dev/urandom"),
    *("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/sys/devices/system", "/sys/fs/cgroup"),
    "/sys/kernel/mm/transparent_hugepage",
)
"""Libraries, and what the runtime reads to learn about processor and memory."""


class _RulesetAttributes(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def isolate(readable: Iterable[Path], writable: Iterable[Path] = ()) -> str:
    """Give up for good everything that a worker does not need; the level reached, in words.

    ``readable`` are the bundle's directories; a worker has no ``writable`` ones. Must run while there is one thread,
    before the runtime is imported: threads made later inherit the restrictions, those made earlier would not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    written = list(writable)
    reached = []
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        reached.append("no_new_privs")
    folders = list(readable)
    mapped = sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())
    reached.append("rlimits" if _limit_resources(mapped, writes=bool(written)) else "")
    if reached[0]:  # without it the kernel refuses both
        abi = _landlock(libc, [*map(Path, SYSTEM_PATHS), *_python_paths(), *folders], written)
        reached.append(f"landlock {abi}" if abi else "")
        reached.append("seccomp" if _seccomp(libc) else "")
    return ", ".join(name for name in reached if name) or "none"


def _limit_resources(mapped: int, *, writes: bool) -> bool:
    """``mapped`` bytes of files may be mapped as if they were to be written, which the kernel counts as allocated."""
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: MAX_DESCRIPTORS,
        resource.RLIMIT_DATA: allocated(total_memory()) + mapped,
        resource.RLIMIT_NPROC: _tasks() + MAX_THREADS,
    }
    if not writes:
        limits[resource.RLIMIT_FSIZE] = 0
    try:
        for kind, value in limits.items():
            _, hard = resource.getrlimit(kind)
            lowest = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (lowest, lowest))
    except (OSError, ValueError, StoreBroken):
        return False
    return set_oom_score_adj(OOM_SCORE_WORKER)


def allocated(total: int) -> int:
    """What a worker may allocate where there are ``total`` bytes of RAM."""
    return max(int(total * MEMORY_SHARE), total - SYSTEM_BYTES)


def _tasks() -> int:
    """Threads of all processes of this account; the kernel counts them together."""
    count = 0
    for process_dir in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process_dir.name.isdigit() and process_dir.stat().st_uid == os.getuid():
                count += sum(1 for _ in (process_dir / "task").iterdir())
    return count


def _python_paths() -> list[Path]:
    """Where this interpreter and its packages lie, an editable checkout's packages included."""
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, *sysconfig.get_paths().values()}
    found = {Path(prefix) for prefix in prefixes if prefix}
    found |= {Path(folder) for package in (agent, contract) for folder in package.__path__}
    return sorted(path for path in found if path != Path("/"))


def _landlock(libc: ctypes.CDLL, readable: Iterable[Path], writable: Iterable[Path]) -> int:
    """Restrict this thread and those it will make; the ABI version, 0 if the kernel has none."""
    abi = libc.syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_CREATE_RULESET_VERSION)
    if abi < 1:
        return 0
    rights = (1 << FS_RIGHTS[max(version for version in FS_RIGHTS if version <= abi)]) - 1
    attributes = _RulesetAttributes(rights, NET_RIGHTS if abi >= NET_ABI else 0, SCOPES if abi >= SCOPE_ABI else 0)
    size = 8 if abi < NET_ABI else 16 if abi < SCOPE_ABI else 24
    ruleset = libc.syscall(LANDLOCK_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return 0
    try:
        for path in readable:
            _allow(libc, ruleset, path, READ_FILE | READ_DIR)
        for path in writable:
            _allow(libc, ruleset, path, rights & ~EXECUTE)
        return int(abi) if libc.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0) == 0 else 0
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> None:
    """A path that is not there needs no rule; one that fails stays closed.

    A rule is for an inode. In procfs a file gets a new one when the kernel has dropped its cached name, as it does
    where memory is short, and no rule is for that one: what is held open for the life of the process keeps its name.
    """
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rule = _PathBeneath(rights if path.is_dir() else rights & READ_FILE, descriptor)
        libc.syscall(LANDLOCK_ADD_RULE, ruleset, LANDLOCK_RULE_PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        if not path.is_relative_to("/proc"):
            os.close(descriptor)


def _seccomp(libc: ctypes.CDLL) -> bool:
    machine = os.uname().machine
    program = deny_program(machine, os.getpid())
    if program is None:
        return False
    buffer = ctypes.create_string_buffer(program, len(program))
    filter_ = _Program(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    return bool(libc.syscall(SECCOMP_NUMBERS[machine], SECCOMP_SET_MODE_FILTER, 0, ctypes.byref(filter_)) == 0)
