"""The doctor's page and the support file on healthy and sick devices: real brokers, real state, real crashes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from agent.cli import main
from agent.commands.doctor import summary
from agent.config import AgentConfig
from agent.diagnosis import capacity, hardware, readiness, state
from agent.diagnosis.broker import _until, round_trip
from agent.diagnosis.finding import Finding, Verdict, run_check
from agent.diagnosis.support import redacted_config
from agent.install.settings import InstallSettings
from agent.install.status import InstallStatus
from agent.mqtt.settings import BrokerSettings
from agent.operator.control import OrderResult
from agent.state.audit import AuditLog
from agent.state.database import Database
from agent.state.installation import InstallationState, InstalledBundle
from agent.state.layout import StateDirectory
from agent.state.lock import FileLock
from agent.state.schema import SCHEMA
from agent.state.warnings import Warned
from agent.worker.settings import WorkerSettings
from contract.errors import StoreBroken
from contract.identifiers import Digest
from contract.mqtt.device import BrokerState, Deviation, EngineInfo, Health
from contract.mqtt.faults import ReportedError
from contract.mqtt.reports import BundleState, Reported
from contract.mqtt.topics import Topics
from contract.reasons import Reason
from contract.system.durable import Disk
from tests.agent.device import sealed
from tests.agent.install.market import Device, Market
from tests.agent.running_service import running, settings
from tests.agent.telemetry.trees import plant
from tests.broker import Broker, find_mosquitto, free_port

needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(f'device = "d1"\nstate_dir = "{tmp_path}/state"\n[broker]\nport = {free_port()}\n')
    return path


@pytest.fixture
def place(tmp_path: Path) -> StateDirectory:
    """State with nothing installed."""
    place = StateDirectory(tmp_path / "state")
    place.root.mkdir(mode=0o700)
    Database(place.database, SCHEMA).close()
    return place


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["edge-agent", *arguments])
    return main()


def page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config: Path) -> dict[str, Finding]:
    run(monkeypatch, "doctor", "--config", str(config), "--json")
    findings = json.loads(capsys.readouterr().out)["findings"]
    return {finding["check"]: Finding(**finding) for finding in findings}


@pytest.mark.parametrize(("name", "verdict"), [("batched", "ok"), ("genai", "note")])
def test_the_engine_that_serves_and_why_it_is_that_one(place: StateDirectory, name: str, verdict: str) -> None:
    """Asked of the running agent, of whatever model it has loaded."""
    overview = InstallStatus(
        running=True,
        reported=Reported(None, "IDLE", None, None, None, None),
        security_epoch=0,
        used_bytes=0,
        bundles=[],
        engine=EngineInfo(name, "rows depend on each other", 8, 512, 49152, [], 0.5, "seccomp", False, "it rounds",
                          Deviation(3.0, 0.0221)),
    )  # fmt: skip

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(msgspec.json.encode(OrderResult(overview=overview)) + b"\n")
        writer.close()

    async def look() -> Finding:
        async with await asyncio.start_unix_server(serve, path=str(place.control_socket)):
            [found] = readiness.engine(await asyncio.to_thread(readiness.query_agent, place))
            return found

    assert readiness.query_agent(place) is None, "no agent runs"
    [missing] = readiness.engine(None)
    assert (missing.check, missing.verdict) == ("engine", "note")
    finding = asyncio.run(look())
    assert (finding.check, finding.verdict) == ("engine", verdict)
    for words in (f"{name}, 8 at once", "rows depend on each other", "0.022 nats", "it rounds"):
        assert words in finding.detail


def test_a_page_for_a_device_without_state_or_broker(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    findings = page(monkeypatch, capsys, config)
    assert findings["configuration"].verdict == "ok"
    assert findings["runtime"].verdict == "ok"
    assert "onnxruntime-genai" in findings["runtime"].detail
    for bad in ("state", "trust", "broker"):
        assert findings[bad].verdict == "bad"
        assert findings[bad].fix


def test_every_bad_line_stands_beside_its_mend_and_the_status_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    assert run(monkeypatch, "doctor", "--config", str(config)) == 1
    said = capsys.readouterr()
    lines = said.out.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("✗"):
            assert lines[number + 1].lstrip().startswith("→")
    assert lines[-1].endswith("checks are bad")
    assert said.err == ""


def test_a_wrong_configuration_does_not_hide_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    config.write_text("devise = 1")
    findings = page(monkeypatch, capsys, config)
    assert "did you mean device" in findings["configuration"].detail
    assert findings["processor"].verdict in ("ok", "note")


def test_a_runtime_that_dies_is_a_finding_and_not_our_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = hardware.runtime()
    assert found.verdict == "bad"
    assert "SIGILL" in found.detail
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('no wheel of that name')")
    assert hardware.runtime().detail == "ImportError: no wheel of that name"


@pytest.mark.parametrize(
    ("files", "verdict"),
    [
        ({"fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n"}, "ok"),
        ({"fs/cgroup/cgroup.controllers": "cpuset cpu io pids\n"}, "warning"),  # Raspberry Pi OS as it comes
        ({"fs/cgroup/memory/memory.limit_in_bytes": "1"}, "ok"),
        ({"fs/cgroup/cpu/cpu.shares": "1024"}, "warning"),
        ({"power/state": ""}, "ok"),  # no control groups to be seen, as in some containers
    ],
)
def test_a_kernel_that_bounds_no_memory_is_found(tmp_path: Path, files: dict[str, str], verdict: str) -> None:
    found = hardware.memory(plant(tmp_path, files))
    assert found.verdict == verdict
    assert ("cgroup_enable=memory" in found.fix) == (verdict == "warning")


def test_a_weak_power_supply_is_found(tmp_path: Path) -> None:
    assert hardware.power(tmp_path) == []
    alarm = "class/hwmon/hwmon3/in0_lcrit_alarm"
    root = plant(tmp_path, {"class/hwmon/hwmon3/name": "rpi_volt", alarm: "0"})
    assert [found.verdict for found in hardware.power(root)] == ["ok"]
    (low,) = hardware.power(plant(root, {alarm: "1"}))
    assert low.verdict == "warning"
    assert "power supply" in low.fix


def test_a_clock_in_the_past_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hardware.clock(0).verdict in ("ok", "note")
    ahead = int(time.time()) + 400 * 86400
    assert "reset-clock-floor" in hardware.clock(ahead).fix
    monkeypatch.setattr(time, "time", lambda: 3600.0)
    assert hardware.clock(0).verdict == "bad"


def test_the_clock_floor_is_forgotten_on_demand_but_not_under_a_running_agent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config: Path, place: StateDirectory
) -> None:
    database = Database(place.database, SCHEMA)
    InstallationState(database).raise_clock_floor(4_000_000_000)
    database.close()
    with FileLock(place.lock, "an agent"):
        assert run(monkeypatch, "doctor", "--reset-clock-floor", "--config", str(config)) == StoreBroken.exit_status
        assert "running agent" in capsys.readouterr().err
        assert state.clock_floor(place) == 4_000_000_000
    assert run(monkeypatch, "doctor", "--reset-clock-floor", "--config", str(config)) == 0
    assert state.clock_floor(place) == 0


def test_state_that_everybody_may_read_is_bad(place: StateDirectory) -> None:
    assert state.directory(place).verdict == "ok"
    place.root.chmod(0o755)
    assert "chmod o=" in state.directory(place).fix


def test_a_damaged_database_is_named(place: StateDirectory) -> None:
    assert state.database(place).verdict == "ok"
    place.database.write_bytes(b"not a database" * 1000)
    (found,) = run_check("database", lambda: state.database(place))
    assert found.verdict == "bad"


def test_a_database_that_was_lost_is_named(place: StateDirectory) -> None:
    place.database.unlink()
    (place.bundles / "of an older state").mkdir(parents=True)
    (found,) = run_check("database", lambda: state.database(place))
    assert (found.verdict, "it was lost" in found.detail) == ("bad", True)


def doctors_view(broker: Broker, **settings: Any) -> dict[str, Finding]:
    found = round_trip(BrokerSettings(host="127.0.0.1", port=broker.port, **settings), Topics("d1"))
    return {finding.check: finding for finding in found}


@pytest.mark.broker
@needs_mosquitto
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_message_really_comes_back(tmp_path: Path, protocol: str) -> None:
    broker = Broker(tmp_path)
    broker.start()
    try:
        findings = doctors_view(broker, protocol=protocol)
        assert {name: found.verdict for name, found in findings.items()} == {"broker": "ok", "access": "ok"}
    finally:
        broker.stop()


@pytest.mark.broker
@needs_mosquitto
@pytest.mark.parametrize(
    ("rule", "said"),
    [("topic write edge/v1/d/d1/doctor", "delivered nothing"), ("topic read edge/v1/d/d1/doctor", "refuses")],
)
def test_a_broker_that_grants_and_delivers_nothing_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str, said: str
) -> None:
    monkeypatch.setattr("agent.diagnosis.broker.ROUND_TRIP_SECONDS", 1.0)
    acl = tmp_path / "acl"
    acl.write_text(f"{rule}\n")
    acl.chmod(0o644)
    broker = Broker(tmp_path / "broker", settings=f"acl_file {acl}\nuser root\n")
    broker.start()
    try:
        found = doctors_view(broker)["access"]
        assert found.verdict == "bad"
        assert said in found.detail
        assert "edge/v1/d/d1/doctor" in found.fix
    finally:
        broker.stop()


@pytest.mark.broker
@needs_mosquitto
def test_a_wrong_password_is_told_apart_from_a_broker_that_is_not_there(tmp_path: Path) -> None:
    broker = Broker(tmp_path / "broker", anonymous=False)
    broker.start()
    try:
        assert "username" in doctors_view(broker)["broker"].fix
    finally:
        broker.stop()
    assert "is a broker running" in doctors_view(broker)["broker"].fix


def test_the_support_file_holds_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: Path, place: StateDirectory
) -> None:
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "password").write_text("hunter2")
    config.write_text(
        f'device = "d1"\nstate_dir = "{place.root}"\n'
        f'[broker]\nport = {free_port()}\nusername = "d1"\npassword_file = "credentials/password"\n'
        '[sources]\nweb = "https://user:hunter2@example.org/repository"\n'
        '[sources.depot]\nurl = "https://example.org"\nusername = "d1"\npassword_file = "credentials/password"\n'
    )
    place.audit.write_text('{"decision": "accepted"}\n')
    out = tmp_path / "report.tar.gz"
    assert run(monkeypatch, "report", str(out), "--config", str(config)) == 0
    assert out.stat().st_mode & 0o777 == 0o600
    with tarfile.open(out) as archive:
        names = {member.name.partition("/")[2] for member in archive}
        texts = [archive.extractfile(member).read() for member in archive.getmembers()]  # type: ignore[union-attr]
    assert {"doctor.json", "config.json", "machine.json", "state.json", "audit.jsonl", "journal.txt"} == names
    assert not any(b"hunter2" in text for text in texts)


def test_a_configuration_that_is_not_one_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("= =")
    assert "unreadable" in redacted_config(tmp_path / "bad.toml")
    (tmp_path / "odd.toml").write_text(
        'password = "hunter2"\ntoken = ["hunter2"]\nurl = "http://[broken"\n'
        'presigned = "https://user:hunter2@example.org/repository?key=hunter2"\n'
    )
    assert redacted_config(tmp_path / "odd.toml") == {
        "password": "(left out)", "token": ["(left out)"], "url": "(left out)",
        "presigned": "https://example.org/repository?(left out)",
    }  # fmt: skip


@pytest.mark.broker
@needs_mosquitto
@pytest.mark.parametrize(
    ("settings", "protocol", "does"),
    [
        ("message_size_limit 2000", "5", "rejects larger ones as too large"),
        ("message_size_limit 2000", "3.1.1", "acknowledges larger ones and delivers nothing"),
        ("max_packet_size 2000", "5", "rejects larger ones as too large"),
        ("max_packet_size 2000", "3.1.1", "ends the connection at larger ones"),
    ],
)
def test_a_broker_that_takes_no_large_messages_is_found_out(
    tmp_path: Path, settings: str, protocol: str, does: str
) -> None:
    broker = Broker(tmp_path / "broker", settings=f"{settings}\n")
    broker.start()
    try:
        found = doctors_view(broker, protocol=protocol)
    finally:
        broker.stop()
    assert found["access"].verdict == "ok"
    limit = found["messages"]
    assert limit.verdict == "bad"
    assert does in limit.detail
    taken = int(limit.detail.split("messages of ")[1].split(" bytes")[0].replace(",", ""))
    assert 1600 < taken <= 2000


def test_what_comes_back_is_seen_by_a_doctor_that_was_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute passes between two looks: it has looked twice, and may look again."""
    passed, looks = time.monotonic, 0
    monkeypatch.setattr(time, "monotonic", lambda: passed() + 60 * looks)

    def came() -> bool:
        nonlocal looks
        looks += 1
        return looks == 3

    assert asyncio.run(_until(came, 1.0))
    assert not asyncio.run(_until(lambda: False, 0.05))


def test_a_program_that_does_not_answer_is_a_finding() -> None:
    def ask() -> Finding:
        subprocess.run(["tail", "-f", "/dev/null"], timeout=0.01, check=False)
        raise AssertionError

    (found,) = run_check("service", ask)
    assert (found.check, found.verdict) == ("service", "bad")
    assert found.detail == "cannot be determined: tail does not answer within 0 s"
    assert found.fix


# -- readiness: what the agent says of itself ------------------------------------------------------------------------


def overview(
    *reasons: str, ready: bool = False, error: ReportedError | None = None, warned: tuple[ReportedError, ...] = ()
) -> InstallStatus:
    active = BundleState("tiny", "1.0.0", "a" * 64, 0)
    reported = Reported("r1", "IDLE", None, active, None, error, warnings=list(warned) or UNSET)
    health = Health(ready, list(reasons), 0, 0)
    return InstallStatus(True, reported, 0, 0, [], desired="tiny@1.1.0", health=health)


@pytest.mark.parametrize(
    "reason", ["loading", "swapping", "no_model", "engine_unavailable", "store_unavailable", "stopping", "news"]
)
def test_a_device_that_does_not_answer_is_bad_and_its_reason_explained(place: StateDirectory, reason: str) -> None:
    found = readiness.ready(place, overview(reason))
    assert (found.verdict, found.check) == ("bad", "ready")
    assert reason in found.detail
    assert found.fix


def test_why_the_model_does_not_load_is_told(place: StateDirectory) -> None:
    said = overview("engine_unavailable")
    assert said.health is not None
    why = "the model did not load: 12 MiB are too little memory for this model"
    told = msgspec.structs.replace(said, health=msgspec.structs.replace(said.health, message=why))
    assert readiness.ready(place, told).detail.endswith(f"({why})")


@pytest.mark.parametrize(
    ("reason", "verdict"),
    [("unloaded", "note"), ("throttled_memory", "note"), ("store_read_only", "warning"), ("", "ok")],
)
def test_a_device_that_answers_says_how(place: StateDirectory, reason: str, verdict: str) -> None:
    found = readiness.ready(place, overview(*([reason] if reason else []), ready=True))
    assert found.verdict == verdict
    assert "answered by tiny@1.0.0" in found.detail


def test_a_device_without_a_connection_answers_nobody(place: StateDirectory) -> None:
    broker = BrokerState("somewhere:1883", "5", connected=False, problem="it refused the connection")
    found = readiness.ready(place, msgspec.structs.replace(overview(ready=True), broker=broker))
    assert (found.verdict, "it refused the connection" in found.detail) == ("bad", True)


def test_without_an_agent_nothing_is_answered(place: StateDirectory) -> None:
    assert readiness.ready(place, None).verdict == "bad"
    with FileLock(place.lock, "an agent"):
        found = readiness.ready(place, None)
    assert (found.verdict, "cannot be asked" in found.detail) == ("warning", True)


@pytest.mark.parametrize("running", [True, False])
def test_a_revoked_active_bundle_is_bad_whether_or_not_an_agent_runs(place: StateDirectory, running: bool) -> None:
    database = Database(place.database, SCHEMA)
    installed = InstallationState(database)
    installed.add_bundle(InstalledBundle(Digest("a" * 64), "tiny", "1.0.0", 0, 1, 1))
    installed.commit_candidate(Digest("a" * 64))
    text = "tiny@1.0.0 was revoked by its publisher"
    installed.warning_store.replace(
        [Warned(Reason.REVOKED, Digest("a" * 64), text), Warned(Reason.EXPIRED, None, "old")]
    )
    database.close()
    told = (ReportedError("revoked", text), ReportedError("expired", "old"), ReportedError("store_full", "see above"))
    found = readiness.warnings(place, overview(ready=True, warned=told) if running else None)
    found.sort(key=lambda each: each.check)
    assert [(each.check, each.verdict) for each in found] == [("bundle", "bad"), ("trust", "warning")]
    assert "on_revoked" in found[0].fix


def test_the_last_failed_installation_is_named_by_the_agent_or_by_the_audit_log(place: StateDirectory) -> None:
    assert readiness.last_failure(place, overview(ready=True)) == []
    error = ReportedError("canary_drift", "canary 1 is far off")
    (found,) = readiness.last_failure(place, overview(ready=True, error=error))
    assert found.verdict == "warning"
    assert "tiny@1.1.0: canary 1 is far off [canary_drift]" in found.detail
    waits = ReportedError("not_json", "depot: it is not JSON; retrying in 5 s", retry_in_seconds=5.0)
    (found,) = readiness.last_failure(place, overview(ready=True, error=waits))
    assert found.verdict == "warning"
    assert found.detail == "postponed: tiny@1.1.0: depot: it is not JSON; retrying in 5 s [not_json]"
    lost = ReportedError("trust_state_lost", "the epoch cannot be read; retrying in 5 s", retry_in_seconds=5.0)
    (found,) = readiness.last_failure(place, overview(ready=True, error=lost))
    assert found.fix == "edge-agent trust provision ROOT_JSON --replace"
    refused = ReportedError("desired_invalid", "the desired document is not JSON")
    (found,) = readiness.last_failure(place, overview(ready=True, error=refused))
    assert "tiny@1.1.0" not in found.detail, "nothing is wrong with the bundle that was wished for before"
    audit = AuditLog(place.audit, Disk(), "agent")
    audit.record("refused", bundle="tiny@1.1.0", reason="canary_drift", message="canary 1 is far off")
    audit.record("rolled_back", bundle="tiny@1.0.0", reason="canary_drift")
    (found,) = readiness.last_failure(place, None)
    assert "tiny@1.1.0: canary 1 is far off [canary_drift]" in found.detail
    audit.record("committed", bundle="tiny@1.2.0")
    assert readiness.last_failure(place, None) == [], "that is over"


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        (["ok", "note"], "all 2 checks passed"),
        (["ok", "warning"], "1 warning; none of 2 checks is bad"),
        (["bad", "warning", "warning"], "2 warnings; 1 of 3 checks are bad"),
    ],
)
def test_the_last_line_never_says_that_all_is_well_beside_a_warning(verdicts: list[Verdict], said: str) -> None:
    assert summary([Finding("x", verdict, "") for verdict in verdicts]) == said


def test_trust_that_cannot_be_read_for_another_reason_is_not_to_be_given_anew(place: StateDirectory) -> None:
    """Provisioning anew forgets what must not be accepted again."""
    place.trust.mkdir()
    (found,) = state.trust(place)
    assert "--replace" in found.fix, "it is lost"
    place.database.write_bytes(b"not a database" * 1000)
    (found,) = state.trust(place)
    assert (found.verdict, "--replace" in found.fix) == ("bad", False)


@pytest.mark.broker
@needs_mosquitto
def test_doctor_fails_while_a_running_agent_answers_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All its other checks may pass; and with a model that answers it says so, with its engine."""
    broker = Broker(tmp_path / "broker")
    broker.start()
    path = tmp_path / "agent.toml"
    path.write_text(f'device = "box"\nstate_dir = "state"\n[broker]\nhost = "127.0.0.1"\nport = {broker.port}\n')
    try:
        with running(settings(tmp_path / "state", broker.port)) as found:
            found.until(lambda: found.service.parts.frontend.gateway.connection.connected)
            found.until(lambda: "no_model" in found.service.parts.frontend.serving.reasons)
            assert run(monkeypatch, "doctor", "--config", str(path)) == 1
            text = capsys.readouterr().out
            assert "✗ ready" in text
            assert "no_model: no bundle is active" in text
            found.run(found.service.parts.frontend.serving.swap(sealed(), "drain"))
            findings = page(monkeypatch, capsys, path)
            assert findings["ready"].verdict == "ok"
            assert "fake" in findings["engine"].detail
        assert page(monkeypatch, capsys, path)["ready"].verdict == "bad"
    finally:
        broker.stop()


def test_the_plan_of_the_active_bundle_is_on_the_page(tiny_bundle: Path, tmp_path: Path) -> None:
    market, device = Market(tmp_path / "market", tiny_bundle), Device(tmp_path / "state")
    config = AgentConfig(device="d1", state_dir=tmp_path / "state", broker=BrokerSettings(host="127.0.0.1"))
    assert capacity.plan(device.directory, config) == []
    market.publish("1.0.0")
    device.activate(device.install(market.job(tmp_path / "state", "1.0.0")))
    found = capacity.plan(device.directory, config)
    assert [(each.check, each.verdict) for each in found] == [("plan", "ok")]
    assert "requests have 8 × 512 tokens in fp32" in found[0].detail
    assert "prepacked: yes" in found[0].detail
    narrow = msgspec.structs.replace(
        config, worker=WorkerSettings(engine="genai"), install=InstallSettings(quota_bytes=1 << 20)
    )
    found = capacity.plan(device.directory, narrow)
    assert found[0].verdict == "bad"
    assert found[0].fix.startswith("the disk is short by ")
    again = capacity.plan(device.directory, narrow, disk_reported=True)
    assert [(each.verdict, each.detail) for each in again] == [("ok", found[0].detail)], "one fault is found once"
    assert "prepacked: no, the genai engine is asked for" in found[0].detail
    installed = device.state()
    [active] = installed.bundles()
    vast = msgspec.structs.replace(config, install=InstallSettings(quota_bytes=1 << 60))
    disk = capacity.plan_active(device.directory, active.digest, vast).box.disk
    assert disk is not None
    assert disk < 1 << 60, "a quota is no disk"
    adapter = msgspec.structs.replace(active, digest=Digest("a" * 64), name="tone")
    installed.add_bundle(adapter, active.digest)
    installed.commit_candidate(adapter.digest)
    assert "prepacked: no, it is served with adapters" in capacity.plan(device.directory, config)[0].detail
