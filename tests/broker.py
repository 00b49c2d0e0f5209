"""Real MQTT brokers on loopback for tests and the demo: mosquitto, or the pip-installable iotcore without it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

from edge_bundle.broker import BrokerAddress, parse_broker

DEADLINE_SECONDS = 120.0
"""Until a broker listens; mosquitto takes 20 ms, iotcore a second."""


PORTS = range(15_000, 32_000)
"""Below those that kernels give to connections: nobody gets one while its server is not there yet, or is away."""

BLOCK = 50
"""Ports that a process takes at a time, with one file that stays locked as long as it lives."""

_left: list[int] = []
_locked: list[IO[bytes]] = []
os.register_at_fork(after_in_child=_left.clear)


def free_port() -> int:
    """A TCP port on loopback that nobody listens on, another one at every call in any process of tests."""
    while True:
        if not _left:
            _left.extend(_take_ports())
        port = _left.pop()
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _take_ports() -> range:
    """Some that no other process has.

    Raises:
        RuntimeError: all are taken.
    """
    shelf = Path(tempfile.gettempdir()) / f"edge-test-ports-{os.getuid()}"
    shelf.mkdir(exist_ok=True)
    firsts = list(PORTS[::BLOCK])
    random.SystemRandom().shuffle(firsts)  # what a server of a run before left behind goes by in the meantime
    for first in firsts:
        claim = (shelf / str(first)).open("wb")
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            claim.close()
            continue
        _locked.append(claim)
        return range(first, first + BLOCK)
    raise RuntimeError(f"other tests have all ports from {PORTS[0]} to {PORTS[-1]}")


def find_mosquitto() -> str | None:
    """Path of the mosquitto server; Debian keeps it out of an ordinary user's PATH."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


class Broker:
    """A broker process of our own; ``stop`` and ``start`` again keep the port, and mosquitto keeps its sessions."""

    def __init__(self, directory: Path, *, settings: str = "", anonymous: bool = True) -> None:
        self.directory = directory
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        mosquitto = find_mosquitto()
        if mosquitto:
            self.kind = "mosquitto"
            config = directory / "mosquitto.conf"
            # persistence with autosave at every change: sessions outlive a killed broker, as an operator sets it up
            config.write_text(
                f"listener {self.port} 127.0.0.1\nallow_anonymous {str(anonymous).lower()}\nset_tcp_nodelay true\n"
                f"persistence true\npersistence_location {directory}/\nautosave_on_changes true\nautosave_interval 1\n"
                f"max_queued_messages 100000\n{settings}"
            )
            self._command = [mosquitto, "-c", str(config)]
        else:
            self.kind = "iotcore"
            config = directory / "rumqttd.toml"
            # its listeners speak one protocol version each; ours is MQTT 5
            config.write_text(
                "id = 0\n[router]\nid = 0\nmax_connections = 1000\nmax_outgoing_packet_count = 200\n"
                "max_segment_size = 104857600\nmax_segment_count = 10\n"
                f'[v5.1]\nname = "v5"\nlisten = "127.0.0.1:{self.port}"\nnext_connection_delay_ms = 1\n'
                "[v5.1.connections]\nconnection_timeout_ms = 60000\nmax_payload_size = 16777216\n"
                "max_inflight_count = 100\n"
            )
            self._command = [sys.executable, "-m", "iotcore", "--config", str(config)]

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    @property
    def address(self) -> BrokerAddress:
        return parse_broker(self.url)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process, while it runs."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start and wait until it accepts connections.

        Raises:
            RuntimeError: it ended or did not listen in time.
        """
        with (self.directory / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"{self.kind} ended: {(self.directory / 'broker.log').read_text()[-500:]}")
            with socket.socket() as probe:
                probe.settimeout(0.2)
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        self.stop()
        raise RuntimeError(f"{self.kind} does not listen on port {self.port}")

    def kill(self) -> None:
        """End it as a power cut does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def wipe(self) -> None:
        """What it kept is gone, as with a disk that was replaced."""
        self.kill()
        for left in self.directory.glob("mosquitto.db*"):
            left.unlink()
        self.start()

    def stop(self) -> None:
        """End it; connections break."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
