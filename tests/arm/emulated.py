"""``python -m tests.arm.emulated [PYTEST ARGUMENTS]``: pytest on aarch64, by qemu-user, in an unpacked Debian.

Twenty to fifty times slower than the machine itself, so name what is to run. The kernel is this machine's: emulated
system calls know no seccomp and no Landlock, ``/proc`` and ``/sys`` are this machine's but for ``/proc/cpuinfo``.
:data:`APART` lists the tests that say so; ``make test-arm`` boots a real aarch64 kernel, where these things are.

Name spaces of its own (user, mount, processes) with their own binfmt_misc (Linux 6.7): the machine stays as it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.arm import debian, packages
from tests.kept import CACHE, ROOT, made_with
from tests.systemd.container import die_with_parent

PROCESSOR = "cortex-a76"
"""A Raspberry Pi 5's, with dot-product instructions; EDGE_ARM_PROCESSOR=cortex-a72 is a Pi 4's, without."""

_FEATURES = "fp asimd evtstrm aes pmull sha1 sha2 crc32"
CPUINFO = {
    "cortex-a72": ("0xd08", _FEATURES + " cpuid"),
    "cortex-a76": ("0xd0b", _FEATURES + " atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs"),
}
"""Number of the part and features, as the kernel of such a board shows them; onnxruntime cannot start without."""

APART = {"tests/agent/worker/test_isolation.py": "neither seccomp nor Landlock shuts anything in there"}
"""Tests that emulation of system calls cannot pass, each with what is missing; they are left out and listed."""

MOST_VALUABLE = [
    "tests/agent/engine", "tests/agent/worker/test_real_worker.py", "tests/agent/install/update/test_worker_start.py",
    "tests/agent/install/test_prepack.py", "tests/agent/diagnosis", "tests/contract",
]  # fmt: skip
"""What runs without arguments: what depends on a model or on the processor, and the contract."""

BINFMT = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")
_NEW_USER, _NEW_PROCESSES, _NEW_MOUNT = 0x10000000, 0x20000000, 0x20000
_BIND, _RECURSIVE, _PRIVATE = 1 << 12, 1 << 14, 1 << 18
_IDS = 65536

_libc = ctypes.CDLL(None, use_errno=True)


def main(arguments: list[str]) -> int:
    """Run pytest; its exit status."""
    lacks = debian.missing("qemu-aarch64-static", "apt-get", "dpkg-deb", why="the tests cannot be emulated")
    if lacks:
        print(lacks, file=sys.stderr)
        return 2
    shared = ["-m", "pytest", "-q", "tests/arm/test_kept_bundles.py"]
    subprocess.run([sys.executable, *shared], cwd=ROOT, check=True)
    cache = CACHE / "aarch64"
    root, venv = debian.root(cache), packages.environment(cache)
    command = [
        f"{venv}/bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "1800",
        *(word for name in APART for word in ("--deselect", name)), *(arguments or MOST_VALUABLE),
    ]  # fmt: skip
    for name, why in APART.items():
        print(f"left out: {name}: {why}")
    sys.stdout.flush()
    return run(root, command)


def run(root: Path, command: list[str]) -> int:
    """Run ``command`` in ``root`` on an emulated processor; the checkout lies at its own path."""
    variables = _variables()  # while this machine's files are there
    ready_read, ready_write = os.pipe()
    mapped_read, mapped_write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            die_with_parent()
            _check(_libc.unshare(_NEW_USER | _NEW_PROCESSES | _NEW_MOUNT), "unshare")
            os.write(ready_write, b"1")
            os.read(mapped_read, 1)
            first = os.fork()
            if first == 0:
                die_with_parent()
                _run_as_first(root, command, variables)
            _, status = os.waitpid(first, 0)
            os._exit(os.waitstatus_to_exitcode(status) & 255)
        except BaseException as error:
            print(f"emulation cannot start: {error}", file=sys.stderr)
            os._exit(2)
    os.close(ready_write)
    if os.read(ready_read, 1):
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child}/{name}").write_text(f"0 0 {_IDS}\n")
        os.write(mapped_write, b"1")
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) & 255


def _run_as_first(root: Path, command: list[str], variables: dict[str, str]) -> None:
    """Process 1: everything below it ends with it, and orphans come to it."""
    _enter(root)
    wanted = os.fork()
    if wanted == 0:
        os.execve(command[0], command, variables)
    while True:
        ended, status = os.wait()
        if ended == wanted:
            os._exit(os.waitstatus_to_exitcode(status) & 255)


def _variables() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name.startswith(("EDGE_", "PYTEST_"))}
    return {
        "HOME": "/root", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "LANG": "C.UTF-8",
        "QEMU_CPU": _processor(), "HF_HUB_OFFLINE": "1", **kept,
        "EDGE_CACHE": str(CACHE), "EDGE_MADE_WITH": made_with(),
    }  # fmt: skip


def _processor() -> str:
    return os.environ.get("EDGE_ARM_PROCESSOR", PROCESSOR)


def cpuinfo(processor: str, cores: int) -> str:
    """``/proc/cpuinfo`` of a board with ``cores`` cores of ``processor``."""
    part, features = CPUINFO[processor]
    facts = {
        "BogoMIPS": "108.00", "Features": features, "CPU implementer": "0x41", "CPU architecture": "8",
        "CPU variant": "0x4", "CPU part": part, "CPU revision": "1",
    }  # fmt: skip
    core = "".join(f"{name}\t: {value}\n" for name, value in facts.items())
    return "".join(f"processor\t: {number}\n{core}\n" for number in range(cores))


def _enter(root: Path) -> None:
    """Mounts and the interpreter, then ``root`` as the root."""
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    _mount(None, "/", None, _PRIVATE | _RECURSIVE)
    _mount("tmpfs", str(root / "tmp"), "tmpfs")
    # An own binfmt_misc belongs to the user name space; what it opens now is found there whatever the root is.
    handlers = root / "tmp" / "binfmt"
    handlers.mkdir()
    _mount("binfmt_misc", str(handlers), "binfmt_misc")
    (handlers / "register").write_bytes(BINFMT.read_bytes().strip())
    shown = root / "tmp" / "cpuinfo"
    shown.write_text(cpuinfo(_processor(), os.cpu_count() or 1))
    for name in ("dev", "sys"):
        _mount(f"/{name}", str(root / name), None, _BIND | _RECURSIVE)
    _mount("proc", str(root / "proc"), "proc")
    _mount(str(shown), str(root / "proc/cpuinfo"), None, _BIND)
    _mount("tmpfs", str(root / "run"), "tmpfs")
    for place in _places():
        inside = root / place.relative_to("/")
        inside.mkdir(parents=True, exist_ok=True)
        _mount(str(place), str(inside), None, _BIND | _RECURSIVE)
    os.chroot(root)
    os.chdir(ROOT)


def _places() -> Iterator[Path]:
    yield ROOT
    if not CACHE.is_relative_to(ROOT):
        yield CACHE


def _mount(source: str | None, target: str, kind: str | None, flags: int = 0) -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind)]
    _check(_libc.mount(*words, flags, None), f"mounting {kind or source} on {target}")


def _check(status: int, what: str) -> None:
    if status != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
