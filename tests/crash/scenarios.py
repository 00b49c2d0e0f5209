"""What the agent is doing when the power goes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent.install.desired import Install, OperatorOrder, rollback_target
from agent.install.process.messages import RefreshTrustJob
from agent.install.reconciler import Reconciler
from agent.state.installation import InstallationState
from contract.bundle.adapter_slots import find_slots
from contract.bundle.chunks import digest_chunks
from contract.bundle.manifest import (
    MANIFEST_FILE,
    Base,
    FileEntry,
    License,
    encode_manifest,
    manifest_digest,
    parse_manifest,
)
from contract.onnx.wire import read_graph_file
from contract.system.durable import Disk
from contract.trust.store import TrustStore
from tests.agent.install.market import Device, Market
from tests.agent.install.stage import desired
from tests.crash.world import SETTINGS, Deed, Life


@dataclass(frozen=True)
class Scenario:
    """``before``: versions installed in this order first; ``deed`` is what is interrupted; ``after``: what must be
    active in the end, ``may_be``: what may be active right after the restart; ``epoch`` the least there may be then;
    ``wanted``: what is fetched. ``provisioned``: the device trusts the repository already; ``early``: what is before
    came from the repository as it was then. ``adapter``: what is beside it in the end.
    """

    name: str
    before: tuple[str, ...]
    deed: Deed
    after: str
    may_be: frozenset[str | None]
    epoch: int
    wanted: str
    provisioned: bool = True
    early: bool = False
    adapter: str | None = None


def follow(version: str) -> Deed:
    """A desired document arrives."""

    async def deed(life: Life, reconciler: Reconciler, state: InstallationState) -> None:
        reconciler.set_desired(desired(version))
        await life.until_active(version)

    return deed


async def go_back(life: Life, reconciler: Reconciler, state: InstallationState) -> None:
    """The operator rolls back; after a restart, only if that has not happened yet."""
    active = state.bundle(state.snapshot().active)
    if active is not None and active.version == "1.1.0":
        outcome = await reconciler.execute(rollback_target(state, SETTINGS, allow_epoch=False))
        assert outcome.kind == "active", outcome
    await life.until_active("1.0.0")


async def fail(life: Life, reconciler: Reconciler, state: InstallationState) -> None:
    """A candidate that drifts is rolled back."""
    life.workers.drift = 9.0
    reconciler.set_desired(desired("1.1.0"))
    await life.until(lambda last: last.phase == "IDLE" and last.error is not None)


async def order(life: Life, reconciler: Reconciler, state: InstallationState) -> None:
    """The operator installs on a device that trusts nobody yet, and brings the root along."""
    root = str(Path(life.source) / "metadata" / "1.root.json")
    target = Install("tiny", "1.0.0", SETTINGS, sources=(life.source,), origin=OperatorOrder(root))
    outcome = await reconciler.execute(target)
    assert outcome.kind == "active", outcome
    await life.until_active("1.0.0")


async def refresh_trust(life: Life, reconciler: Reconciler, state: InstallationState) -> None:
    """A newer root with other keys, and newer metadata that revokes the previous bundle."""
    await life.install(RefreshTrustJob(str(life.directory.root), [life.source]), lambda line: None)
    assert state.warning_store.revoked(), "the refresh was seen"
    await life.until_active("1.1.0")


async def follow_adapter(life: Life, reconciler: Reconciler, state: InstallationState) -> None:
    """A desired document names an adapter for what is active."""
    reconciler.set_desired(b'{"revision": "adapter", "bundle": {"name": "extra", "version": "1.0.0"}}')
    await life.until(lambda last: last.phase == "IDLE" and bool(last.adapters))


ADAPTER = "adapter"

SCENARIOS = (
    Scenario("first install", (), follow("1.0.0"), "1.0.0", frozenset({None, "1.0.0"}), 0, "1.0.0"),
    Scenario("update", ("1.0.0",), follow("1.1.0"), "1.1.0", frozenset({"1.0.0", "1.1.0"}), 1, "1.1.0"),
    Scenario("failed update", ("1.0.0",), fail, "1.0.0", frozenset({"1.0.0"}), 1, "1.1.0"),
    Scenario("rollback", ("1.0.0", "1.1.0"), go_back, "1.0.0", frozenset({"1.0.0", "1.1.0"}), 1, "1.0.0"),
    Scenario(
        "garbage collection", ("1.0.0", "1.1.0"), follow("1.2.0"), "1.2.0", frozenset({"1.1.0", "1.2.0"}), 1, "1.2.0"
    ),
    Scenario(
        "first install by hand", (), order, "1.0.0", frozenset({None, "1.0.0"}), 0, "1.0.0", provisioned=False
    ),
    Scenario(
        "trust refresh", ("1.0.0", "1.1.0"), refresh_trust, "1.1.0", frozenset({"1.1.0"}), 1, "1.1.0", early=True
    ),
    Scenario(
        "adapter install", ("1.0.0",), follow_adapter, "1.0.0", frozenset({"1.0.0"}), 1, ADAPTER,
        adapter="extra@1.0.0",
    ),
)  # fmt: skip

EPOCHS = {"1.0.0": 1, "1.1.0": 1, "1.2.0": 2}
"""The versions, and their security epochs: back to 1.0.0 is allowed, back from 1.2.0 is not."""

EARLY = "early"


def publish(root: Path, base: Path) -> Market:
    """Three versions that share most of their chunks; later the keys are rotated and the first one is revoked.

    Beside it lies the repository as it was before that.
    """
    market = Market(root, base)
    slotted = with_slots(base / "model.onnx", root / "slotted.onnx")
    blob = os.urandom(5 << 20)
    for number, (version, epoch) in enumerate(EPOCHS.items()):
        changed = bytearray(blob)
        changed[number << 20 : (number + 1) << 20] = os.urandom(1 << 20)
        files = {"adapter/weights.bin": bytes(changed), "README.md": version.encode(), "model.onnx": slotted}
        market.publish(version, files, security_epoch=epoch)
    publish_adapter(market, root / "built-1.0.0")
    shutil.copytree(market.location, root / EARLY)
    market.repository.rotate("timestamp")
    market.repository.revoke("tiny@1.0.0")
    return market


def with_slots(graph: Path, scratch: Path) -> bytes:
    """The graph with places for adapters."""
    from packager.graph.slots import add_slots

    shutil.copyfile(graph, scratch)
    add_slots(scratch)
    return scratch.read_bytes()


WRITE = """
import sys, numpy, onnxruntime
name, width_in, width_out, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
shapes = {f"{name}.lora_A.weight": (width_in, 8), f"{name}.lora_B.weight": (8, width_out)}
made = onnxruntime.AdapterFormat()
made.set_adapter_version(1)
made.set_model_version(1)
made.set_parameters({each: onnxruntime.OrtValue.ortvalue_from_numpy(numpy.ones(shape, numpy.float32))
                     for each, shape in shapes.items()})
made.export_adapter(out)
"""
"""In a process of its own: what cuts the power forks, and the runtime has threads."""


def publish_adapter(market: Market, base: Path) -> None:
    """``extra@1.0.0``, an adapter for the bundle ``base``."""
    stored = (base / MANIFEST_FILE).read_bytes()
    manifest = parse_manifest(stored)
    slot = next(iter(find_slots(read_graph_file(base / "model.onnx")).values()))
    target = market.root / f"built-{ADAPTER}"
    target.mkdir()
    file = target / "extra.onnx_adapter"
    command = [sys.executable, "-c", WRITE, slot.name, str(slot.width_in), str(slot.width_out), str(file)]
    subprocess.run(command, check=True, timeout=120)
    sha256, chunks = digest_chunks(file)
    manifest = msgspec.structs.replace(
        manifest,
        name="extra",
        files=[FileEntry(file.name, file.stat().st_size, sha256, "adapter", chunks)],
        license=License("unknown"),
        base=Base(manifest.name, manifest.version, manifest_digest(stored)),
    )
    (target / MANIFEST_FILE).write_bytes(encode_manifest(manifest))
    assert market.repository.publish(target).published


def source_of(scenario: Scenario, market: Market) -> str:
    """Where the deed finds its bundles; only a refresh of trust looks at what was revoked."""
    return market.location if scenario.early else str(market.root / EARLY)


def prepare(scenario: Scenario, market: Market, root: Path, live: Callable[[Device, Deed], None]) -> Device:
    """A device as it is before the interrupted deed."""
    device = Device(root)
    if scenario.provisioned:
        TrustStore(device.directory.trust, Disk()).provision(market.root_json.read_bytes(), device.state())
    for version in scenario.before:
        live(device, follow(version))
    return device
