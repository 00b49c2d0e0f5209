"""Bundles that must not come through, on a real agent with real workers: each ends with its reason, and the old model
answers all the while.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from contract.bundle.manifest import Requires
from contract.reasons import Reason
from tests.soak.scene import CANARY, GOOD, Scene

pytestmark = [pytest.mark.broker, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def scene(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(tmp_path_factory.mktemp("scene"), tiny_bundle)
    yield made
    made.close()
    assert made.wrong_answers() == []


def weights(scene: Scene) -> bytes:
    return (scene.world.market.base / "model.onnx.data").read_bytes()


def test_a_bundle_that_nobody_listed(scene: Scene) -> None:
    assert scene.refuses("9.9.9")["error"]["reason"] == Reason.NOT_LISTED


@pytest.mark.parametrize(
    ("version", "field", "reason"),
    [("2.0.0", "min_ram_bytes", Reason.REQUIRES_RAM), ("2.0.1", "min_disk_bytes", Reason.REQUIRES_DISK)],
)
def test_too_big_for_this_device_is_refused_before_anything_is_fetched(
    scene: Scene, version: str, field: str, reason: Reason
) -> None:
    market = scene.world.market
    manifest = json.loads((market.base / "manifest.json").read_bytes())
    requires = msgspec.structs.replace(msgspec.convert(manifest["requires"], Requires), **{field: 2**50})
    published = market.publish(version, {"only.bin": version.encode() * 1000}, requires=requires)
    assert scene.refuses(version)["error"]["reason"] == reason
    assert not scene.fetched(market.object(published, "only.bin"))


def test_a_graph_that_the_runtime_does_not_load(scene: Scene) -> None:
    graph = (scene.world.market.base / "model.onnx").read_bytes().replace(b"MatMulNBits", b"MatMulNBitz")
    scene.world.market.publish("2.1.0", {"model.onnx": graph})
    assert scene.refuses("2.1.0")["error"]["reason"] == Reason.CANARY_LOAD_FAILED


def test_weights_that_are_not_numbers(scene: Scene) -> None:
    scene.world.market.publish("2.2.0", {"model.onnx.data": b"\xff" * len(weights(scene))})
    assert scene.refuses("2.2.0")["error"]["reason"] == Reason.CANARY_NOT_FINITE


def test_weights_that_say_something_else_than_at_the_build(scene: Scene) -> None:
    data = bytearray(weights(scene))
    for offset in range(0, len(data), 3):
        data[offset] = (data[offset] * 7 + offset) % 120
    scene.world.market.publish("2.3.0", {"model.onnx.data": bytes(data)})
    assert scene.refuses("2.3.0")["error"]["reason"] in (Reason.CANARY_DRIFT, Reason.CANARY_NOT_FINITE)


def test_an_end_token_that_was_forgotten(scene: Scene) -> None:
    config = json.loads((scene.world.market.base / "genai_config.json").read_bytes())
    config["model"]["eos_token_id"] = 0
    scene.world.market.publish("2.3.1", {"genai_config.json": json.dumps(config).encode()})
    error = scene.refuses("2.3.1")["error"]
    assert error["reason"] == Reason.CANARY_NO_STOP
    assert "canary 1 continues for 128 tokens here" in error["message"]


@pytest.mark.parametrize(("version", "how"), [("2.4.0", "kill"), ("2.4.1", "suspend")])
def test_a_candidate_that_crashes_or_hangs(scene: Scene, version: str, how: str) -> None:
    scene.world.market.publish(version, {"README.md": version.encode()})
    if how == "suspend":
        scene.configure(CANARY, "canary_seconds = 6.0")
    serving = {each.pid for each in scene.world.workers()}
    over = threading.Event()
    struck: set[psutil.Process] = set()

    def strike() -> None:
        # Without its prepacked weights, too, it does no better.
        while not over.wait(0.01):
            for worker in scene.world.workers():
                if worker.pid not in serving and worker not in struck:
                    struck.add(worker)
                    getattr(worker, how)()

    striking = threading.Thread(target=strike)
    striking.start()
    try:
        said = scene.refuses(version)
    finally:
        over.set()
        striking.join()
        if how == "suspend":
            scene.configure("canary_seconds = 6.0", CANARY)
    assert said["error"]["reason"] in (Reason.CANARY_LOAD_FAILED, Reason.CANARY_TIMEOUT)
    assert struck
    assert not any(worker.is_running() for worker in struck)


def test_a_candidate_that_is_too_slow(scene: Scene) -> None:
    scene.world.market.publish("2.5.0", {"README.md": b"2.5.0"})
    policy = {"min_tokens_per_second": 1e6, "probation_seconds": 60}
    swaps = scene.asker.swaps
    assert scene.refuses("2.5.0", policy=policy)["error"]["reason"] == Reason.PROBATION_TOO_SLOW
    assert scene.asker.swaps > swaps, "it served for a while"


def test_a_candidate_that_takes_too_much_memory(scene: Scene) -> None:
    scene.configure("[install]\n", "[install]\nmax_rss_bytes = 1000000\n")
    scene.world.market.publish("2.6.0", {"README.md": b"2.6.0"})
    assert scene.refuses("2.6.0")["error"]["reason"] == Reason.CANARY_MEMORY


def test_each_of_them_is_quarantined_with_its_reason_in_a_table(
    scene: Scene,
) -> None:

    command = [sys.executable, "-m", "agent.cli", "status", "--config", str(scene.world.root / "agent.toml")]
    table = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    rows = {line.split()[0]: line for line in table.splitlines() if line.startswith("tiny@")}
    assert "active" in rows[f"tiny@{GOOD}"]
    quarantined = {name: row for name, row in rows.items() if "quarantined" in row}
    for name, row in quarantined.items():
        assert row.endswith(scene.reasons[name.removeprefix("tiny@")])
    assert quarantined or not scene.reasons
