"""What is known of devices from their messages, whoever sends them."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.telemetry.llm import LlmMeter
from edge_bundle.broker_session import Message
from packager.watch import fleet as fleets
from packager.watch.fleet import Fleet, describe_event
from packager.watch.samples import LlmReading
from tests.packager.watch.messages import ROOT, event, health, info, llm, message, reported, system


def test_documents_and_samples_become_a_view() -> None:
    fleet = Fleet(ROOT)
    for kind, body in (
        ("status", {"online": True, "boot_id": "b"}),
        ("reported", reported("FETCH", progress={"done": 1, "total": 2})),
        ("health", health(queue=3)),
        ("info", info("office")),
    ):
        fleet.feed(message("k", kind, body, retained=True), 0.0)
    assert fleet.devices["k"].heard is None  # retained documents may be of last year
    for number in range(3):
        fleet.feed(message("k", "telemetry/llm", llm(100 * number)), 10.0 * number)
        fleet.feed(message("k", "telemetry/system", system(50.0 + number)), 10.0 * number)
    view = fleet.devices["k"]
    assert view.online
    assert view.reported is not None and view.reported.phase == "FETCH"
    assert view.health is not None and view.health.queue == 3
    assert view.speed.series.values == [None, 10.0, 10.0]
    assert view.temperature.values == [50.0, 51.0, 52.0]
    assert view.memory.last == 75.0
    assert view.heard == 20.0


def test_answers_under_way_count_for_the_speed() -> None:
    fleet = Fleet(ROOT)
    fleet.feed(message("k", "telemetry/llm", llm(100, generating=0)), 0.0)
    fleet.feed(message("k", "telemetry/llm", llm(100, generating=50)), 10.0)
    fleet.feed(message("k", "telemetry/llm", llm(160, generating=0)), 20.0)
    assert fleet.devices["k"].speed.series.values == [None, 5.0, 1.0]


def test_the_sensor_nearest_to_its_limit_is_shown() -> None:
    fleet = Fleet(ROOT)
    sample = system() | {
        "temperatures": {"disk": 60.0, "cpu": 75.0, "psu": 90.0},
        "temperature_limits": {"disk": 61.0, "cpu": 100.0},
    }
    fleet.feed(message("k", "telemetry/system", sample), 0.0)
    found = fleet.devices["k"].system
    assert found is not None and found.hottest == ("disk", 60.0)


def test_what_the_agent_really_sends_is_read() -> None:
    meter = LlmMeter(5.0)
    meter.finish("stop", completion_tokens=7, first_token_seconds=0.5)
    sent = msgspec.json.encode(meter.sample(1, 2, 3))
    read = msgspec.json.decode(sent, type=LlmReading)
    assert (read.start, read.queue, read.active, read.tokens, read.requests) == (5.0, 1, 2, 10, {"stop": 1})
    assert not isinstance(read.first_token, msgspec.UnsetType) and read.first_token.mean == 0.5


def test_of_a_group_only_its_own_devices_count_whatever_comes_first() -> None:
    fleet = Fleet(ROOT, "office")
    assert fleet.feed(message("in", "status", {"online": True, "boot_id": "b"}), 0.0) == []
    assert fleet.feed(message("out", "status", {"online": True, "boot_id": "b"}), 0.0) == []
    assert fleet.feed(message("out", "info", info("kitchen")), 0.0) == []
    held = fleet.feed(message("in", "info", info("office", "kitchen")), 0.0)
    assert [each.topic.rpartition("/")[2] for each in held] == ["status", "info"]
    assert fleet.feed(message("out", "health", health()), 0.0) == []
    assert list(fleet.devices) == ["in"]
    assert fleet.devices["in"].online
    # It leaves the group.
    fleet.feed(message("in", "info", info("kitchen")), 0.0)
    assert not fleet.devices


def test_names_without_end_do_not_fill_the_memory() -> None:
    fleet = Fleet(ROOT)
    for number in range(fleets.MAX_DEVICES + 10):
        fleet.feed(message(f"d{number}", "status", {"online": True, "boot_id": "b"}), 0.0)
    assert len(fleet.devices) == fleets.MAX_DEVICES


def test_events_are_told_in_words() -> None:
    fleet = Fleet(ROOT)
    swap = event(bundle="m@2.0.0", **{"from": "m@1.0.0"}, mode="overlap", queue_pause_ms=12.4)
    fleet.feed(message("k", "event/swap", swap), 0.0)
    (happened,) = fleet.events
    assert happened.text == "m@1.0.0 → m@2.0.0, overlap, requests waited 12 ms"
    assert describe_event("throttle", {"level": 2, "active_limit": 2, "reasons": ["throttled_memory"]}) == (
        "at most 2 at once: throttled_memory"
    )
    assert describe_event("throttle", {"level": 0, "active_limit": None, "reasons": []}).startswith("recovered")
    assert describe_event("rollback", {"from": None}) == '{"from": null}'


def test_a_device_cannot_steer_the_terminal() -> None:
    fleet = Fleet(ROOT)
    evil = event(bundle="m@1.0.0", message="\x1b]0;owned\x07 \x9b2J", reason="x")
    fleet.feed(message("k", "event/refused", evil), 0.0)
    assert fleet.events[0].text.isprintable()


KINDS = st.sampled_from(
    ["status", "health", "reported", "info", "telemetry/system", "telemetry/llm", "event/install", "event/swap", "x"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["at", "detail", "online", "phase", "cpu"]), inner),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(KINDS, st.binary() | JSON.map(msgspec.json.encode))))
def test_nothing_that_is_published_breaks_the_view(messages: list[tuple[str, bytes]]) -> None:
    fleet = Fleet(ROOT)
    for number, (kind, payload) in enumerate(messages):
        fleet.feed(Message(f"{ROOT}/d/k/{kind}", payload, False), float(number))
    assert set(fleet.devices) <= {"k"}


def test_a_boot_that_comes_back_after_another_one_means_two_devices_of_one_name() -> None:
    fleet = Fleet("edge/v1")

    def boot(boot_id: str, online: bool = True) -> None:
        fleet.feed(message("box", "status", {"online": online, "boot_id": boot_id}), 1.0)

    boot("a")
    boot("a", online=False)
    boot("b")
    boot("b")
    boot("a", online=False)
    assert not fleet.devices["box"].contested, "a restart, and the will of the one before"
    boot("a")
    assert fleet.devices["box"].contested
    assert fleet.contested == ["box"]
    boot("b")
    assert fleet.contested == ["box"], "said once"


def test_a_device_that_was_forgotten_is_gone() -> None:
    fleet = Fleet(ROOT)
    fleet.feed(message("box", "status", {"online": False, "boot_id": "b"}), 0.0)
    fleet.feed(message("box", "health", health()), 0.0)
    fleet.feed(message("box", "status", b""), 1.0)
    assert "box" in fleet.devices
    fleet.feed(message("box", "health", b""), 1.0)
    assert "box" not in fleet.devices
    assert fleet.unreadable == 0
