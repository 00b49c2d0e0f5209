"""The simulated device beside a real agent: the same messages in the same order for the same wishes."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from msgspec import UNSET, UnsetType, structs

from agent.cli import COMMANDS
from agent.config import load_config
from agent.telemetry.samples import LlmSample, SystemSample
from contract.bundle.manifest import MANIFEST_FILE, parse_manifest
from contract.mqtt.desired import BundleReference, Desired, Policy
from contract.mqtt.device import Event, Health, Info, Status
from contract.mqtt.encoding import encode
from contract.mqtt.reports import Reported
from contract.system.command_line import main
from contract.windows import WindowDocument
from edge_bundle.broker import parse_broker
from edge_bundle.broker_session import BrokerSession
from fleet.ingest import reading
from fleet.ingest.collector import collect
from fleet.ingest.inbox import Inbox
from tests.agent.install.market import Market
from tests.agent.running_service import running
from tests.broker import Broker
from tests.fleet.simulate.device import Behaviour, SimulatedDevice
from tests.fleet.simulate.links import living

NAME = "box"
SETTINGS = """
device = "box"
state_dir = "state"
[broker]
host = "127.0.0.1"
port = {port}
[sources]
web = "{source}"
[install]
probation_seconds = 1.0
swaps_per_hour = 0
[worker]
# Nothing is prepacked for it, at the lowest priority.
engine = "genai"
[telemetry]
interval_seconds = 1
"""

pytestmark = pytest.mark.broker

ROOT = "edge/v1"
BAD = "tiny@1.9.0"
UNLISTED = "tiny@7.7.7"
WAITING = ("reason", "prefetched", "until")
LATER = "2096-12-05T00:00:00Z"
OPENS = "2096-12-05T22:00:00Z"
AHEAD = Policy(not_before=LATER, window=WindowDocument("22:00", "23:00", "UTC"), prefetch=True)
SECONDS = 120.0
"""Until an installation, which takes two seconds, counts as not ending."""


class Listener:
    """What one device says, as far as it must be the same: no times, no telemetry, nothing that is said twice."""

    def __init__(self, broker: Broker) -> None:
        self._session = BrokerSession(parse_broker(broker.url), "listener")
        self._session.subscribe(f"{ROOT}/d/{NAME}/#")
        self.raw: dict[str, bytes] = {}
        self.said: list[Any] = []

    def close(self) -> None:
        self._session.close()

    def wish(self, revision: str, reference: str | None, policy: Policy | UnsetType = UNSET) -> None:
        self.said.append(("wish", revision, reference))
        payload = b""
        if reference is not None:
            payload = encode(Desired(revision, BundleReference(*reference.split("@")), policy=policy))
        self._session.publish(f"{ROOT}/d/{NAME}/desired", payload, retain=True)

    def hear_birth(self) -> None:
        """Everything that a device says of itself, and its counters."""
        wanted = {"status", "info", "health", "reported", "telemetry/llm", "telemetry/system"}
        deadline = time.monotonic() + SECONDS
        while not wanted <= set(self.raw):
            assert time.monotonic() < deadline, f"it said {sorted(self.raw)} only"
            self._hear_one()

    def _hear_one(self) -> Any:
        message = self._session.next_message(0.2)
        if message is None:
            return None
        topic = message.topic.removeprefix(f"{ROOT}/d/{NAME}/")
        self.raw[topic] = message.payload
        said = summary(topic, message.payload)
        if said is not None and said != next((each for each in reversed(self.said) if each[0] == said[0]), None):
            self.said.append(said)
        return said

    def hear_until(self, end: Any) -> None:
        """Listen until ``end`` was said."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            if self._hear_one() == end:
                return
        raise AssertionError(f"{end} was not said; the last were {self.said[-8:]}")


def summary(topic: str, payload: bytes) -> Any:
    """None for what need not be the same."""
    document = msgspec.json.decode(payload) if payload else None
    if topic == "status":
        return (topic, document["online"])
    if topic == "health":
        # How warm or full the machine is, is not theirs.
        return (topic, document["ready"], *(each for each in document["reasons"] if not each.startswith("throttled")))
    if topic == "info":
        return (topic, name_of(document["bundle"]))
    if topic.startswith("event/") and topic != "event/throttle":
        detail = document["detail"]
        return (topic, *(detail.get(each) for each in ("bundle", "revision", "from", "to", "reason", "by")))
    if topic == "reported":
        error, waiting = document["error"] or {}, document.get("waiting") or {}
        return (
            topic, document["revision"], document["phase"], name_of(document["active"]), name_of(document["previous"]),
            error.get("reason"), "retry_in_seconds" in error, tuple(waiting.get(each) for each in WAITING),
        )  # fmt: skip
    return None


def name_of(state: dict[str, Any] | None) -> str | None:
    return None if state is None else f"{state['name']}@{state['version']}"


def idle(
    revision: str | None,
    active: str | None,
    previous: str | None = None,
    error: str | None = None,
    waiting: tuple[str | None, bool | None, str | None] = (None, None, None),
) -> Any:
    return ("reported", revision, "IDLE", active, previous, error, False, waiting)


def tell(listener: Listener) -> None:
    """The same story for both: the first installation, an update, a bad bundle twice, one that is not listed, the wish
    for what runs, the way back, bundles that wait for their time and for their window, fetched ahead and not, one that
    has waited and may go on, and a wish that is withdrawn.
    """
    one, two, three = "tiny@1.1.0", "tiny@1.2.0", "tiny@1.3.0"
    listener.hear_birth()
    for revision, reference, end, *policy in (
        ("r1", one, idle("r1", one)),
        ("r2", two, idle("r2", two, one)),
        ("r3", BAD, idle("r3", two, one, "canary_drift")),
        ("r4", BAD, idle("r4", two, one, "quarantined")),
        ("r5", UNLISTED, idle("r5", two, one, "not_listed")),
        ("r6", two, idle("r6", two, one)),
        ("r7", one, idle("r7", one, two)),
        ("r8", three, idle("r8", one, two, waiting=("waiting_for_not_before", False, LATER)), Policy(not_before=LATER)),
        ("r9", three, idle("r9", one, two, waiting=("waiting_for_window", True, OPENS)), AHEAD),
        ("r10", one, idle("r10", one, two)),
        ("r11", three, idle("r11", one, two, waiting=("waiting_for_window", True, OPENS)), AHEAD),
        ("r12", three, idle("r12", three, one)),
        ("", None, idle(None, three, one)),
    ):
        listener.wish(revision, reference, *policy)
        listener.hear_until(end)


def in_order(said: list[Any]) -> list[Any]:
    """As it was said; only of what is said at birth the order does not matter."""
    birth = next(number for number, each in enumerate(said) if each[0] == "wish")
    return [*sorted(said[:birth], key=str), *said[birth:]]


def retained(broker: Broker) -> dict[str, Any]:
    """What a newcomer is told."""
    with BrokerSession(parse_broker(broker.url), "newcomer") as session:
        session.subscribe(f"{ROOT}/d/{NAME}/#")
        found: dict[str, Any] = {}
        # What is retained comes first.
        while (message := session.next_message(2.0)) is not None and message.retained:
            topic = message.topic.removeprefix(f"{ROOT}/d/{NAME}/")
            found[topic] = summary(topic, message.payload)
        return found


TYPES = {
    "status": Status, "info": Info, "health": Health, "reported": Reported, "telemetry/llm": LlmSample,
    "telemetry/system": SystemSample, **{f"event/{each}": Event for each in reading.EVENT_KINDS},
}  # fmt: skip


def check_documents(raw: dict[str, bytes]) -> None:
    """Every document is what its type says, nothing more, and the fleet reads it."""
    for topic, payload in raw.items():
        if topic != "desired":
            assert encode(msgspec.json.decode(payload, type=TYPES[topic])) == payload, topic
    inbox = Inbox(ROOT)
    for topic, payload in raw.items():
        inbox.put(f"{ROOT}/d/{NAME}/{topic}", payload, retained=False, now=time.time())
    rows = collect(inbox.take(), time.time())
    assert rows.refused == {}
    assert [update.device for update in rows.updates] == [NAME]
    assert [sample.reading is not None for sample in rows.samples] == [True]


def publish(market: Market, version: str, tiny_bundle: Path, mean_nll: float = 1.0) -> None:
    """A bundle to whose canary the double of a worker answers as expected, or not: every text has a mean NLL of 1."""
    canary = parse_manifest((tiny_bundle / MANIFEST_FILE).read_bytes()).canary
    expected = [structs.replace(each, mean_nll=mean_nll) for each in canary]
    market.publish(version, {"extra.bin": version.encode()}, canary=expected)


def connections(port: int) -> set[int]:
    """Files of this process that are connections to the broker."""
    return {each.fd for each in psutil.Process().net_connections() if each.raddr and each.raddr.port == port}


def cut(files: set[int]) -> None:
    for each in files:
        with socket.socket(fileno=os.dup(each)) as connection:
            connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def market(tmp_path: Path, tiny_bundle: Path) -> Market:
    """Three good bundles and a bad one."""
    made = Market(tmp_path / "market", tiny_bundle)
    for version, mean_nll in (("1.1.0", 1.0), ("1.2.0", 1.0), ("1.3.0", 1.0), ("1.9.0", 10.0)):
        publish(made, version, tiny_bundle, mean_nll)
    return made


def test_it_says_what_a_real_agent_says_in_its_order(tmp_path: Path, market: Market) -> None:
    """All of the agent is real, but for its model: the double of a worker takes no time."""
    brokers = Broker(tmp_path / "real"), Broker(tmp_path / "ours")
    for each in brokers:
        each.start()
    (tmp_path / "agent.toml").write_text(SETTINGS.format(port=brokers[0].port, source=market.location))
    words = ["trust", "provision", str(market.root_json), "--config", str(tmp_path / "agent.toml")]
    assert main("edge-agent", "", COMMANDS, words) == 0
    real, ours = Listener(brokers[0]), Listener(brokers[1])
    bundles = {BAD: Behaviour(fails="CANARY"), UNLISTED: Behaviour(fails="RESOLVE", reason="not_listed")}
    try:
        others = connections(brokers[0].port)
        with (
            running(load_config(tmp_path / "agent.toml")),
            living([SimulatedDevice(NAME, active="", bundles=bundles)], brokers[1].address) as links,
        ):
            tell(real)
            tell(ours)
            assert in_order(ours.said) == in_order(real.said)
            assert retained(brokers[1]) == retained(brokers[0])
            check_documents(ours.raw)
            check_documents(real.raw)
            # Their connections are gone without a word: the will is what is left, until they are back.
            cut(connections(brokers[0].port) - others)
            links[0].vanish()
            for listener in (real, ours):
                listener.hear_until(("status", False))
                listener.hear_until(("status", True))
    finally:
        real.close()
        ours.close()
        for each in brokers:
            each.stop()
