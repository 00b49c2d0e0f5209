"""What the service manager receives, over a real datagram socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.systemd.notify import MAX_STATUS_BYTES, Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(10)
        yield listener


def heard(manager: socket.socket) -> list[str]:
    return manager.recv(4096).decode().split("\n")


def test_ready_carries_the_status(manager: socket.socket) -> None:
    assert Notifier(manager.getsockname()).ready("serving chat@1.0.0")
    assert heard(manager) == ["READY=1", "STATUS=serving chat@1.0.0"]


def test_every_message_follows_the_protocol(manager: socket.socket) -> None:
    notifier = Notifier(manager.getsockname())
    for send, expected in (
        (lambda: notifier.status("loading"), ["STATUS=loading"]),
        (lambda: notifier.status(""), ["STATUS="]),
        (notifier.progress, ["WATCHDOG=1"]),
        (lambda: notifier.allow_silence(2.5), ["WATCHDOG_USEC=2500000", "WATCHDOG=1"]),
        (lambda: notifier.stopping("bye"), ["STOPPING=1", "STATUS=bye"]),
    ):
        assert send()
        assert heard(manager) == expected


def test_a_status_cannot_smuggle_a_second_field(manager: socket.socket) -> None:
    Notifier(manager.getsockname()).status("fetching\nREADY=1\n")
    assert heard(manager) == ["STATUS=fetching READY=1"]


def test_an_endless_status_is_cut_at_a_character(manager: socket.socket) -> None:
    Notifier(manager.getsockname()).status("ä" * 5000)
    (line,) = heard(manager)
    assert line == "STATUS=" + "ä" * (MAX_STATUS_BYTES // 2)


def test_abstract_addresses_are_understood() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0edge-notify-{os.getpid()}")
        listener.settimeout(10)
        assert Notifier(f"@edge-notify-{os.getpid()}").progress()
        assert heard(listener) == ["WATCHDOG=1"]


def test_the_environment_names_the_manager_once(manager: socket.socket) -> None:
    environment = {
        "NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid()), "X": "1",
    }  # fmt: skip
    notifier = Notifier.from_environment(environment)
    assert notifier.progress()
    assert heard(manager) == ["WATCHDOG=1"]
    assert notifier.watchdog_seconds == 30.0
    assert environment == {"X": "1"}


@pytest.mark.parametrize(
    "environment",
    [{}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}],
)
def test_no_watchdog_where_the_manager_does_not_watch_us(environment: dict[str, str]) -> None:
    assert Notifier.from_environment(environment).watchdog_seconds is None


def test_nobody_listening_is_no_error(tmp_path: Path) -> None:
    assert not Notifier(None).ready()
    assert not Notifier(str(tmp_path / "nobody")).progress()


def test_the_watchdog_is_fed_when_it_is_time_and_not_at_every_step(manager: socket.socket) -> None:
    notifier = Notifier(manager.getsockname(), watchdog_seconds=4000.0)
    assert [notifier.keep_alive() for _ in range(5)] == [1000.0] * 5
    notifier.status("end")
    assert [heard(manager), heard(manager)] == [["WATCHDOG=1"], ["STATUS=end"]]
    assert Notifier(manager.getsockname()).keep_alive() is None
