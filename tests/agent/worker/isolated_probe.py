"""Isolates itself, tries what a worker must not be able to do, and prints what happened as JSON."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from agent.worker.isolation import isolate


def outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    except MemoryError:
        return "ENOMEM"
    return "done"


def eat_memory() -> None:
    with mmap.mmap(-1, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), flags=mmap.MAP_PRIVATE):
        pass


def eat_shared_memory() -> None:
    with mmap.mmap(-1, 1 << 20, flags=mmap.MAP_SHARED):
        pass


def unix_send(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as letters:
        letters.sendto(b"hello", path)


def unix_message() -> None:
    one, other = socket.socketpair()
    with one, other:
        one.sendall(b"hello")
        one.sendmsg([b"hello"])


def fork_without_end() -> None:
    while True:
        if os.fork() == 0:
            os._exit(0)


def thread() -> None:
    done = threading.Event()
    threading.Thread(target=done.set).start()
    assert done.wait(10)


def unix_connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)


def unshare() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x10000000) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


if __name__ == "__main__":
    bundle, outside, listening = map(Path, sys.argv[1:])
    attempts: dict[str, Callable[[], object]] = {
        "read the bundle": (bundle / "file").read_bytes,
        "list the bundle": lambda: list(bundle.iterdir()),
        "write the bundle": lambda: (bundle / "file").write_bytes(b"changed"),
        "create in the bundle": (bundle / "new").touch,
        "remove from the bundle": (bundle / "file").unlink,
        "read elsewhere": outside.read_bytes,
        "read accounts": Path("/etc/passwd").read_bytes,
        "write in /tmp": lambda: Path("/tmp/edge-bundle-probe").touch(),
        "tcp": lambda: socket.socket(socket.AF_INET).close(),
        "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close(),
        "udp over ipv6": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close(),
        "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
        "unix pair": lambda: [end.close() for end in socket.socketpair()],
        "connect to a unix socket": lambda: unix_connect(str(listening)),
        "execute": lambda: os.execv("/bin/true", ["true"]),
        "fork without end": fork_without_end,
        "eat memory": eat_memory,
        "signal the parent": lambda: os.kill(os.getppid(), signal.SIGWINCH),
        "unshare": unshare,
        "kill the parent": lambda: os.kill(os.getppid(), 0),
        "signal itself": lambda: signal.raise_signal(signal.SIGWINCH),
        "mode of the secret": lambda: outside.chmod(0o644),
        "mode of the bundle": lambda: bundle.chmod(0o000),
        "owner of the bundle": lambda: os.chown(bundle, os.getuid(), os.getgid()),
        "times of the bundle": lambda: os.utime(bundle, (1, 1)),
        "attributes of the bundle": lambda: os.setxattr(bundle, "user.edge", b"1"),
        "weaken the parent": lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 19),
        "pin the parent": lambda: os.sched_setaffinity(os.getppid(), {0}),
        "limit the parent": lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CORE, (0, 0)),
        "ask for its own limits": lambda: resource.getrlimit(resource.RLIMIT_NOFILE),
        "write to an address": lambda: unix_send(str(listening)),
        "write a message": unix_message,
        "eat shared memory": eat_shared_memory,
        "memory without a name": lambda: os.close(os.memfd_create("x")),
        "thread": thread,
        "read how long it waited for a core": Path("/proc/thread-self/schedstat").read_bytes,
    }
    level = isolate([bundle])
    score = Path("/proc/self/oom_score_adj").read_text().strip()
    print(
        json.dumps(
            {
                "level": level,
                "oom score": score,
                "threads": str(resource.getrlimit(resource.RLIMIT_NPROC)[1]),
                **{name: outcome(attempt) for name, attempt in attempts.items()},
            }
        )
    )
