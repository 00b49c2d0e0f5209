"""``install``, ``status``, ``bundles`` and ``verify`` as processes with real workers, and the agent's own socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.install.settings import InstallSettings
from agent.install.update.state_machine import State
from agent.operator.control import ControlServer, Order, call_agent
from agent.state.audit import read_audit
from contract.errors import EdgeBundleError
from contract.mqtt.reports import Reported
from contract.reasons import Reason
from tests.agent.install.market import Device, Market
from tests.agent.install.stage import Stage

COMMAND = (sys.executable, "-m", "agent.cli")


def edge_agent(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def market(tmp_path: Path, tiny_bundle: Path) -> Market:
    return Market(tmp_path / "market", tiny_bundle)


def test_the_whole_way_without_an_agent(market: Market, tmp_path: Path) -> None:
    """A real installer process and a real worker for the canary."""
    market.publish("1.0.0", security_epoch=3)
    state = tmp_path / "state"
    done = edge_agent("install", market.location, "tiny@1.0.0", "--state-dir", state, "--root", market.root_json)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "tiny@1.0.0 is active\n"
    assert done.stderr.split() == [state.value.lower() for state in list(State)[1:11]]

    shown = json.loads(edge_agent("status", "--state-dir", state, "--json").stdout)
    assert shown["running"] is False
    assert shown["reported"]["phase"] == "IDLE"
    assert shown["reported"]["active"]["version"] == "1.0.0"
    assert shown["security_epoch"] == 3
    table = edge_agent("status", "--state-dir", state).stdout
    assert "tiny@1.0.0" in table
    assert "active" in table

    listed = json.loads(edge_agent("bundles", "--state-dir", state, "--json").stdout)
    assert [(entry["version"], entry["state"], entry["present"]) for entry in listed] == [("1.0.0", "active", True)]

    assert edge_agent("verify", "--state-dir", state).returncode == 0
    victim = next((state / "bundles").iterdir()) / "model.onnx.data"
    victim.chmod(0o644)
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    found = edge_agent("verify", "--state-dir", state, "--json")
    assert found.returncode == 3
    assert json.loads(found.stdout)["bundles"][0]["faults"][0]["reason"] == Reason.DIGEST_MISMATCH


def test_a_candidate_that_drifts_is_refused_by_a_real_worker(market: Market, tmp_path: Path) -> None:
    """Weights that were changed before they were signed: nothing but the canary can know."""
    data = bytearray((market.base / "model.onnx.data").read_bytes())
    for offset in range(0, len(data), 3):
        data[offset] = (data[offset] * 7 + offset) % 120
    market.publish("1.0.0", {"model.onnx.data": bytes(data)})
    state = tmp_path / "state"
    done = edge_agent("install", market.location, "tiny@1.0.0", "--state-dir", state, "--root", market.root_json)
    assert done.returncode == 6, done.stderr
    *phases, said = done.stderr.splitlines()
    assert "[canary_" in said
    assert {phase.upper() for phase in phases} <= set(State), "phases and one sentence, no log"
    assert "Traceback" not in done.stderr
    listed = json.loads(edge_agent("bundles", "--state-dir", state, "--json").stdout)
    assert [entry["state"] for entry in listed] == ["quarantined"]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("install", "/nowhere", "tiny@1.0.0"), 4, "does not exist"),
        (("install", "MARKET", "tiny@9.9.9"), 3, "not listed"),
        (("install", "MARKET", "tiny"), 3, "NAME@VERSION"),
        (("status",), 2, "nothing was installed"),
        (("verify",), 2, "nothing was installed"),
    ],
)
def test_mistakes_end_in_one_sentence(
    market: Market, tmp_path: Path, arguments: tuple[str, ...], status: int, words: str
) -> None:
    market.publish("1.0.0")
    state = tmp_path / "state"
    given = [market.location if each == "MARKET" else each for each in arguments]
    root = ["--root", str(market.root_json)] if arguments[0] == "install" else []
    done = edge_agent(*given, "--state-dir", state, *root)
    assert done.returncode == status, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_one_on_the_same_state_is_refused(market: Market, tmp_path: Path) -> None:
    from agent.state.lock import FileLock

    state = tmp_path / "state"
    state.mkdir()
    with FileLock(state / "lock", "another agent"):
        done = edge_agent("install", market.location, "tiny@1.0.0", "--state-dir", state)
    assert done.returncode == 5
    assert "[state_locked]" in done.stderr


@contextlib.asynccontextmanager
async def controlled(market: Market, root: Path) -> AsyncIterator[Stage]:
    """An agent's coordinator behind its control socket."""
    device = Device(root)
    stage = Stage(device.directory, {"main": market.location}, InstallSettings(probation_seconds=0, swap="drain"))
    async with stage.agent() as reconciler:
        server = ControlServer(device.directory, reconciler, stage.state, stage.settings)
        await server.start()
        try:
            yield stage
        finally:
            await server.close()


def test_a_running_agent_does_it_itself(market: Market, tmp_path: Path) -> None:
    # Longer than a socket address can be.
    root = tmp_path / ("long" * 25)
    market.publish("1.0.0")
    market.publish("1.1.0", {"README.md": b"1.1.0"})

    async def scenario() -> None:
        async with controlled(market, root) as stage:
            mode = stat.S_IMODE(stage.directory.control_socket.stat().st_mode)
            assert mode == 0o600
            for version in ("1.0.0", "1.1.0"):
                heard: list[Reported] = []
                order = Order("install", "tiny", version, market.location, str(market.root_json))
                overview = await asyncio.to_thread(call_agent, stage.directory, order, heard.append)
                assert overview is not None
                assert overview.running
                assert overview.reported.active is not None
                assert overview.reported.active.version == version
                assert {"FETCH", "CANARY", "COMMIT"} <= {reported.phase for reported in heard}
            await asyncio.to_thread(call_agent, stage.directory, Order("rollback"), lambda reported: None)
            assert stage.serving.bundle is not None
            assert stage.serving.bundle.manifest.version == "1.0.0"
            with pytest.raises(EdgeBundleError) as refused:
                order = Order("install", "tiny", "9.9.9", market.location)
                await asyncio.to_thread(call_agent, stage.directory, order, lambda reported: None)
            assert refused.value.reason is Reason.NOT_LISTED
            assert refused.value.exit_status == 3
        assert call_agent(stage.directory, Order("status"), lambda reported: None) is None

    asyncio.run(scenario())


def test_a_rollback_below_the_epoch_is_refused_unless_root_insists(market: Market, tmp_path: Path) -> None:
    market.publish("1.0.0", security_epoch=1)
    market.publish("1.1.0", {"README.md": b"1.1.0"}, security_epoch=2)

    async def scenario() -> None:
        async with controlled(market, tmp_path / "state") as stage:
            for version in ("1.0.0", "1.1.0"):
                order = Order("install", "tiny", version, market.location, str(market.root_json))
                await asyncio.to_thread(call_agent, stage.directory, order, lambda reported: None)
            with pytest.raises(EdgeBundleError) as refused:
                await asyncio.to_thread(call_agent, stage.directory, Order("rollback"), lambda reported: None)
            assert refused.value.reason is Reason.EPOCH_ROLLBACK
            insisting = Order("rollback", allow_epoch=True)
            if os.geteuid() == 0:
                await asyncio.to_thread(call_agent, stage.directory, insisting, lambda reported: None)
                assert stage.state.epoch() == 2, "the floor stays"
                lowered = [entry for entry in read_audit(stage.directory.audit) if entry.decision == "epoch_lowered"]
                assert [(entry.bundle, entry.security_epoch) for entry in lowered] == [("tiny@1.0.0", 1)]
            else:
                with pytest.raises(EdgeBundleError, match="only root"):
                    await asyncio.to_thread(call_agent, stage.directory, insisting, lambda reported: None)

    asyncio.run(scenario())


def test_a_revoked_bundle_is_no_way_back(market: Market, tmp_path: Path) -> None:
    market.publish("1.0.0")
    market.publish("1.1.0", {"README.md": b"1.1.0"})

    async def scenario() -> None:
        async with controlled(market, tmp_path / "state") as stage:
            order = Order("install", "tiny", "1.0.0", market.location, str(market.root_json))
            await asyncio.to_thread(call_agent, stage.directory, order, lambda reported: None)
            market.repository.revoke("tiny@1.0.0")
            order = Order("install", "tiny", "1.1.0", market.location)
            await asyncio.to_thread(call_agent, stage.directory, order, lambda reported: None)
            with pytest.raises(EdgeBundleError) as refused:
                await asyncio.to_thread(call_agent, stage.directory, Order("rollback"), lambda reported: None)
            assert refused.value.reason is Reason.REVOKED

    asyncio.run(scenario())


def test_rollback_without_an_agent(market: Market, tmp_path: Path) -> None:
    market.publish("1.0.0")
    market.publish("1.1.0", {"README.md": b"1.1.0"})
    state = tmp_path / "state"
    for version in ("1.0.0", "1.1.0"):
        done = edge_agent(
            "install", market.location, f"tiny@{version}", "--state-dir", state, "--root", market.root_json
        )
        assert done.returncode == 0, done.stderr
    done = edge_agent("rollback", "--state-dir", state)
    assert (done.returncode, done.stdout) == (0, "tiny@1.0.0 is active\n"), done.stderr
    listed = json.loads(edge_agent("bundles", "--state-dir", state, "--json").stdout)
    assert {entry["version"]: entry["state"] for entry in listed} == {"1.0.0": "active", "1.1.0": "previous"}
