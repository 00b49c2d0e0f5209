"""The log of decisions: private, bounded, whole lines, several writers."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from agent.state import audit
from agent.state.audit import AuditLog, AuditRateLimiter, read_audit, suppressed_text
from contract.errors import BundleRefused
from contract.reasons import Reason
from contract.system.durable import Disk
from tests.contract.system.test_durable import Recording

ROOT = Path(__file__).resolve().parents[3]


def test_a_decision_is_one_line_that_only_its_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    refused = BundleRefused(Reason.REVOKED, "tiny@1.0.0 was revoked", field="version")
    AuditLog(path, Disk(), "installer").record("refused", bundle="tiny@1.0.0", error=refused)
    entry = json.loads(path.read_text())
    assert entry.pop("at").endswith("Z")
    assert entry == {
        "by": "installer",
        "decision": "refused",
        "bundle": "tiny@1.0.0",
        "reason": "revoked",
        "message": "tiny@1.0.0 was revoked",
        "field": "version",
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_full_file_is_rotated_and_the_oldest_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_BYTES", 2000)
    log = AuditLog(tmp_path / "audit.jsonl", Disk(), "agent")
    for number in range(200):
        log.record("refused", revision=str(number))
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2", "audit.jsonl.3"]
    assert all(file.stat().st_size <= 2000 and stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    kept = [int(entry.revision or "") for entry in read_audit(tmp_path / "audit.jsonl")]
    assert kept == list(range(200 - len(kept), 200))


def test_a_line_that_a_power_cut_left_unfinished_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, Disk(), "agent")
    log.record("refused", revision="one")
    with path.open("ab") as file:
        file.write(b'{"at":"2026')
    log.record("refused", revision="two")
    assert [entry.revision for entry in read_audit(path)] == ["one", "two"]


def test_what_is_quoted_from_outside_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    AuditLog(path, Disk(), "agent").record("refused", message="x\n" * 100_000)
    assert path.stat().st_size < 3 * audit.MAX_TEXT
    assert len(path.read_text().splitlines()) == 1


def test_a_refusal_stands_although_it_cannot_be_written_down(tmp_path: Path) -> None:
    disk = Disk(Recording("append", OSError(28, "No space left on device")))
    AuditLog(tmp_path / "audit.jsonl", disk, "agent").note("refused", bundle="tiny@1.0.0")
    assert not (tmp_path / "audit.jsonl").exists()


def test_every_line_passes_the_door_of_effects(tmp_path: Path) -> None:
    effects = Recording()
    AuditLog(tmp_path / "audit.jsonl", Disk(effects), "agent").record("accepted")
    assert effects.seen == ["append"]


def test_two_processes_lose_nothing_while_files_are_rotated(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from agent.state import audit; from contract.system.durable import Disk\n"
        "audit.MAX_BYTES = 20_000\n"
        "log = audit.AuditLog(Path(sys.argv[1]), Disk(), 'agent')\n"
        "for number in range(150): log.record('refused', revision=f'{sys.argv[2]}-{number}')"
    )
    path = tmp_path / "audit.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), name], cwd=ROOT) for name in ("one", "two")]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    expected = {f"{name}-{number}" for name in ("one", "two") for number in range(150)}
    assert {entry.revision for entry in read_audit(path)} == expected


def test_refusals_are_rationed_and_the_next_entry_says_how_many_were_not_written() -> None:
    now = [0.0]
    ration = AuditRateLimiter(lambda: now[0])
    said = []
    for _ in range(audit.AUDITED_REFUSALS + 10):
        said.append(ration.suppressed())
        ration.consume()
    assert said == [0] * audit.AUDITED_REFUSALS + [None] * 10
    now[0] += audit.AUDITED_REFUSALS_SECONDS
    assert ration.suppressed() == 10
    ration.consume()
    assert ration.suppressed() is None
    now[0] += 1e9
    assert ration.suppressed() == 0
    assert suppressed_text(0) == ""
    assert "10 more" in suppressed_text(10)


def test_an_endless_flood_needs_months_to_fill_the_log() -> None:
    line = 300
    assert audit.MAX_BYTES * (audit.FILES - 1) / line * audit.AUDITED_REFUSALS_SECONDS > 120 * 86400
