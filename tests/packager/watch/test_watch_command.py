"""The command on a real broker: a picture on a terminal, lines and JSON elsewhere."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_bundle.broker import BrokerAddress
from edge_bundle.broker_session import BrokerSession
from packager.watch.deployment import HEARD, UNHEARD
from tests.broker import Broker
from tests.packager.watch.messages import event, health, info, llm, message, reported, system

SECONDS = 120.0
COMMAND = [sys.executable, "-m", "packager.cli", "watch"]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    broker = Broker(tmp_path_factory.mktemp("broker"))
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture(scope="module")
def devices(broker: Broker) -> Iterator[BrokerSession]:
    """Two devices that have published their documents."""
    with BrokerSession(BrokerAddress("127.0.0.1", broker.port), "devices") as session:
        for name, group in (("kitchen-1", "kitchens"), ("office-1", "offices")):
            for kind, body in (
                ("status", {"online": True, "boot_id": "b"}),
                ("health", health(queue=1, active=2)),
                ("reported", reported()),
                ("info", info(group)),
            ):
                found = message(name, kind, body)
                session.publish(found.topic, found.payload, retain=True)
        yield session


def say(session: BrokerSession, device: str, kind: str, body: object) -> None:
    found = message(device, kind, body)
    session.publish(found.topic, found.payload)


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 130, 0, 0))
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm-256color"},
        )
        os.close(theirs)
        self.raw = ""

    def until(self, *expected: str) -> str:
        """Wait until everything of ``expected`` was drawn."""
        deadline = time.monotonic() + SECONDS
        while not all(each in self.plain for each in expected):
            assert time.monotonic() < deadline, self.plain[-4000:]
            assert self.process.poll() is None, self.plain[-4000:]
            if select.select([self._ours], [], [], 1.0)[0]:
                self.raw += os.read(self._ours, 1 << 16).decode("utf-8", "replace")
        return self.plain

    @property
    def plain(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw)

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        while self.process.poll() is None:
            if select.select([self._ours], [], [], 0.2)[0]:
                try:
                    self.raw += os.read(self._ours, 1 << 16).decode("utf-8", "replace")
                except OSError:  # the other end is closed
                    break
        return self.process.wait(SECONDS)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.mark.broker
def test_a_terminal_shows_a_live_picture(broker: Broker, devices: BrokerSession) -> None:
    terminal = Terminal("--device", "kitchen-1", "--broker", broker.url)
    try:
        terminal.until("kitchen-1 at 127.0.0.1", "ready", "smollm2@1.0.0", "1 wait, 2 active")
        say(devices, "kitchen-1", "telemetry/system", system(77.0))
        say(devices, "kitchen-1", "telemetry/llm", llm(100))
        say(devices, "kitchen-1", "event/install", event(bundle="smollm2@1.1.0"))
        say(devices, "kitchen-1", "reported", reported("CANARY"))
        terminal.until("77 °C", "3.0 of 4.0 GiB", "smollm2@1.1.0 is installed", "canary")
        assert "office-1" not in terminal.plain
        assert terminal.interrupt() == 130
        # The screen that was there before comes back.
        assert "\x1b[?1049l" in terminal.raw
        assert "Traceback" not in terminal.raw
    finally:
        terminal.close()


def lines_of(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline() for _ in range(count)]


@pytest.mark.broker
def test_scripts_read_json_of_one_group(broker: Broker, devices: BrokerSession) -> None:
    with subprocess.Popen(
        [*COMMAND, "--group", "kitchens", "--json", "--telemetry", "--seconds", "120", "--broker", broker.url],
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        retained = [json.loads(line) for line in lines_of(process, 4)]
        assert {(each["device"], each["kind"]) for each in retained} == {
            ("kitchen-1", kind) for kind in ("status", "health", "reported", "info")
        }
        assert all(each["retained"] for each in retained)
        say(devices, "office-1", "telemetry/llm", llm(1))
        say(devices, "kitchen-1", "telemetry/llm", llm(2))
        (sample,) = (json.loads(line) for line in lines_of(process, 1))
        assert (sample["device"], sample["kind"], sample["body"]["gen_ai.usage.output_tokens"]) == (
            "kitchen-1", "telemetry/llm", 2,
        )  # fmt: skip
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 130


@pytest.mark.broker
def test_without_a_terminal_there_is_a_line_for_each_message(broker: Broker, devices: BrokerSession) -> None:
    with subprocess.Popen(
        [*COMMAND, "--device", "office-1", "--seconds", "120", "--broker", broker.url],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        retained = lines_of(process, 4)
        assert any("office-1 health: ready · 2 active, 1 queued" in line for line in retained)
        say(devices, "office-1", "event/refused", event(message="\x1b[2Jgone", reason="not_listed"))
        (line,) = lines_of(process, 1)
        assert "office-1 event/refused: the desired bundle: \N{REPLACEMENT CHARACTER}[2Jgone [not_listed]" in line
        process.kill()


def test_a_broker_that_is_not_there_is_said_in_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "--broker", "mqtt://127.0.0.1:1"], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 4
    assert done.stderr.count("\n") == 1 and "cannot be reached" in done.stderr


def test_device_and_group_exclude_each_other() -> None:
    done = subprocess.run(
        [*COMMAND, "--device", "a", "--group", "b"], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 2


@pytest.mark.broker
@pytest.mark.parametrize("form", ["--json", "--lines"])
def test_who_reads_lines_is_told_that_the_broker_is_away(tmp_path: Path, form: str) -> None:
    broker = Broker(tmp_path)
    broker.start()
    try:
        with BrokerSession(BrokerAddress("127.0.0.1", broker.port), "device") as session:
            found = message("kitchen-1", "status", {"online": True, "boot_id": "b"})
            session.publish(found.topic, found.payload, retain=True)
        with subprocess.Popen(
            [*COMMAND, form, "--seconds", "120", "--broker", broker.url], stdout=subprocess.PIPE, text=True
        ) as process:
            assert "online" in lines_of(process, 1)[0]
            broker.stop()
            away = lines_of(process, 1)[0]
            broker.start()
            back = lines_of(process, 1)[0]
            process.kill()
    finally:
        broker.stop()
    if form == "--json":
        assert [json.loads(line)["body"] for line in (away, back)] == [{"connected": False}, {"connected": True}]
    else:
        assert (away.split(": ", 1)[1], back.split(": ", 1)[1]) == (f"{UNHEARD}\n", f"{HEARD}\n")
