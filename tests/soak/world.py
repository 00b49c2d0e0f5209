"""What surrounds the agent: a repository behind a web server, a broker, its own process, its workers' processes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.agent.install.market import Market
from tests.broker import Broker, free_port
from tests.contract.source.test_nginx import CONFIGURATION, NGINX

NAME = "soak"
EXTRA_BYTES = 1_500_000
SETTINGS = """
device = "soak"
state_dir = "state"
[broker]
host = "127.0.0.1"
port = {port}
[sources]
web = "{source}"
[install]
canary_seconds = 30.0
probation_seconds = 1.0
swaps_per_hour = 0
max_attempts = 100
retry_first_seconds = 0.5
retry_longest_seconds = 2.0
# Fetching takes a second then: long enough for the server to be cut off in the middle.
download_bytes_per_second = 1500000
[worker]
threads = 1
stall_seconds = 8.0
load_seconds = 30.0
[telemetry]
interval_seconds = 1
"""
READY_SECONDS = 120.0


class Web:
    """A repository behind nginx; without nginx, the directory itself, which is never cut off."""

    def __init__(self, directory: Path, root: str) -> None:
        self._directory = directory
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.location = f"http://127.0.0.1:{self.port}" if NGINX else root
        directory.mkdir()
        user = "user root;" if os.geteuid() == 0 else ""
        (directory / "nginx.conf").write_text(CONFIGURATION.format(dir=directory, port=self.port, root=root, user=user))

    def start(self) -> None:
        if NGINX is None:
            return
        self._process = subprocess.Popen(
            # One process: killed is killed.
            [NGINX, "-p", str(self._directory), "-c", str(self._directory / "nginx.conf"), "-g", "master_process off;"],
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            time.sleep(0.02)
        raise RuntimeError("nginx does not listen")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            (self._directory / "ready.sock").unlink(missing_ok=True)


class World:
    """Starts everything; each ``fault`` method breaks something and mends it.

    ``settings``: the agent's configuration with places for ``port`` and ``source``; ``broker``: more of the broker's.
    """

    def __init__(self, root: Path, bundle: Path, settings: str = SETTINGS, broker: str = "") -> None:
        self.root = root
        self.market = Market(root / "market", bundle)
        self.broker = Broker(root / "broker", settings=broker)
        self.web = Web(root / "web", self.market.location)
        self.version = 0
        self._agent: subprocess.Popen[bytes] | None = None
        (root / "agent.toml").write_text(settings.format(port=self.broker.port, source=self.web.location))

    def start(self) -> None:
        self.web.start()
        self.broker.start()
        self.run("trust", "provision", str(self.market.root_json))
        self.start_agent()

    def stop(self) -> None:
        self.end_agent()
        self.broker.stop()
        self.web.kill()

    def publish(self) -> str:
        """Another version, which differs from the one before in its bytes, not in what it answers."""
        self.version += 1
        version = f"1.{self.version}.0"
        self.market.publish(version, {"extra.bin": os.urandom(EXTRA_BYTES)})
        return version

    def run(self, *arguments: str) -> int:
        """An ``edge-agent`` command on this device; its exit status."""
        command = [sys.executable, "-m", "agent.cli", *arguments, "--config", str(self.root / "agent.toml")]
        with (self.root / "commands.log").open("ab") as log:
            return subprocess.run(command, stdout=log, stderr=log, timeout=120, check=False).returncode

    # The agent.
    def start_agent(self) -> None:
        command = [sys.executable, "-m", "agent.cli", "run", "--config", str(self.root / "agent.toml")]
        with (self.root / "agent.log").open("ab") as log:
            self._agent = subprocess.Popen(command, stdout=log, stderr=log)

    def end_agent(self) -> int:
        """End it in order; its exit status."""
        if self._agent is None:
            return 0
        self._agent.terminate()
        try:
            return self._agent.wait(120)
        finally:
            self._agent.kill()
            self._agent.wait()
            self._agent = None

    @property
    def agent(self) -> psutil.Process:
        assert self._agent is not None
        return psutil.Process(self._agent.pid)

    def workers(self) -> list[psutil.Process]:
        found = []
        for child in self.agent.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "agent.worker.main" in child.cmdline():
                    found.append(child)
        return found

    # What goes wrong.
    def fault_worker_killed(self) -> None:
        for worker in self.workers():
            with contextlib.suppress(psutil.Error):
                worker.kill()

    def fault_worker_hung(self) -> None:
        for worker in self.workers()[:1]:
            with contextlib.suppress(psutil.Error):
                worker.send_signal(signal.SIGSTOP)

    def kill_agent(self) -> None:
        assert self._agent is not None
        self._agent.kill()
        self._agent.wait()

    def fault_agent_killed(self) -> None:
        self.kill_agent()
        self.start_agent()

    def fault_broker_killed(self) -> None:
        self.broker.kill()
        self.broker.start()

    def fault_broker_restarted(self) -> None:
        self.broker.stop()
        self.broker.start()

    def fault_server_cut(self) -> None:
        self.web.kill()
        self.web.start()
