"""Controllers killed in the middle of a rollout: the next one goes on, and nothing is done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fleet.store.database import Database, parse_database
from tests.broker import Broker
from tests.fleet.simulate.device import SimulatedDevice
from tests.fleet.simulate.links import living
from tests.fleet.stage import load, make_devices, start, wait_for_devices, wait_for_state
from tests.fleet.waiting import until
from tests.postgres import Postgres

pytestmark = pytest.mark.broker


@contextmanager
def serve(url: str, broker: Broker, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A service process of its own."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "fleet.cli", "serve", "--database", url, "--broker", broker.url],
            stdout=file, stderr=file, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(30)


def kill(process: subprocess.Popen[bytes]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)


def nothing_was_doubled(devices: list[SimulatedDevice], revisions: int) -> None:
    """Every device heard each wish once, and installed the bundle once."""
    assert [device.installed for device in devices] == [["model@2.0.0"]] * len(devices)
    assert [len(device.wishes) for device in devices] == [revisions] * len(devices)


def test_a_controller_killed_in_every_wave_doubles_nothing(broker: Broker, tmp_path: Path) -> None:
    database_url = f"sqlite:///{tmp_path}/fleet.db"
    database = Database(parse_database(database_url))
    database.create()
    devices = make_devices(30)
    log = tmp_path / "serve.log"
    with living(devices, broker.address):
        with serve(database_url, broker, log) as process:
            wait_for_devices(database, 30)
            number = start(database, "2.0.0")
            until(lambda: load(database, number).waves[0].state != "pending", "the first wave to open")
            kill(process)
        for wave in (1, 2, 3):
            with serve(database_url, broker, log) as process:
                until(lambda wave=wave: load(database, number).waves[wave].state != "pending", "the next wave")  # type: ignore[misc]
                kill(process)
        with serve(database_url, broker, log):
            assert wait_for_state(database, number, "done", "paused", "rolled_back").state == "done", log.read_text()
    nothing_was_doubled(devices, 1)
    database.close()


def test_of_two_controllers_the_other_goes_on(postgres: Postgres, broker: Broker, tmp_path: Path) -> None:
    database_url = postgres.create("two_controllers")
    database = Database(parse_database(database_url))
    database.create()
    devices = make_devices(12)
    one_log, two_log = tmp_path / "one.log", tmp_path / "two.log"
    with living(devices, broker.address), serve(database_url, broker, one_log) as one:
        until(lambda: "leads, epoch 1" in one_log.read_text(), "the first to lead")
        with serve(database_url, broker, two_log) as two:
            wait_for_devices(database, 12)
            number = start(database, "2.0.0", waves=["1", "50%", "100%"])
            until(lambda: load(database, number).waves[0].state == "passed", "the first wave to pass")
            assert "leads" not in two_log.read_text()
            kill(one)
            assert wait_for_state(database, number, "done", "paused", "rolled_back").state == "done"
            assert two.poll() is None
            assert "leads, epoch 2" in two_log.read_text()
            assert "writes what devices say, epoch 2" in two_log.read_text()
    nothing_was_doubled(devices, 1)
    database.close()


def test_the_service_ends_when_it_is_told_to(broker: Broker, tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    with serve(f"sqlite:///{tmp_path}/fleet.db", broker, log) as process:
        until(lambda: "leads, epoch 1" in log.read_text(), "it to lead")
        process.terminate()
        assert process.wait(30) == 0
    assert "Traceback" not in log.read_text()
