"""Prepacked weights: made by a real runtime in a real process, verified, made anew, left out, used."""

from __future__ import annotations

import asyncio
import itertools
import stat
from pathlib import Path

import msgspec
import pytest

from agent.commands.context import CliContext
from agent.commands.verify import faults_of
from agent.engine.batched import verdict
from agent.engine.batched.graph import read_decoder
from agent.engine.batched.runner import Runner
from agent.engine.batched.verdict import FILE as VERDICT_FILE
from agent.engine.config import read_config
from agent.engine.engine_selection import open_engine
from agent.engine.interface import FinishEvent, Generation, Independence, TokenEvent
from agent.host.memory import mapped_bytes
from agent.host.process_effort import Effort
from agent.install.gc import collect_bundles
from agent.install.ports import SealedBundle
from agent.install.prepack import (
    MEMORY_GROWTH,
    RECORD_FILE,
    ROUNDING,
    DiskLimits,
    WeightPrepacker,
    _hear,
    cpu_id,
    intact_weights,
    is_intact,
    read_footprint,
)
from agent.install.settings import InstallSettings
from agent.worker.settings import WorkerSettings
from agent.worker.supervisor import WorkerProcess
from contract.bundle.device_plan import MOST_SHARE, WORKER_BYTES, prepacked_allowed
from contract.errors import EngineFailed
from contract.reasons import Reason
from contract.system.durable import Disk
from tests.agent.install.market import Device, Market
from tests.neighbours import LITTLE, MUCH, make_neighbourly
from tests.proofs import pretend_verified


def install(market: Market, device: Device) -> SealedBundle:
    market.publish("1.0.0")
    sealed = device.install(market.job(device.directory.root, "1.0.0"))
    assert sealed is not None
    return sealed


def tree(place: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_ino, path.read_bytes()) for path in place.iterdir()}


async def test_they_are_made_once_sealed_and_found_again(market: Market, device: Device) -> None:
    bundle = install(market, device)
    prepack = WeightPrepacker(device.directory, Disk(), limits=DiskLimits(spare_bytes=0))
    place = await prepack(bundle)
    assert place == device.directory.derived_of(bundle.digest) / cpu_id()
    assert is_intact(place)
    for path in [place, *place.iterdir()]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o555 if path.is_dir() else 0o444)
    before = tree(place)
    assert await prepack(bundle) == place
    assert tree(place) == before


def test_a_processor_is_known_by_all_its_cores() -> None:
    """Kernels start on whichever core the firmware chose: a small one, or a big one."""
    small, big = "CPU part\t: 0xd03\nFeatures\t: asimd crc32\n", "CPU part\t: 0xd0b\nFeatures\t: asimddp asimd\n"
    board = cpu_id(small * 4 + big * 2)
    assert cpu_id(big * 2 + small * 4) == board
    assert cpu_id(small + big) == board
    assert len({board, cpu_id(small), cpu_id(big), cpu_id(big.replace("0xd0b", "0xd0d") + small)}) == 4
    assert cpu_id("CPU part\t: 0xd03\nFeatures\t: crc32 asimd\n") == cpu_id(small)


@pytest.mark.parametrize("how", ["changed", "cut", "extra", "gone", "no record"])
async def test_what_was_tampered_with_is_not_used_but_made_anew(market: Market, device: Device, how: str) -> None:
    bundle = install(market, device)
    prepack = WeightPrepacker(device.directory, Disk(), limits=DiskLimits(spare_bytes=0))
    place = await prepack(bundle)
    assert place is not None
    sound = {name: data for name, (_, data) in tree(place).items()}
    place.chmod(0o755)
    weights = place / "model.onnx.data"
    weights.chmod(0o644)
    match how:
        case "changed":
            with weights.open("r+b") as file:
                file.seek(1000)
                file.write(b"rot")
        case "cut":
            weights.write_bytes(weights.read_bytes()[:-1])
        case "extra":
            (place / "custom.so").write_bytes(b"\x7fELF")
        case "gone":
            weights.unlink()
        case "no record":
            (place / RECORD_FILE).unlink()
    assert not is_intact(place)
    assert await prepack(bundle) == place
    assert {name: data for name, (_, data) in tree(place).items()} == sound


async def test_another_processor_or_runtime_gets_its_own_and_the_old_ones_go(market: Market, device: Device) -> None:
    bundle = install(market, device)
    old = await WeightPrepacker(device.directory, Disk(), identity="old", limits=DiskLimits(spare_bytes=0))(bundle)
    new = await WeightPrepacker(device.directory, Disk(), identity="new", limits=DiskLimits(spare_bytes=0))(bundle)
    assert old is not None
    assert new is not None
    assert [path.name for path in new.parent.iterdir()] == ["new"]


async def test_without_room_there_are_none_but_the_verdict_is_kept(market: Market, device: Device) -> None:
    bundle = install(market, device)
    for few in ({"spare_bytes": 1 << 60}, {"spare_bytes": 0, "quota_bytes": 1}, {"spare_bytes": 0, "allowed_bytes": 0}):
        place = await WeightPrepacker(device.directory, Disk(), limits=DiskLimits(**few))(bundle)
        assert place is not None
        assert sorted(tree(place)) == [RECORD_FILE, VERDICT_FILE]
    before = tree(place)
    assert await WeightPrepacker(device.directory, Disk(), limits=DiskLimits(spare_bytes=1 << 60))(bundle) == place
    assert tree(place) == before, "asked once, not at every start"
    assert await WeightPrepacker(device.directory, Disk(), limits=DiskLimits(spare_bytes=0))(bundle) == place
    assert "model.onnx.data" in tree(place), "there is room now"


async def test_their_size_is_known_before_they_are_made(market: Market, device: Device) -> None:
    """And with the originals in them they are far more than the bundle, so that large ones are made on demand alone."""
    bundle = install(market, device)
    footprint = read_footprint(bundle)
    place = await WeightPrepacker(
        device.directory, Disk(), limits=DiskLimits(spare_bytes=0, allowed_bytes=footprint.prepacked)
    )(bundle)
    assert place is not None
    size = (place / "model.onnx.data").stat().st_size
    assert 0.95 * footprint.prepacked < size < footprint.prepacked * (1 + 1 / ROUNDING)
    less = WeightPrepacker(
        device.directory, Disk(), limits=DiskLimits(spare_bytes=0, allowed_bytes=footprint.prepacked - 1)
    )
    assert prepacked_allowed(bundle.manifest.total_bytes, 0) < footprint.prepacked
    Disk().remove(place.parent)
    assert sorted(tree(await less(bundle) or place)) == [RECORD_FILE, VERDICT_FILE]


async def test_no_load_after_the_first_measures_again(
    market: Market, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with the weights, not without; but where it is damaged, or for another number of threads."""
    bundle = install(market, device)
    worker = WorkerSettings(threads=1)
    place = await WeightPrepacker(device.directory, Disk(), worker, limits=DiskLimits(spare_bytes=0))(bundle)
    assert place is not None
    measured, tried = [], []
    real, probe = verdict.measure, Runner._probe
    monkeypatch.setattr(
        "agent.engine.batched.opening.measure", lambda *given: (measured.append(given[-1]), real(*given))[1]
    )
    monkeypatch.setattr(Runner, "_probe", lambda self: (tried.append(self), probe(self))[1])

    def load(threads: int = 1) -> Independence:
        engine = open_engine(bundle.directory, threads=threads, derived_dir=place, max_bytes=64 << 20)
        engine.release()
        return engine.facts.independence

    known = load()
    assert (measured, tried) == ([], []), "nothing is run at all"
    assert load(threads=2) == known
    assert measured == [2]
    other = await WeightPrepacker(
        device.directory, Disk(), WorkerSettings(threads=2), limits=DiskLimits(spare_bytes=0)
    )(bundle)
    assert other == place
    assert load(threads=2) == known
    assert measured == [2]
    place.chmod(0o755)
    (place / VERDICT_FILE).chmod(0o644)
    for damaged in (b"", b"{}", (place / VERDICT_FILE).read_bytes().replace(b'"wide":', b'"wide":1')):
        (place / VERDICT_FILE).write_bytes(damaged)
        assert load(threads=2) == known
    assert measured == [2, 2, 2, 2]
    assert not is_intact(place)


async def test_without_memory_there_are_none_for_now(
    market: Market, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = install(market, device)
    weights = read_footprint(bundle).weights
    prepack = WeightPrepacker(device.directory, Disk(), limits=DiskLimits(spare_bytes=0))
    monkeypatch.setattr("agent.install.prepack.available_memory", lambda: WORKER_BYTES)
    assert await prepack(bundle) is None
    assert not device.directory.derived_of(bundle.digest).exists()
    monkeypatch.setattr("agent.install.prepack.available_memory", lambda: WORKER_BYTES + MEMORY_GROWTH * weights - 1)
    place = await prepack(bundle)
    assert place is not None
    assert sorted(tree(place)) == [RECORD_FILE, VERDICT_FILE]
    monkeypatch.setattr("agent.install.prepack.available_memory", lambda: WORKER_BYTES + MEMORY_GROWTH * weights)
    assert await prepack(bundle) == place
    assert "model.onnx.data" in tree(place)


async def test_what_was_never_finished_takes_no_room_even_where_there_is_none(market: Market, device: Device) -> None:
    """The power went while they were made, and what they take is what is missing to make them."""
    bundle = install(market, device)
    making = device.directory.derived_of(bundle.digest) / f".{cpu_id()}.making"
    making.mkdir(parents=True)
    (making / "model.onnx.data").write_bytes(b"half")
    assert await WeightPrepacker(device.directory, Disk(), limits=DiskLimits(spare_bytes=1 << 60))(bundle) is not None
    assert not making.exists()


async def test_mapped_weights_are_no_room_for_keys_and_values(
    market: Market, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel takes them for file cache, and has not even read them when the room is planned."""
    bundle = install(market, device)
    place = await WeightPrepacker(device.directory, Disk(), limits=DiskLimits(spare_bytes=0))(bundle)
    assert place is not None
    # As much as one slot needs, and the weights twice: once as available, once as taken.
    decoder = read_decoder(bundle.directory, read_config(bundle.directory))
    one_slot = int(decoder.kv_bytes_per_token * decoder.context_length / MOST_SHARE) + 100
    mapped = 0

    def available() -> int:
        nonlocal mapped
        mapped = mapped_bytes([place])
        return mapped_bytes([place, bundle.directory]) + one_slot

    monkeypatch.setattr("agent.engine.memory.available_memory", available)
    for leaving, slots in ((0, 1), (one_slot, 2)):
        engine = open_engine(
            bundle.directory, engine="batched", threads=1, derived_dir=place, reclaimable_bytes=leaving
        )
        assert (engine.facts.slots, engine.facts.context_length) == (slots, decoder.context_length)
        engine.release()
    assert 0 < mapped <= (place / "model.onnx.data").stat().st_size


@pytest.mark.parametrize("file", ["model.onnx", "model.onnx.data"])
async def test_a_model_that_cannot_be_prepacked_leaves_nothing(market: Market, device: Device, file: str) -> None:
    bundle = install(market, device)
    bundle.directory.chmod(0o755)
    victim = bundle.directory / file
    victim.chmod(0o644)
    victim.write_bytes(b"\x08\x07junk")
    assert await WeightPrepacker(device.directory, Disk(), limits=DiskLimits(spare_bytes=0))(bundle) is None
    assert files_below(device.directory.derived) == []


def files_below(place: Path) -> list[str]:
    return sorted(path.name for path in place.rglob("*") if path.is_file())


def with_graph(bundle: SealedBundle, place: Path, share: float) -> SealedBundle:
    """The bundle with a graph that batches only as far as ``share`` lets it."""
    neighbourly = make_neighbourly(bundle.directory, place, share)
    return SealedBundle(pretend_verified(neighbourly, bundle.digest, bundle.manifest))


async def test_where_another_engine_is_asked_for_none_is_made_and_what_was_made_goes(
    market: Market, device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = install(market, device)
    genai = WeightPrepacker(device.directory, Disk(), WorkerSettings(engine="genai"), limits=DiskLimits(spare_bytes=0))
    assert await genai(bundle) is None
    assert files_below(device.directory.derived) == []
    assert await WeightPrepacker(device.directory, Disk(), limits=DiskLimits(spare_bytes=0))(bundle) is not None
    assert files_below(device.directory.derived) != []
    with caplog.at_level("INFO"):
        assert await genai(bundle) is None
    assert files_below(device.directory.derived) == []
    assert "are removed: the genai engine was asked for" in caplog.text


async def test_with_adapters_there_are_none_and_what_was_made_goes(market: Market, device: Device) -> None:
    bundle = install(market, device)
    prepack = WeightPrepacker(device.directory, Disk(), limits=DiskLimits(spare_bytes=0))
    assert await prepack(bundle) is not None
    assert await prepack(msgspec.structs.replace(bundle, adapters=(bundle,))) is None
    assert files_below(device.directory.derived) == []


async def test_where_the_self_test_declines_nothing_is_written_and_that_is_remembered(
    market: Market, device: Device, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = with_graph(install(market, device), tmp_path / "odd", MUCH)
    prepack = WeightPrepacker(device.directory, Disk(), limits=DiskLimits(spare_bytes=0))
    with caplog.at_level("INFO"):
        assert await prepack(bundle) is None
    assert "none would be used: requests in one batch change each other here" in caplog.text
    assert files_below(device.directory.derived) == [RECORD_FILE]
    place = device.directory.derived_of(bundle.digest) / cpu_id()
    before = tree(place)
    assert await prepack(bundle) is None
    assert tree(place) == before, "asked once, not at every start"
    assert is_intact(place), "and no fault for verify to find"
    assert intact_weights(place) is None, "but nothing to map"
    engine = open_engine(bundle.directory, threads=1, derived_dir=place)
    assert engine.facts.engine == "genai"
    engine.release()


async def test_a_mode_in_which_no_worker_maps_them_makes_them_go(
    market: Market, device: Device, tmp_path: Path
) -> None:
    """Rows that round by the batch's size: within the bound as it comes, and not to be had bit for bit."""
    bundle = with_graph(install(market, device), tmp_path / "odd", LITTLE)
    strict = WeightPrepacker(
        device.directory, Disk(), WorkerSettings(reproducible=True), limits=DiskLimits(spare_bytes=0)
    )
    assert await WeightPrepacker(device.directory, Disk(), limits=DiskLimits(spare_bytes=0))(bundle) is not None
    assert "model.onnx.data" in files_below(device.directory.derived)
    assert await strict(bundle) is None
    assert files_below(device.directory.derived) == [RECORD_FILE]
    assert await WeightPrepacker(device.directory, Disk(), limits=DiskLimits(spare_bytes=0))(bundle) is not None
    assert "model.onnx.data" in files_below(device.directory.derived)


async def test_they_go_with_their_bundle(market: Market, device: Device) -> None:
    bundle = install(market, device)
    await WeightPrepacker(device.directory, Disk(), limits=DiskLimits(spare_bytes=0))(bundle)
    removed = collect_bundles(device.state(), device.directory, Disk(), keep_previous=0, quota_bytes=0)
    assert removed == [bundle.digest]
    assert not device.directory.derived_of(bundle.digest).exists()


def answer(bundle: Path, derived: Path | None) -> tuple[str, str]:
    engine = open_engine(bundle, engine="batched", threads=1, derived_dir=derived)
    engine.admit(Generation(1, "anna", prompt="The capital of France", max_tokens=12, temperature=0.0))
    text = ""
    while engine.busy:
        for event in engine.step():
            if isinstance(event, TokenEvent | FinishEvent):
                text += event.text
    engine.release()
    return text, engine.facts.engine


async def test_the_answers_are_the_same(market: Market, device: Device) -> None:
    bundle = install(market, device)
    derived = await WeightPrepacker(device.directory, Disk(), limits=DiskLimits(spare_bytes=0))(bundle)
    assert derived is not None
    assert answer(bundle.directory, derived) == answer(bundle.directory, None)


def anonymous_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


@pytest.mark.timeout(600)
async def test_a_worker_maps_them_instead_of_copying_the_weights(
    market: Market, device: Device, smollm2_bundle: Path
) -> None:
    from tests.agent.device import sealed

    bundle = sealed(directory=smollm2_bundle)
    device.directory.derived.mkdir()
    derived = await WeightPrepacker(device.directory, Disk(), limits=DiskLimits(spare_bytes=0))(bundle)
    assert derived is not None
    found = []
    for place in (None, derived):
        worker = await WorkerProcess.start(
            WorkerSettings(engine="batched", threads=1), smollm2_bundle, derived_dir=place, on_event=lambda event: None
        )
        found.append(anonymous_bytes(worker.pid))
        await worker.close()
    plain, prepacked = found
    assert plain - prepacked > 60 << 20, "the weights alone are 80 MiB"
    assert prepacked < 0.5 * plain, "the whole worker, not the weights alone"


async def test_verify_finds_derived_weights_that_were_changed(market: Market, device: Device) -> None:
    bundle = install(market, device)
    place = await WeightPrepacker(device.directory, Disk(), limits=DiskLimits(spare_bytes=0))(bundle)
    assert place is not None
    [known] = device.state().bundles()
    agent = CliContext(device.directory, InstallSettings(), WorkerSettings())
    assert faults_of(agent, known) == []
    victim = next(path for path in place.iterdir() if path.name != RECORD_FILE)
    victim.chmod(0o644)
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    [fault] = faults_of(agent, known)
    assert (fault.reason, fault.field) == (Reason.DIGEST_MISMATCH, f"derived/{place.name}")


@pytest.mark.parametrize(("work", "words"), [(1, "did not finish within"), (0, "did nothing for 0.01 s")])
async def test_making_them_may_be_slow_but_has_to_be_at_work(
    work: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.install.prepack.SECONDS", 0.01)
    efforts = itertools.count(0, work)
    process = await asyncio.create_subprocess_exec("sleep", "600", stderr=asyncio.subprocess.PIPE)
    with pytest.raises(EngineFailed, match=words):
        await _hear(process, lambda pid: Effort(float(next(efforts)), 0))
    process.kill()
    await process.wait()
    monkeypatch.setattr("agent.install.prepack.SECONDS", 120.0)
    process = await asyncio.create_subprocess_exec("ls", "/no/such", stderr=asyncio.subprocess.PIPE)
    assert b"/no/such" in await _hear(process)
