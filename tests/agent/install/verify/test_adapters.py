"""Adapter bundles on a device: real repository, trust, disk, state and workers; only serving is a stand-in."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from agent.commands.context import CliContext
from agent.commands.verify import faults_of
from agent.install.prepack import DiskLimits, WeightPrepacker
from agent.install.reconciler import Reconciler
from agent.install.settings import InstallSettings
from agent.install.status import bundle_statuses
from agent.worker.settings import WorkerSettings
from agent.worker.supervisor import WorkerProcess
from contract.bundle.manifest import MANIFEST_FILE, Base, Manifest, encode_manifest, parse_manifest
from contract.mqtt.reports import Reported
from contract.reasons import Reason
from contract.system.durable import Disk
from contract.trust.store import TrustStore
from tests.agent.install.market import Changes, Device, Market, make_variant
from tests.agent.install.stage import Stage

SETTINGS = InstallSettings(probation_seconds=0, retry_first_seconds=0.01, retry_longest_seconds=0.02, swap="drain")
FILE = "adapter.onnx_adapter"


class Shop:
    """A repository with the base and its adapters, and a device that follows it."""

    def __init__(self, root: Path, base: Path, adapters: dict[str, Path]) -> None:
        self.market = Market(root / "market", base)
        self.adapters = adapters
        self.device = Device(root / "device")
        self.market.repository.publish(base)
        for place in adapters.values():
            self.market.repository.publish(place)
        self.stage = Stage(self.device.directory, {"main": self.market.location}, SETTINGS)
        self.stage.workers = WorkerProcess.start  # type: ignore[assignment]
        store = TrustStore(self.device.directory.trust, Disk())
        store.provision(self.market.root_json.read_bytes(), self.device.state())

    def publish(self, name: str, version: str, files: Changes | None = None, **fields: object) -> Manifest:
        """A variant of an adapter."""
        target = self.market.root / f"{name}-{version}"
        manifest = msgspec.structs.replace(make_variant(self.adapters[name], target, version, files), **fields)
        (target / MANIFEST_FILE).write_bytes(encode_manifest(manifest))
        assert self.market.repository.publish(target).published
        return manifest

    @contextlib.asynccontextmanager
    async def agent(self) -> AsyncIterator[Reconciler]:
        async with self.stage.agent() as reconciler:
            yield reconciler

    async def want(self, reconciler: Reconciler, reference: str) -> Reported:
        """Ask for a bundle and wait for how it ends."""
        name, _, version = reference.partition("@")
        revision = f"r-{reference}-{len(self.stage.reported)}"
        document = {"revision": revision, "bundle": {"name": name, "version": version}}
        reconciler.set_desired(msgspec.json.encode(document))
        return await self.stage.until(ended(revision, reference))

    @property
    def served(self) -> list[str]:
        bundle = self.stage.serving.bundle
        assert bundle is not None
        return [bundle.manifest.reference, *(each.manifest.reference for each in bundle.adapters)]

    @property
    def places(self) -> dict[str, str]:
        state = self.device.state()
        return {f"{line.name}@{line.version}": line.state for line in bundle_statuses(state, self.device.directory)}


def ended(revision: str, reference: str) -> Callable[[Reported], bool]:
    def holds(reported: Reported) -> bool:
        there = [reported.active, *(reported.adapters or [])]
        done = any(each is not None and f"{each.name}@{each.version}" == reference for each in there)
        return reported.revision == revision and reported.phase == "IDLE" and (done or reported.error is not None)

    return holds


@pytest.fixture
def shop(tmp_path: Path, tiny_slots_bundle: Path, tiny_adapter_bundles: dict[str, Path]) -> Shop:
    return Shop(tmp_path, tiny_slots_bundle, tiny_adapter_bundles)


BASE = "tiny-slots@1.0.0"


async def test_adapters_join_their_base_one_after_the_other_and_come_back_after_a_restart(shop: Shop) -> None:
    async with shop.agent() as reconciler:
        await shop.want(reconciler, BASE)
        reported = await shop.want(reconciler, "one@1.0.0")
        assert reported.error is None
        assert reported.active is not None and reported.active.name == "tiny-slots"
        assert reported.previous is None
        assert "FETCH" in shop.stage.phases and "PROBATION" in shop.stage.phases
        assert shop.served == [BASE, "one@1.0.0"]
        await shop.want(reconciler, "two@1.0.0")
        assert shop.served == [BASE, "one@1.0.0", "two@1.0.0"]
        swaps = len(shop.stage.serving.swaps)
        await shop.want(reconciler, "one@1.0.0")
        assert len(shop.stage.serving.swaps) == swaps
    assert shop.places == {BASE: "active", "one@1.0.0": "adapter", "two@1.0.0": "adapter"}
    place = CliContext(shop.device.directory, SETTINGS, WorkerSettings())
    assert [faults_of(place, bundle) for bundle in shop.device.state().bundles()] == [[], [], []]
    shop.stage.restart()
    shop.stage.workers = WorkerProcess.start  # type: ignore[assignment]
    async with shop.agent():
        assert shop.served == [BASE, "one@1.0.0", "two@1.0.0"]


async def test_prepacked_weights_go_when_an_adapter_has_another_engine_serve(shop: Shop) -> None:
    shop.stage.prepacker = WeightPrepacker(shop.device.directory, Disk(), limits=DiskLimits(spare_bytes=0))

    def made() -> list[Path]:
        return [path for path in shop.device.directory.derived.rglob("*") if path.is_file()]

    async with shop.agent() as reconciler:
        await shop.want(reconciler, BASE)
        assert made()
        await shop.want(reconciler, "one@1.0.0")
        assert shop.served == [BASE, "one@1.0.0"]
        assert not made()
    shop.stage.restart()
    shop.stage.workers = WorkerProcess.start  # type: ignore[assignment]
    async with shop.agent():
        assert shop.served == [BASE, "one@1.0.0"]
        assert not made()


async def test_without_its_base_it_is_refused_before_a_byte_is_fetched(shop: Shop) -> None:
    async with shop.agent() as reconciler:
        reported = await shop.want(reconciler, "one@1.0.0")
        assert reported.error is not None and reported.error.reason == Reason.BASE_MISSING
        assert "tiny-slots@1.0.0" in reported.error.message
        assert "RESERVE" not in shop.stage.phases
        await shop.want(reconciler, BASE)
        shop.publish("two", "3.0.0", base=Base("tiny-slots", "1.0.0", "0" * 64))
        reported = await shop.want(reconciler, "two@3.0.0")
        assert reported.error is not None and reported.error.reason == Reason.BASE_MISSING
        assert shop.served == [BASE]
    assert shop.device.names(lambda directory: directory.inbox) == []


async def test_a_newer_version_takes_the_place_of_the_older_one(shop: Shop) -> None:
    async with shop.agent() as reconciler:
        for reference in (BASE, "one@1.0.0", "two@1.0.0"):
            await shop.want(reconciler, reference)
        shop.publish("one", "1.1.0")
        await shop.want(reconciler, "one@1.1.0")
        assert sorted(shop.served) == ["one@1.1.0", BASE, "two@1.0.0"]
    assert shop.places == {BASE: "active", "one@1.1.0": "adapter", "two@1.0.0": "adapter"}


async def test_one_that_drifts_is_quarantined_and_what_was_there_serves_on(shop: Shop) -> None:
    manifest = parse_manifest((shop.adapters["one"] / MANIFEST_FILE).read_bytes())
    drifted = [msgspec.structs.replace(each, mean_nll=each.mean_nll + 3) for each in manifest.canary]
    shop.publish("one", "1.1.0", canary=drifted)
    async with shop.agent() as reconciler:
        await shop.want(reconciler, BASE)
        await shop.want(reconciler, "one@1.0.0")
        reported = await shop.want(reconciler, "one@1.1.0")
        assert reported.error is not None and reported.error.reason == Reason.CANARY_DRIFT
        assert shop.served == [BASE, "one@1.0.0"]
    assert shop.places["one@1.0.0"] == "adapter"
    assert shop.places["one@1.1.0"] == "quarantined"


async def test_a_file_that_does_not_fit_the_base_never_reaches_the_runtime(shop: Shop) -> None:
    data = bytearray((shop.adapters["one"] / FILE).read_bytes())
    at = data.find(b"model.layers.0.attn.o_proj.lora_A.weight")
    data[at : at + 5] = b"xodel"
    shop.publish("one", "1.1.0", {FILE: bytes(data)})
    async with shop.agent() as reconciler:
        await shop.want(reconciler, BASE)
        reported = await shop.want(reconciler, "one@1.1.0")
        assert reported.error is not None and reported.error.reason == Reason.ADAPTER_INVALID
        assert "CANARY" not in shop.stage.phases[shop.stage.phases.index("COMMIT") :]
    lines = bundle_statuses(shop.device.state(), shop.device.directory)
    assert [line.name for line in lines if line.present] == ["tiny-slots"]


async def test_with_another_base_its_adapters_rest_and_go_when_the_base_goes(shop: Shop) -> None:
    for version in ("1.1.0", "1.2.0"):
        shop.market.publish(version)
    async with shop.agent() as reconciler:
        await shop.want(reconciler, BASE)
        await shop.want(reconciler, "one@1.0.0")
        await shop.want(reconciler, "tiny-slots@1.1.0")
        assert shop.served == ["tiny-slots@1.1.0"]
        assert shop.places == {"tiny-slots@1.1.0": "active", BASE: "previous", "one@1.0.0": "kept"}
        await shop.want(reconciler, BASE)
        assert shop.served == [BASE, "one@1.0.0"]
        await shop.want(reconciler, "tiny-slots@1.1.0")
        await shop.want(reconciler, "tiny-slots@1.2.0")
        assert shop.served == ["tiny-slots@1.2.0"]
    assert shop.places == {"tiny-slots@1.2.0": "active", "tiny-slots@1.1.0": "previous"}


async def test_a_revoked_one_is_taken_from_its_base_which_serves_on(shop: Shop) -> None:
    async with shop.agent() as reconciler:
        for reference in (BASE, "one@1.0.0", "two@1.0.0"):
            await shop.want(reconciler, reference)
    shop.market.repository.revoke("one@1.0.0")
    shop.stage.restart()
    shop.stage.workers = WorkerProcess.start  # type: ignore[assignment]
    shop.stage.settings = msgspec.structs.replace(SETTINGS, trust_refresh_seconds=0.05, on_revoked="replace")
    async with shop.agent():
        reported = await shop.stage.until(
            lambda reported: reported.error is not None and reported.error.reason == Reason.REVOKED
        )
        assert "one@1.0.0" in (reported.error.message if reported.error else "")
        assert shop.served == [BASE, "two@1.0.0"]
    assert shop.places == {BASE: "active", "two@1.0.0": "adapter"}
