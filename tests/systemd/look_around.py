"""Runs in the place of a service, in its sandbox, and tells what it finds; standard library only.

Its outcome as root outside of every sandbox is what the service's is held against.
"""

from __future__ import annotations

import ctypes
import errno
import grp
import json
import mmap
import os
import platform
import pwd
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
STATE = "/var/lib/edge-agent"
PLACES = (
    "/",
    "/boot",
    "/etc",
    "/opt",
    "/run",
    "/run/edge-agent",
    "/tmp",
    "/usr",
    "/var",
    "/var/lib",
    "/var/log",
    "/var/tmp",
    STATE,
    f"{STATE}/bundles",
)
CLONE_NEWUSER = 0x10000000
PER_LINUX32 = 8
CHROOT, CLOCK_SETTIME = {"x86_64": (161, 227), "aarch64": (51, 112)}[platform.machine()]
"""Called by number: the C library would find out by itself what is wrong with the arguments."""


class Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def called(result: int) -> str:
    return "done" if result == 0 else errno.errorcode[ctypes.get_errno()]


def outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def in_child(attempt: Callable[[], str]) -> str:
    """What ``attempt`` says, tried in a process of its own, which it may change for good."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, attempt().encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        said = file.read()
    os.waitpid(child, 0)
    return said


def set_user_id_file() -> None:
    path = Path("/tmp/look-around-suid")
    path.touch()
    try:
        path.chmod(0o4700)
    finally:
        path.unlink()


def run_from_tmp() -> None:
    path = Path("/tmp/look-around-program")
    path.write_text("#!/bin/sh\n")
    path.chmod(0o700)
    try:
        subprocess.run([str(path)], check=True)
    finally:
        path.unlink()


def real_time() -> None:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def status() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def mounts() -> dict[str, str]:
    """Mount points and the options of the last mount on each."""
    fields = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return {field[4]: field[5] for field in fields}


def listed(path: str) -> object:
    try:
        return sorted(entry.name for entry in Path(path).iterdir())
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def read_only(path: str) -> bool:
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return True


def look() -> dict[str, object]:
    own = status()
    seen = mounts()
    return {
        "user": pwd.getpwuid(os.getuid()).pw_name,
        "group": grp.getgrgid(os.getgid()).gr_name,
        "groups": sorted(os.getgroups()),
        "umask": own["Umask"],
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "user ids": Path("/proc/self/uid_map").read_text().split(),
        "no new privileges": own["NoNewPrivs"],
        "capabilities": [own["CapBnd"], own["CapAmb"], own["CapEff"]],
        "filter": own["Seccomp"],
        # A path that is missing is found out before the right to change the root is asked for.
        "chroot": called(LIBC.syscall(CHROOT, b"/missing")),
        # So is a time that does not exist before the right to set one.
        "set clock": called(LIBC.syscall(CLOCK_SETTIME, 0, ctypes.byref(Timespec(0, -1)))),
        "set host name": called(LIBC.sethostname(b"edge", -1)),
        "name space": in_child(lambda: called(LIBC.unshare(CLONE_NEWUSER))),
        "personality": in_child(lambda: "done" if LIBC.personality(PER_LINUX32) >= 0 else "refused"),
        "real time": in_child(lambda: outcome(real_time)),
        "set-uid file": outcome(set_user_id_file),
        "write and execute": outcome(
            lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
        ),
        "run from /tmp": outcome(run_from_tmp),
        "internet": outcome(lambda: socket.socket(socket.AF_INET).close()),
        "unix": outcome(lambda: socket.socket(socket.AF_UNIX).close()),
        "netlink": outcome(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()),
        "raw packets": outcome(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM).close()),
        "writable": sorted(path for path in PLACES if not read_only(path)),
        "root's home": listed("/root"),
        "/tmp": listed("/tmp"),
        "/dev": listed("/dev"),
        "/var/lib": listed("/var/lib"),
        "/var/lib/edge-agent": listed("/var/lib/edge-agent"),
        "/etc/edge-agent": listed("/etc/edge-agent"),
        "modules": listed("/usr/lib/modules"),
        "process 1": Path("/proc/1").exists(),
        "control groups": seen.get("/sys/fs/cgroup", "").split(",")[0],
        "kernel parameters": seen.get("/proc/sys", "").split(",")[0],
        "kernel log": "/proc/kmsg" in seen,
        "name spaces": {name: str(Path(f"/proc/self/ns/{name}").readlink()) for name in ("mnt", "net", "user", "uts")},
        "limits": {
            name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[0] for name in ("NOFILE", "CORE", "NPROC")
        },
        "first to go": int(Path("/proc/self/oom_score_adj").read_text()),
        "slice": Path("/proc/self/cgroup").read_text(),
        "environment": dict(os.environ),
        "credentials": listed(os.environ.get("CREDENTIALS_DIRECTORY", "/missing")),
        "state directory": oct(Path("/var/lib/edge-agent").stat().st_mode & 0o777),
        "runtime directory": outcome(lambda: Path("/run/edge-agent/look-around").touch()),
        "input": str(Path("/proc/self/fd/0").readlink()),
    }


if __name__ == "__main__":
    text = json.dumps(look())
    if "--fd" in sys.argv:
        with socket.socket(fileno=3) as line:
            line.sendall(text.encode())
    else:
        print(text)
