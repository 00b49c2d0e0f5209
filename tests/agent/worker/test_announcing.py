"""A step that reads a long prompt in one piece is announced to both who watch for silence: agent and manager."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from agent.engine.interface import FinishEvent, Generation
from agent.systemd.notify import Notifier
from agent.worker import protocol
from agent.worker.main import WATCHDOG_GRACE_SECONDS, serve
from tests.agent.engine.stand_in import StandIn, write_bundle
from tests.agent.worker.test_cancel_steps import PATIENCE, Line

TOKENS = 300
STALL = 20.0


class Reader(StandIn):
    """Reads every prompt whole."""

    @property
    def next_read(self) -> int:
        return TOKENS if self._waiting else 0


def test_both_wait_longer_for_that_step_and_no_other(tmp_path: Path) -> None:
    engine = Reader(write_bundle(tmp_path / "bundle"))
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE)
    with ours, theirs, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE)
        notifier = Notifier(str(tmp_path / "notify"), 60.0)
        worker = threading.Thread(
            target=serve, args=(theirs, lambda _load, _progress: engine), kwargs={"manager": notifier}
        )
        worker.start()
        line = Line(ours)
        line.send(protocol.Load("", 1, stall_seconds=STALL))
        assert isinstance(line.receive(), protocol.Loaded)
        line.send(protocol.Admit(Generation(1, "c", prompt="hello", max_tokens=2)))
        said = [line.receive(), line.receive()]
        while not isinstance(line.receive(), FinishEvent):
            pass
        ours.close()
        worker.join(PATIENCE)
        manager.setblocking(False)
        allowed = []
        while True:
            try:
                heard = manager.recv(4096).decode().split("\n")
            except BlockingIOError:
                break
            allowed += [int(text.partition("=")[2]) / 1e6 for text in heard if text.startswith("WATCHDOG_USEC")]
    assert said == [protocol.Reading(TOKENS), protocol.Reading(0)]
    normal = STALL + WATCHDOG_GRACE_SECONDS
    assert allowed == [normal, 3 * STALL + WATCHDOG_GRACE_SECONDS, normal]
