"""A gateway in front of devices whose workers are fakes: broker, devices and HTTP are real, in this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from agent.config import AgentConfig
from agent.install.ports import SealedBundle
from agent.mqtt.settings import BrokerSettings
from contract.mqtt.device import EngineInfo, Health, Info, Limits
from contract.mqtt.reports import BundleState
from edge_bundle.broker import parse_broker
from fleet.gateway.access import Access, Anybody
from fleet.gateway.gateway import Gateway
from fleet.http.app import make_app
from fleet.http.server import Server, listen
from tests.agent.device import Device
from tests.agent.worker.double import FakeWorkers
from tests.broker import Broker
from tests.fleet.waiting import until

ROOT = "edge/v1"


def make_device(
    directory: Path, broker: Broker, name: str, bundle: SealedBundle | None, groups: Sequence[str] = (), slots: int = 2
) -> Device:
    """A device that is online."""
    config = AgentConfig(
        device=name, state_dir=directory / name, groups=list(groups),
        broker=BrokerSettings(host="127.0.0.1", port=broker.port),
    )  # fmt: skip
    config.state_dir.mkdir()
    device = Device(config, config.state_dir / "state.db", FakeWorkers(slots)).start(bundle, settle=False)
    tell(device, bundle, slots=slots)
    return device


def tell(
    device: Device,
    bundle: SealedBundle | None,
    *,
    slots: int = 2,
    capabilities: Sequence[str] = ("logprobs", "tools"),
    health: Health | None = None,
) -> None:
    """Publish what an agent says of its bundle, and that it is ready, or what ``health`` says."""
    state = engine = None
    if bundle is not None:
        manifest = bundle.manifest
        state = BundleState(manifest.name, manifest.version, bundle.digest, 0)
        engine = EngineInfo("fake", "a test", slots, 4096, 1000, list(capabilities), 0.0, "none")
    limits = Limits(1, 1, 1, 1, 1, 1, 1)
    info = Info(device.config.device, "edge/v1", list(device.config.groups), {}, {}, limits, state, engine)
    if health is None:
        health = Health(bundle is not None, [] if bundle is not None else ["no_model"], 0, 0)

    def say() -> None:
        device.gateway.info(info)
        device.gateway.health(health)

    device.call(say)


class Stage:
    """``url`` is what clients take as their base URL."""

    def __init__(self, gateway: Gateway, server: Server, devices: Mapping[str, Device], broker: Broker) -> None:
        self.gateway = gateway
        self.server = server
        self.devices = devices
        self.broker = broker
        self.url = f"{server.url}/v1"

    def wait_for_cancelled(self, name: str, count: int = 1) -> None:
        device = self.devices[name]
        device.until(lambda: device.meter.requests.get("cancelled") == count)


@contextmanager
def serving(
    devices: Mapping[str, Device],
    broker: Broker,
    access: Access | None = None,
    *,
    origins: Sequence[str] = (),
    seconds: float = 600.0,
) -> Iterator[Stage]:
    """A gateway that knows what ``devices`` say of themselves."""
    gateway = Gateway(parse_broker(broker.url), ROOT, access or Anybody(), seconds=seconds)
    server = Server(make_app([gateway], origins=origins), listen("127.0.0.1", 0))
    server.start()
    try:
        until(lambda: not gateway.problems(), "the gateway to know the devices")
        yield Stage(gateway, server, devices, broker)
    finally:
        server.stop()
