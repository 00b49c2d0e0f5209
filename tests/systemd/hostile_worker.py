"""Stands in for a worker that was taken over: tries what it must not be able to do, and tells what happened."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

STATE = Path("/var/lib/edge-agent")
MOST_CHILDREN = 2000


def outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def change_bundle() -> None:
    victim = next(path for path in (STATE / "bundles").rglob("*") if path.is_file())
    victim.chmod(0o600)


def fork_without_end() -> None:
    for _ in range(MOST_CHILDREN):
        if os.fork() == 0:
            signal.pause()


if __name__ == "__main__":
    attempts: dict[str, Callable[[], object]] = {
        "write into bundles": (STATE / "bundles" / "mine").touch,
        "change a bundle": change_bundle,
        "read the configuration": Path("/etc/edge-agent/agent.toml").read_bytes,
        "read the state": (STATE / "state.db").read_bytes,
        "read the trust": lambda: list((STATE / "trust").iterdir()),
        "tcp": lambda: socket.socket(socket.AF_INET).close(),
        "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close(),
        "become root": lambda: os.setuid(0),
        "signal the agent": lambda: os.kill(1, signal.SIGCONT),
        "fork without end": fork_without_end,
    }
    with socket.socket(fileno=3) as line:
        line.sendall(json.dumps({name: outcome(attempt) for name, attempt in attempts.items()}).encode())
