"""Whatever lies in the state directory under the names of our files: the agent starts and serves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.install.prepack import RECORD_FILE, is_intact
from agent.state.audit import AuditLog, read_audit
from contract.system.durable import Disk
from tests.agent.running_service import running, settings
from tests.broker import free_port

GARBAGE = b"\xff\xfe{\0" * 1000
DEEP = b"[" * 200_000


def directory(path: Path) -> None:
    (path / "inside").mkdir(parents=True)


def text(data: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    return write


def loop(path: Path) -> None:
    path.symlink_to(path)


CASES = [
    (name, kind)
    for name in ("audit.jsonl", "broker.json", "control.sock", "derived", "inbox", "trust/trusted.json")
    for kind in (directory, text(GARBAGE), text(DEEP), text(json.dumps({"a": "\ud83d"}).encode()), loop)
]


@pytest.mark.parametrize(
    "number", range(len(CASES)), ids=[f"{name}-{index % 5}" for index, (name, _) in enumerate(CASES)]
)
def test_a_file_that_is_another_keeps_nobody_from_starting(tmp_path: Path, number: int) -> None:
    name, make = CASES[number]
    with running(settings(tmp_path / "state", free_port())) as first:
        first.until(lambda: first.service.presence.published is not None)
    place = tmp_path / "state" / name
    if place.is_dir():
        place.rmdir()
    place.unlink(missing_ok=True)
    place.parent.mkdir(exist_ok=True)
    make(place)
    with running(settings(tmp_path / "state", free_port())) as again:
        again.until(lambda: again.service.presence.published is not None)
        frontend = again.service.parts.frontend
        again.until(lambda: frontend.gateway.connection.turns > 0)
        again.until(lambda: frontend.serving.reasons == ["no_model"])


@pytest.mark.parametrize("data", [GARBAGE, DEEP, b'{"at":"\xff"}\n', b'{"at": 1}\n', b"\0" * 100])
def test_lines_of_the_audit_log_that_cannot_be_read_are_left_out(tmp_path: Path, data: bytes) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", Disk(), "agent")
    log.record("refused", reason="expired")
    with (tmp_path / "audit.jsonl").open("ab") as file:
        file.write(data)
    log.record("refused", reason="revoked")
    assert [entry.reason for entry in read_audit(tmp_path / "audit.jsonl")] == ["expired", "revoked"]


@pytest.mark.parametrize("data", [GARBAGE, DEEP, b"[]", b'[{"name":"\\u0000","size":1,"sha256":""}]', b"{}"])
def test_derived_weights_with_another_record_are_as_good_as_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "weights").write_bytes(b"x")
    (tmp_path / RECORD_FILE).write_bytes(data)
    assert not is_intact(tmp_path)
