"""``trust refresh`` looks now: by the agent where one runs, else by itself, and says what has changed."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.commands.trust_facts import Affected, RoleFacts, TrustFacts
from agent.commands.trust_refresh import changes, lines
from agent.install.settings import InstallSettings
from agent.operator.control import ControlServer
from tests.agent.commands.test_device_commands import edge_agent
from tests.agent.install.market import Device, Market
from tests.agent.install.stage import Stage, desired
from tests.agent.install.test_reconciler import active
from tests.agent.install.trust.test_revocation import warns


@pytest.fixture
def market(tmp_path: Path, tiny_bundle: Path) -> Market:
    return Market(tmp_path / "market", tiny_bundle)


def configure(tmp_path: Path, sources: str, on_revoked: str = "keep") -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(
        f'device = "box"\nstate_dir = "state"\n[install]\non_revoked = "{on_revoked}"\n[sources]\n{sources}'
    )
    return path


def test_without_an_agent_it_looks_itself(market: Market, tmp_path: Path) -> None:
    market.publish("1.0.0")
    device = Device(tmp_path / "state")
    device.activate(device.install(market.job(device.directory.root, "1.0.0")))
    config = configure(tmp_path, f'main = "{market.location}"\n')
    done = edge_agent("trust", "refresh", "--config", config)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "trust is up to date; nothing has changed"

    market.publish("1.1.0", {"README.md": b"1.1.0"})
    market.repository.revoke("tiny@1.0.0")
    told = json.loads(edge_agent("trust", "refresh", "--config", config, "--json").stdout)
    assert (told["ok"], told["changed"], told["by_agent"]) == (True, True, False)
    assert told["added"] == ["tiny@1.1.0"]
    assert told["newly_revoked"] == ["tiny@1.0.0"]
    assert told["revoked_here"] == [{"bundle": "tiny@1.0.0", "active": True}]
    timestamp = told["roles"]["timestamp"]
    assert timestamp["version"] > timestamp["previous_version"]

    text = edge_agent("trust", "refresh", "--config", config).stdout
    assert 'tiny@1.0.0 is on this device and serves on: install.on_revoked is "keep"' in text


@pytest.mark.parametrize(
    ("sources", "arguments", "status", "words"),
    [
        ("", (), 2, "no source is configured"),
        ("", ("depot",), 2, "neither a local path nor a configured source"),
        ('main = "http://127.0.0.1:1"\n', (), 4, "cannot be reached"),
        ('main = "MARKET"\n', ("/nowhere",), 4, "does not exist"),
    ],
)
def test_what_keeps_it_from_looking_is_said_with_its_exit_status(
    market: Market, tmp_path: Path, sources: str, arguments: tuple[str, ...], status: int, words: str
) -> None:
    market.publish("1.0.0")
    device = Device(tmp_path / "state")
    device.install(market.job(device.directory.root, "1.0.0"))
    config = configure(tmp_path, sources.replace("MARKET", market.location))
    done = edge_agent("trust", "refresh", *arguments, "--config", config)
    assert done.returncode == status, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_device_that_trusts_nobody_is_told_so(market: Market, tmp_path: Path) -> None:
    market.publish("1.0.0")
    device = Device(tmp_path / "state")
    device.state()
    config = configure(tmp_path, f'main = "{market.location}"\n')
    done = edge_agent("trust", "refresh", "--config", config)
    assert done.returncode == 3
    assert "no root of trust is provisioned" in done.stderr
    assert edge_agent("trust", "refresh", "--sauce").returncode == 2


@pytest.mark.parametrize("policy", ["keep", "replace"])
def test_a_running_agent_looks_now_and_does_what_the_policy_wants(market: Market, tmp_path: Path, policy: str) -> None:
    for version in ("1.0.0", "1.1.0"):
        market.publish(version, {"README.md": version.encode()})
    device = Device(tmp_path / "state")
    config = configure(tmp_path, f'main = "{market.location}"\n', policy)
    settings = InstallSettings(probation_seconds=0, swap="drain", on_revoked=policy)  # type: ignore[arg-type]
    stage = Stage(device.directory, {"main": market.location}, settings)
    device.install(market.job(device.directory.root, "1.0.0"))

    async def scenario() -> None:
        async with stage.agent() as reconciler:
            server = ControlServer(device.directory, reconciler, stage.state, stage.settings)
            await server.start()
            for version in ("1.0.0", "1.1.0"):
                reconciler.set_desired(desired(version))
                await stage.until(active(version))
            market.repository.revoke("tiny@1.1.0")
            done = await asyncio.to_thread(edge_agent, "trust", "refresh", "--config", config)
            assert done.returncode == 0, done.stderr
            assert "revoked    tiny@1.1.0\n" in done.stdout
            assert ("serves on" if policy == "keep" else "the agent takes it out of service") in done.stdout
            await stage.until(warns("revoked"))  # type: ignore[arg-type]
            if policy == "replace":
                await stage.until(lambda each: each is stage.reported[-1] and active("1.0.0")(each))
            # A source that cannot be used is said, and the agent goes on.
            done = await asyncio.to_thread(edge_agent, "trust", "refresh", "http://127.0.0.1:1", "--config", config)
            assert done.returncode == 4, done.stderr
            done = await asyncio.to_thread(edge_agent, "trust", "refresh", "--config", config, "--json")
            assert json.loads(done.stdout)["by_agent"] is True
            await server.close()

    asyncio.run(scenario())


def facts(**more: object) -> TrustFacts:
    roles = {
        "root": RoleFacts(1, datetime(2027, 1, 1, tzinfo=UTC)),
        "timestamp": RoleFacts(2, datetime(2027, 1, 2, tzinfo=UTC)),
    }
    return TrustFacts(**({"roles": roles, "bundles": ["a@1.0.0"], "revoked": []} | more))  # type: ignore[arg-type]


def test_what_has_changed_is_said() -> None:
    before = facts()
    assert lines(before, before, replaces=False, by_agent=True)[-1] == "trust is up to date; nothing has changed"
    after = facts(
        roles={**before.roles, "timestamp": RoleFacts(3, datetime(2027, 1, 9, tzinfo=UTC))},
        bundles=["b@1.0.0"],
        revoked=["a@1.0.0"],
        affected=[Affected("a@1.0.0", active=False)],
    )
    said = lines(before, after, replaces=True, by_agent=True)
    assert said == [
        "root       version 1          expires 2027-01-01 00:00",
        "timestamp  version 2 → 3      expires 2027-01-09 00:00  new",
        "listed     b@1.0.0",
        "revoked    a@1.0.0",
        "revoked    a@1.0.0 is on this device and will not become active",
        "trust is up to date",
    ]
    assert changes(before, after)["removed"] == ["a@1.0.0"]
