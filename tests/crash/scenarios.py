"""What the agent is doing when the power goes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.install.coordinator import Coordinator
from agent.install.wishes import rollback_wish
from agent.state.installation import InstallationState
from contract.durable import Disk
from contract.trust.store import TrustStore
from tests.agent.install.market import Device, Market
from tests.agent.install.stage import desired
from tests.crash.world import SETTINGS, Deed, Life


@dataclass(frozen=True)
class Scenario:
    """``before``: versions installed in this order first; ``deed`` is what is interrupted; ``after``: what must be
    active in the end, ``may_be``: what may be active right after the restart; ``epoch`` the least there may be then;
    ``wanted``: what is fetched.
    """

    name: str
    before: tuple[str, ...]
    deed: Deed
    after: str
    may_be: frozenset[str | None]
    epoch: int
    wanted: str


def follow(version: str) -> Deed:
    """A desired document arrives."""

    async def deed(life: Life, coordinator: Coordinator, state: InstallationState) -> None:
        coordinator.desire(desired(version))
        await life.until_active(version)

    return deed


async def go_back(life: Life, coordinator: Coordinator, state: InstallationState) -> None:
    """The operator rolls back; after a restart, only if that has not happened yet."""
    active = state.bundle(state.snapshot().active)
    if active is not None and active.version == "1.1.0":
        outcome = await coordinator.carry_out(rollback_wish(state, SETTINGS, allow_epoch=False))
        assert outcome.kind == "active", outcome
    await life.until_active("1.0.0")


async def fail(life: Life, coordinator: Coordinator, state: InstallationState) -> None:
    """A candidate that drifts is rolled back."""
    life.workers.drift = 9.0
    coordinator.desire(desired("1.1.0"))
    await life.until(lambda last: last.phase == "IDLE" and last.error is not None)


SCENARIOS = (
    Scenario("first install", (), follow("1.0.0"), "1.0.0", frozenset({None, "1.0.0"}), 0, "1.0.0"),
    Scenario("update", ("1.0.0",), follow("1.1.0"), "1.1.0", frozenset({"1.0.0", "1.1.0"}), 1, "1.1.0"),
    Scenario("failed update", ("1.0.0",), fail, "1.0.0", frozenset({"1.0.0"}), 1, "1.1.0"),
    Scenario("rollback", ("1.0.0", "1.1.0"), go_back, "1.0.0", frozenset({"1.0.0", "1.1.0"}), 1, "1.0.0"),
    Scenario(
        "garbage collection", ("1.0.0", "1.1.0"), follow("1.2.0"), "1.2.0", frozenset({"1.1.0", "1.2.0"}), 1, "1.2.0"
    ),
)

VERSIONS = ("1.0.0", "1.1.0", "1.2.0")


def publish(root: Path, base: Path) -> Market:
    """Three versions that share most of their chunks; the epoch does not rise, so that going back is allowed."""
    market = Market(root, base)
    blob = os.urandom(5 << 20)
    for number, version in enumerate(VERSIONS):
        changed = bytearray(blob)
        changed[number << 20 : (number + 1) << 20] = os.urandom(1 << 20)
        files = {"adapter/weights.bin": bytes(changed), "README.md": version.encode()}
        market.publish(version, files, security_epoch=1)
    return market


def prepare(scenario: Scenario, market: Market, root: Path, live: Callable[[Device, Deed], None]) -> Device:
    """A device as it is before the interrupted deed."""
    device = Device(root)
    TrustStore(device.directory.trust, Disk()).provision(market.root_json.read_bytes(), device.state())
    for version in scenario.before:
        live(device, follow(version))
    return device
