"""The way back over MQTT: a wish for a version before, to a real agent at a real broker, and what root orders there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.soak.scene import GOOD, Scene

pytestmark = [pytest.mark.broker, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def scene(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(tmp_path_factory.mktemp("scene"), tiny_bundle)
    yield made
    made.close()
    assert made.wrong_answers() == []


def target(scene: Scene, version: str, revision: str) -> None:
    """Wish for ``version`` and wait until it answers."""
    scene.asker.desire(version, revision=revision)
    scene.until(
        lambda: (
            scene.asker.reported.get("revision") == revision
            and scene.asker.reported["phase"] == "IDLE"
            and scene.active == version
        )
    )
    before = scene.answered()
    scene.until(lambda: scene.answered() > before)
    assert scene.asker.reported["error"] is None


def objects_fetched(scene: Scene) -> int:
    log = scene.world.root / "web" / "access.log"
    return log.read_text().count("/objects/") if log.exists() else 0


def test_a_wish_for_the_version_before_leads_back_and_fetches_nothing(scene: Scene) -> None:
    newer = scene.world.publish()
    target(scene, newer, "forward")
    fetched, swaps = objects_fetched(scene), scene.asker.swaps
    target(scene, GOOD, "back")
    assert objects_fetched(scene) == fetched, "its bytes are here"
    assert scene.asker.swaps == swaps + 1
    assert scene.asker.reported["previous"]["version"] == newer
    assert not scene.asker.rollbacks, "nothing failed"


def test_it_stays_there_over_a_restart(scene: Scene) -> None:
    swaps = scene.asker.swaps
    assert scene.world.end_agent() == 0
    scene.world.start_agent()
    before = scene.answered()
    scene.until(lambda: scene.answered() > before)
    assert scene.active == GOOD
    assert scene.asker.swaps == swaps


def test_roots_order_counts_for_more_than_the_wish_that_came_before(scene: Scene) -> None:
    newer = str(scene.asker.reported["previous"]["version"])
    assert scene.world.run("rollback") == 0
    scene.until(lambda: scene.active == newer)
    scene.world.fault_broker_restarted()
    assert scene.world.end_agent() == 0
    scene.world.start_agent()
    before = scene.answered()
    scene.until(lambda: scene.answered() > before)
    assert scene.active == newer, "the retained wish comes again and is not followed"
    target(scene, GOOD, "once more")


def test_the_log_of_the_real_agent_has_one_line_for_each_step_of_each_bundle(scene: Scene) -> None:
    """All of the above, as an operator reads it afterwards."""
    text = (scene.world.root / "agent.log").read_text()
    steps = [dict(re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)', line)) for line in text.splitlines() if " step=" in line]
    life = ["wanted", "resolved", "fetched", "canary", "swapped", "probation", "committed"]
    by = ["desired", "desired", "desired", "operator", "desired"]
    expected = [(step, who) for who in by for step in [*life, *(["rolled_back"] if who == "operator" else [])]]
    assert [line["step"] for line in steps] == [step for step, _ in expected]
    told = [(line["step"], line["by"]) for line in steps if "by" in line]
    assert told == [each for each in expected if each[0] in ("wanted", "committed", "rolled_back")]
    assert [int(line["bytes"]) > 0 for line in steps if line["step"] == "fetched"] == [True, True, False, False, False]
    canaries = [line for line in steps if line["step"] == "canary"]
    assert all(float(line["drift"]) < 0.1 and int(line["peak_rss_bytes"]) > 1 << 20 for line in canaries)
    swaps = [line for line in steps if line["step"] == "swapped"]
    assert all(line["mode"] in ("overlap", "drain") and float(line["pause_ms"]) >= 0 for line in swaps)
