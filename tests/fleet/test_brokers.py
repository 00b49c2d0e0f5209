"""Agent, packager and fleet on brokers of each kind: mosquitto, and three nodes of NATS of which one is killed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from contract.mqtt.device import Status
from contract.mqtt.encoding import encode
from contract.system.command_line import main
from edge_bundle.broker import parse_broker
from edge_bundle.broker_session import BrokerSession
from edge_bundle.client import Client
from fleet.cli import COMMANDS, DESCRIPTION
from fleet.gateway.access import Anybody
from fleet.gateway.gateway import Gateway
from fleet.http.app import make_app
from fleet.http.server import Server, listen
from fleet.store import devices as registry
from fleet.store import outbox
from fleet.store.database import Database, parse_database
from fleet.store.devices import DeviceRow
from packager.cli import COMMANDS as PACKAGER
from tests.broker import Broker
from tests.fleet.gateway.raw import send
from tests.fleet.simulate.device import SimulatedDevice
from tests.fleet.simulate.links import living
from tests.fleet.stage import BUNDLES, load, make_devices, serving, start, wait_for_devices, wait_for_state
from tests.fleet.test_real_agent import SPEC
from tests.fleet.waiting import until
from tests.nats import NatsCluster
from tests.soak.world import SETTINGS, World

pytestmark = pytest.mark.broker

NAME = "soak.1"
AGENT_SECONDS = 300.0
"""An agent tries a candidate at the lowest priority: a busy machine takes a minute for it."""

NAMES = ["plain", "with.dot", ".first", "last.", "two..dots", "A_b-9"]
"""NATS has a dot between the levels of its own names, and maps those in topics."""


@pytest.fixture
def database(tmp_path: Path) -> Database:
    made = Database(parse_database(f"sqlite:///{tmp_path}/fleet.db"))
    made.create()
    return made


def row(database: Database, name: str) -> DeviceRow | None:
    with database.read() as connection:
        return next(iter(registry.rows(connection, name)), None)


def test_names_of_every_form_are_heard_and_asked(
    any_broker: Broker | NatsCluster, root: str, database: Database
) -> None:
    devices = [SimulatedDevice(name, bundles=BUNDLES) for name in NAMES]
    with living(devices, any_broker.address, root), serving(database, any_broker.address, root):
        wait_for_devices(database, len(devices))
        number = start(database, "2.0.0", waves=["100%"])
        found = wait_for_state(database, number, "done", "paused", "rolled_back")
        assert (found.state, sorted(found.targets)) == ("done", sorted(NAMES))
    assert all(device.installed == ["model@2.0.0"] for device in devices)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look again after seconds instead of minutes."""
    monkeypatch.setattr("fleet.service.LOOK_SECONDS", 3.0)
    monkeypatch.setattr("fleet.service.RESEND_SECONDS", 5.0)
    monkeypatch.setattr("edge_bundle.broker_session.SUBSCRIBE_AGAIN_SECONDS", 3.0)


def all_got_it_once(devices: list[SimulatedDevice]) -> None:
    """Nothing was lost, and nothing that has an effect was sent twice."""
    assert [device.installed for device in devices] == [["model@2.0.0"]] * len(devices)
    assert [len(device.wishes) for device in devices] == [1] * len(devices)


def wait_until_done(database: Database, number: int) -> None:
    """A wave of which too little is heard while the nodes agree anew is inconclusive, and bakes again on our word."""
    found = wait_for_state(database, number, "done", "paused", "rolled_back")
    while found.state == "paused":
        assert "were not heard since" in found.reason
        assert (
            main("edge-fleet", DESCRIPTION, COMMANDS, ["rollout", "resume", str(number), "--database", database.name])
            == 0
        )
        found = wait_for_state(database, number, "done", "paused", "rolled_back")
    assert found.state == "done", found.reason


def until_in_the_second_wave(database: Database, number: int, devices: list[SimulatedDevice]) -> None:
    def in_it() -> bool:
        rollout = load(database, number)
        return rollout.waves[1].state == "open" and any(each.wishes and not each.installed for each in devices)

    until(in_it, "the second wave to be under way")


def test_a_node_that_is_killed_in_the_middle_of_a_wave(
    nats_cluster: NatsCluster, root: str, database: Database, quick: None
) -> None:
    devices = make_devices(8, pace=0.25)
    # All of them, and the fleet, hang on the first one.
    with living(devices, nats_cluster.address, root), serving(database, nats_cluster.address, root):
        wait_for_devices(database, len(devices))
        number = start(database, "2.0.0", waves=["1", "100%"], deadline="10m")
        until_in_the_second_wave(database, number, devices)
        nats_cluster.nodes[0].kill()
        try:
            wait_until_done(database, number)
        finally:
            nats_cluster.start()
    all_got_it_once(devices)


def test_a_broker_whose_state_is_wiped_in_the_middle_of_a_wave(
    any_broker: Broker | NatsCluster, root: str, database: Database, quick: None
) -> None:
    devices = make_devices(4, pace=0.25)
    with living(devices, any_broker.address, root), serving(database, any_broker.address, root):
        wait_for_devices(database, len(devices))
        number = start(database, "2.0.0", waves=["1", "100%"], deadline="10m")
        until_in_the_second_wave(database, number, devices)
        any_broker.wipe()
        wait_until_done(database, number)
        with database.read() as connection:
            wishes = {wish.device: wish.payload for wish in outbox.current(connection).values()}
        until(lambda: retained(any_broker, root) == wishes, "the wishes to be back")
    all_got_it_once(devices)


def retained(broker: Broker | NatsCluster, root: str) -> dict[str, bytes]:
    """The wishes that the broker holds, by device."""
    with BrokerSession(broker.address, "looks") as session:
        session.subscribe(f"{root}/d/+/desired")
        return {each.topic.split("/")[-2]: each.payload for each in session.messages(1.0)}


def test_a_client_sees_what_was_published_in_the_moment_of_its_subscription(
    nats_cluster: NatsCluster, root: str
) -> None:
    names: list[str] = []
    ended = threading.Event()

    def publish() -> None:
        with BrokerSession(nats_cluster.address, "many") as session:
            while not ended.is_set():
                name = f"box-{len(names)}"
                session.publish(f"{root}/d/{name}/status", encode(Status(True, "boot")), retain=True)
                names.append(name)

    publishing = threading.Thread(target=publish)
    publishing.start()
    until(lambda: len(names) > 100, "devices to be there")
    with Client(nats_cluster.address, root=root) as client:
        client.devices()
        ended.set()
        publishing.join()
        until(lambda: set(client.devices()) == set(names), "the client to see all of them")


@contextmanager
def gateway_port(broker: Broker | NatsCluster, root: str) -> Iterator[int]:
    """A gateway that lets everybody ask; its port."""
    gateway = Gateway(broker.address, root, Anybody())
    server = Server(make_app([gateway]), listen("127.0.0.1", 0))
    server.start()
    try:
        until(lambda: not gateway.problems(), "the gateway to know the devices")
        yield server.port
    finally:
        server.stop()


def start_tiny(world: World, database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> int:
    """Publish the next version and start its rollout by the command; its number."""
    (tmp_path / "rollout.toml").write_text(SPEC.replace("device=soak", f"device={NAME}"))
    words = ["rollout", "start", f"tiny@{world.publish()}", "--spec", str(tmp_path / "rollout.toml"), "--json"]
    place = ["--depot", world.market.location, "--root", str(world.market.root_json), "--database", database.name]
    assert main("edge-fleet", DESCRIPTION, COMMANDS, [*words, *place]) == 0
    return int(json.loads(capsys.readouterr().out)["rollout"])


def runs(database: Database, bundle: str) -> bool:
    found = row(database, NAME)
    return found is not None and found.traits.bundle == bundle


def hosts(broker: Broker | NatsCluster) -> str:
    endpoints = ", ".join(f'"{host}:{port}"' for host, port in broker.address.endpoints)
    return f"hosts = [{endpoints}]"


def run_packager(broker: Broker | NatsCluster, root: str, *words: str) -> None:
    """A command of the packager's, about the one device."""
    place = ["--device", NAME, "--topic-root", root, "--broker", broker.url]
    assert main("edge-packager", "", PACKAGER, [*words, *place]) == 0


# On mosquitto parts of it are in make test: tests/fleet/test_real_agent.py, tests/fleet/gateway/test_real_agent.py.
@pytest.mark.parametrize("any_broker", [pytest.param("mosquitto", marks=pytest.mark.long), "nats"], indirect=True)
@pytest.mark.timeout(900)
def test_a_real_agent_a_packager_and_the_fleet(
    any_broker: Broker | NatsCluster,
    root: str,
    database: Database,
    tmp_path: Path,
    tiny_bundle: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = SETTINGS.replace('host = "127.0.0.1"\nport = {port}', hosts(any_broker))
    settings = settings.replace('device = "soak"', f'device = "{NAME}"')
    # Nothing is prepacked for this one, at the lowest priority.
    settings = settings.replace("[worker]", '[worker]\nengine = "genai"')
    (tmp_path / "site").mkdir()
    world = World(tmp_path / "site", tiny_bundle, f'topic_root = "{root}"\n{settings}')
    # Another node than the agent's first choice, where there is one.
    elsewhere = parse_broker("mqtt://{}:{}".format(*any_broker.address.endpoints[-1]))

    world.web.start()
    assert world.run("trust", "provision", str(world.market.root_json)) == 0
    world.start_agent()
    try:
        with serving(database, any_broker.address, root):
            until(lambda: (found := row(database, NAME)) is not None and found.traits.online, "the agent to be heard")
            run_packager(any_broker, root, "deploy", f"tiny@{world.publish()}", "--revision", "by-hand")
            until(lambda: runs(database, "tiny@1.1.0"), "the first installation", AGENT_SECONDS)
            capsys.readouterr()
            number = start_tiny(world, database, tmp_path, capsys)
            until(lambda: runs(database, "tiny@1.2.0"), "the second installation", AGENT_SECONDS)
            assert wait_for_state(database, number, "done", "paused", "rolled_back").state == "done"
            run_packager(any_broker, root, "prompt", "count")
            assert capsys.readouterr().out.strip()
            run_packager(any_broker, root, "watch", "--json", "--seconds", "2")
            seen = {json.loads(line)["kind"] for line in capsys.readouterr().out.splitlines()}
            assert {"status", "health", "reported"} <= seen
            with BrokerSession(elsewhere, "looks") as session:
                session.subscribe(f"{root}/d/{NAME}/reported")
                message = session.next_message(5)
                while message is None:  # NATS leaves out what it gets from another node in this moment; a hang is ended
                    session.subscribe_again()
                    message = session.next_message(5)
            assert message.retained
            assert json.loads(message.payload)["active"]["version"] == "1.2.0"
            with Client(elsewhere, root=root, name="app.one") as client:
                assert client.complete(device=NAME, messages=[{"role": "user", "content": "count"}]).choices
            with gateway_port(any_broker, root) as port:
                question = {"model": f"device:{NAME}", "messages": [{"role": "user", "content": "count"}]}
                assert send(port, "/v1/chat/completions", question).status == 200
            world.kill_agent()
            until(lambda: (found := row(database, NAME)) is not None and not found.traits.online, "its will")
    finally:
        world.end_agent()
        world.web.kill()
        database.close()
