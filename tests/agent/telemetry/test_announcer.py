"""What is announced is taken back once it is switched off, renamed or gone, also by an agent that is started later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.telemetry.announcer import MAX_RECORD_BYTES, AnnouncementRecord, Announcer, Identity
from agent.telemetry.settings import HomeAssistantSettings
from contract.errors import StoreFull
from contract.mqtt.topics import Topics
from contract.system.durable import Disk
from tests.agent.telemetry.home_assistant_schema import check_document

HEAT = {"platform": "sensor", "name": "Heat", "state_topic": "t", "value_template": "{{ value }}"}
READY = {"platform": "binary_sensor", "name": "Ready", "state_topic": "h", "value_template": "ON"}
TOPIC = "homeassistant/device/box/config"


class Run:
    """One life of an agent, and what a broker has of it."""

    def __init__(self, file: Path, disk: Disk | None = None, *, device: str = "box", **settings: Any) -> None:
        self.retained: dict[str, bytes] = {}
        self.all_delivered = True
        identity = Identity(device, Topics(device, "edge/v1"), version="1")
        self.announcer = Announcer(
            HomeAssistantSettings(**settings), identity, AnnouncementRecord(file, disk or Disk()), self
        )

    def announce(self, documents: dict[str, bytes]) -> None:
        self.retained.update(documents)

    def live(self, **components: dict[str, Any]) -> Run:
        self.announcer.announce(components)
        return self

    def platforms(self, topic: str = TOPIC) -> dict[str, tuple[str, bool]]:
        """Platform, and whether it is announced (not removed)."""
        found = check_document(topic, self.retained[topic])
        return {key: (each["platform"], len(each) > 1) for key, each in found.items()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "announced.json"


def test_switched_off_from_the_beginning_nothing_is_published_or_written(file: Path) -> None:
    assert Run(file).live(ready=READY).retained == {}
    assert not file.exists()


def test_a_component_that_is_missing_for_a_moment_stays(file: Path) -> None:
    run = Run(file, enabled=True).live(ready=READY, heat=HEAT)
    assert run.platforms() == {"ready": ("binary_sensor", True), "heat": ("sensor", True)}
    assert run.live(ready=READY).platforms().keys() == {"ready", "heat"}


def test_a_component_that_a_later_agent_has_not_is_removed(file: Path) -> None:
    Run(file, enabled=True).live(ready=READY, heat=HEAT)
    later = Run(file, enabled=True).live(ready=READY)
    assert later.platforms() == {"ready": ("binary_sensor", True), "heat": ("sensor", False)}
    # The broker may not have heard of it yet; the next agent says it again.
    assert Run(file, enabled=True).live(ready=READY).platforms()["heat"] == ("sensor", False)
    later.live(ready=READY)
    assert Run(file, enabled=True).live(ready=READY).platforms().keys() == {"ready"}


def test_a_component_that_comes_back_is_announced_again(file: Path) -> None:
    Run(file, enabled=True).live(ready=READY, heat=HEAT)
    later = Run(file, enabled=True).live(ready=READY)
    assert later.platforms()["heat"] == ("sensor", False)
    assert later.live(ready=READY, heat=HEAT).platforms()["heat"] == ("sensor", True)


def test_switched_off_the_device_is_removed(file: Path) -> None:
    Run(file, enabled=True).live(ready=READY)
    off = Run(file)
    off.all_delivered = False
    assert off.live(ready=READY).retained == {TOPIC: b""}
    off.live(ready=READY)
    assert file.exists(), "nobody has heard of it yet"
    off.all_delivered = True
    off.live(ready=READY)
    assert not file.exists()
    assert Run(file).live(ready=READY).retained == {}


@pytest.mark.parametrize("change", [{"prefix": "ha/two"}, {"device": "other"}])
def test_under_another_name_the_old_one_is_removed(file: Path, change: dict[str, str]) -> None:
    Run(file, enabled=True).live(ready=READY)
    later = Run(file, enabled=True, **change).live(ready=READY)
    assert later.retained[TOPIC] == b""
    (new,) = later.retained.keys() - {TOPIC}
    assert later.platforms(new) == {"ready": ("binary_sensor", True)}
    later.live(ready=READY)
    assert list(json.loads(file.read_bytes())) == [new]


def test_what_is_announced_is_written_down_before(file: Path) -> None:
    seen: list[set[str]] = []

    class Outlet:
        all_delivered = True

        def announce(self, documents: dict[str, bytes]) -> None:
            seen.append(set(json.loads(file.read_bytes())) & documents.keys())

    identity = Identity("box", Topics("box", "edge/v1"), version="1")
    announcer = Announcer(HomeAssistantSettings(enabled=True), identity, AnnouncementRecord(file, Disk()), Outlet())
    announcer.announce({"ready": READY})
    assert seen == [{TOPIC}]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff\xfe", b"[]", b"{", b'{"a": 7}', b'{"homeassistant/device/box/config": {"heat": null}}',
        b'{"' + b"x" * MAX_RECORD_BYTES + b'": {}}', b'{"\\ud83d": {"\\ud83d": "sensor"}}',
        b'{"edge/v1/d/box/desired": {}, "#": {}, "a/+/device/box/config": {}, "": {}, "x\\u0000/device/b/config": {}}',
        b'{"homeassistant/device/box/config": {"a b": "sensor", "\\ud83d": "sensor", "ok": "a sensor"}}',
    ],
)  # fmt: skip
def test_a_record_that_holds_anything_keeps_nobody_from_starting(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert Run(file, enabled=True).live(ready=READY).platforms() == {"ready": ("binary_sensor", True)}
    file.write_bytes(content)
    assert Run(file).live(ready=READY).retained.keys() <= {TOPIC}


def test_a_record_that_is_no_file_keeps_nobody_from_starting(file: Path) -> None:
    file.mkdir()
    assert Run(file, enabled=True).live(ready=READY).platforms() == {"ready": ("binary_sensor", True)}


class FullDisk(Disk):
    def write_file(self, path: Path, data: bytes, mode: int = 0o644) -> None:
        raise StoreFull("the disk is full")


def test_a_full_disk_does_not_keep_it_from_being_announced(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(file, FullDisk(), enabled=True)
    for _ in range(3):
        assert run.live(ready=READY).platforms() == {"ready": ("binary_sensor", True)}
    assert len([line for line in caplog.messages if "could not be stored" in line]) == 1
