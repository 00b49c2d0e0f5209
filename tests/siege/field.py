"""Where a siege takes place: the world of the soak test around another device, who sends and who listens."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.siege.grammar import DEVICE, GROUP, ROOT
from tests.siege.gunners import Gunners, make_client
from tests.siege.witness import Witness
from tests.soak.world import SETTINGS, World

HANG_SECONDS = 1.0
FIGHT_SECONDS = 3.0
AWAY_SECONDS = 2.0
"""What comes meanwhile lies at the broker when the agent starts, retained or in its session."""

OWN = (
    SETTINGS.replace('device = "soak"', f'device = "{DEVICE}"\ngroups = ["{GROUP}"]')
    .replace("interval_seconds = 1", "interval_seconds = 5")
    .replace("[sources]", 'protocol = "5"\n[sources]')
)


class Field:
    """``start`` it, ``strike`` it, ``stop`` it."""

    gunners: Gunners
    witness: Witness

    def __init__(self, root: Path, bundle: Path) -> None:
        # mosquitto gives root away, and could then not write its sessions here.
        user = "user root\n" if os.geteuid() == 0 else ""
        self.world = World(root, bundle, OWN, f"{user}log_type error\nlog_type warning\n")
        self._away_until: float | None = None

    def start(self, versions: Sequence[str]) -> None:
        """A device that trusts the repository and runs nothing yet."""
        assert [self.world.publish() for _ in versions] == list(versions)
        self.world.start()
        self.gunners = Gunners(self.world.broker.port)
        self.witness = Witness(self.world.broker.port)

    def stop(self) -> None:
        self.gunners.close()
        self.witness.close()
        self.world.stop()

    def want(self, version: str, revision: str) -> None:
        """A good desired document."""
        wanted = {"revision": revision, "bundle": {"name": "tiny", "version": version}}
        self.witness.publish(f"{ROOT}/d/{DEVICE}/desired", json.dumps(wanted).encode(), retain=True)

    def doctor(self) -> tuple[bool, str]:
        """Its verdict, and what it finds bad."""
        command = [
            sys.executable,
            "-m",
            "agent.cli",
            "doctor",
            "--json",
            "--config",
            str(self.world.root / "agent.toml"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        page: dict[str, Any] = json.loads(done.stdout)
        bad = [f"{each['check']}: {each['detail']}" for each in page["findings"] if each["verdict"] == "bad"]
        assert (done.returncode == 0) == page["ok"]
        return page["ok"], "; ".join(bad)

    def log(self, offset: int) -> tuple[str, int]:
        """What the agent said since ``offset``, and where it ends."""
        data = (self.world.root / "agent.log").read_bytes()
        return data[offset:].decode("utf-8", "replace"), len(data)

    def measure(self) -> tuple[int, int, int]:
        """The agent's memory and open files, and the bytes of its state apart from bundles."""
        state = self.world.root / "state"
        size = sum(path.stat().st_size for path in state.glob("*") if path.is_file())
        return self.world.agent.memory_info().rss, self.world.agent.num_fds(), size

    def other_protocol(self) -> None:
        """From its next start on the device speaks the other version of MQTT."""
        config = self.world.root / "agent.toml"
        text = config.read_text()
        old, new = ('"5"', '"3.1.1"') if 'protocol = "5"' in text else ('"3.1.1"', '"5"')
        config.write_text(text.replace(f"protocol = {old}", f"protocol = {new}"))

    # Blows.
    def strike(self, kind: str) -> None:
        """Something breaks, and is there again at once or soon."""
        self.mend()
        getattr(self, "_" + kind.replace(" ", "_"))()

    def mend(self) -> None:
        """The agent runs, if it was away."""
        if self._away_until is not None:
            time.sleep(max(0.0, self._away_until - time.monotonic()))
            self._away_until = None
            self.world.start_agent()

    def tick(self) -> None:
        """Now and then: who was away for long enough comes back."""
        if self._away_until is not None and time.monotonic() > self._away_until:
            self.mend()

    def _worker_killed(self) -> None:
        self.world.fault_worker_killed()

    def _worker_hung(self) -> None:
        self.world.fault_worker_hung()

    def _agent_killed(self) -> None:
        self.world.fault_agent_killed()

    def _agent_ended(self) -> None:
        # One that has just been started is ended by the signal itself.
        assert self.world.end_agent() in (0, -signal.SIGTERM)
        self.world.start_agent()

    def _agent_away(self) -> None:
        self.world.kill_agent()
        self._away_until = time.monotonic() + AWAY_SECONDS

    def _agent_killed_while_it_starts(self) -> None:
        self.world.fault_agent_killed()
        # Anywhere between the interpreter's start and the first answer.
        time.sleep(os.urandom(1)[0] / 255 * 2.0)
        self.world.fault_agent_killed()

    def _broker_killed(self) -> None:
        self.world.fault_broker_killed()

    def _broker_restarted(self) -> None:
        self.world.fault_broker_restarted()

    def _broker_hung(self) -> None:
        broker = psutil.Process(self.world.broker.pid)
        broker.send_signal(signal.SIGSTOP)
        time.sleep(HANG_SECONDS)
        broker.send_signal(signal.SIGCONT)

    def _namesake(self) -> None:
        """Another device of the same name comes again and again, then is switched off."""
        end = time.monotonic() + FIGHT_SECONDS
        while time.monotonic() < end:
            other = make_client("5", f"edge-{DEVICE}")
            with contextlib.suppress(OSError):
                other.connect("127.0.0.1", self.world.broker.port)
                other.loop(0.5)

    def _captive_portal(self) -> None:
        """For some seconds the server of bundles answers everything with a page."""
        self.world.web.kill()
        with contextlib.suppress(OSError), Portal(self.world.web.port) as portal:
            threading.Thread(target=portal.serve_forever, daemon=True).start()
            time.sleep(HANG_SECONDS)
            portal.shutdown()
        self.world.web.start()


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        page = b"<!doctype html><title>Welcome</title>Please accept our terms."
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_: object) -> None:
        pass


class Portal(http.server.ThreadingHTTPServer):
    """What a hotel's network answers to everything."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Page)
