"""A broker and devices for the tests of a client in another language: a process that takes one order a line.

It prints a line of JSON once everything is up (``mqtt``, ``ws``: URLs), and ``{}`` after each order:
``restart broker``, ``stop DEVICE``, ``release`` (answers that hold go on), ``cancelled DEVICE N`` (answered once the
device has counted so many requests that were cancelled). It ends when its input does.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from agent.config import AgentConfig
from agent.mqtt.settings import BrokerSettings
from contract.mqtt.device import Health
from tests.agent.device import Device, sealed
from tests.agent.worker.double import FakeWorkers
from tests.broker import Broker, free_port


async def no_model(device: Device) -> None:
    device.gateway.health(Health(False, ["no_model"], 0, 0))


async def release(device: Device) -> None:
    for worker in device.workers.started:
        worker.let_go()


def wait_for_cancelled(device: Device, count: int) -> None:
    device.until(lambda: device.meter.requests.get("cancelled") == count)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        web = free_port()
        broker = Broker(Path(directory) / "broker", settings=f"listener {web} 127.0.0.1\nprotocol websockets\n")
        broker.start()
        devices: dict[str, Device] = {}
        for name, bundle in (("kitchen-1", sealed()), ("kitchen-2", sealed()), ("empty-1", None)):
            config = AgentConfig(
                device=name, state_dir=Path(directory) / name, groups=["kitchens"] if bundle else [],
                broker=BrokerSettings(host="127.0.0.1", port=broker.port),
            )  # fmt: skip
            config.state_dir.mkdir()
            devices[name] = Device(config, config.state_dir / "state.db", FakeWorkers()).start(bundle, settle=False)
            if bundle is None:
                devices[name].run(no_model(devices[name]))
        print(json.dumps({"mqtt": broker.url, "ws": f"ws://127.0.0.1:{web}"}), flush=True)
        try:
            for order in map(str.split, sys.stdin):
                match order:
                    case ["restart", "broker"]:
                        broker.kill()
                        broker.start()
                    case ["stop", name]:
                        devices.pop(name).stop()
                    case ["cancelled", name, count]:
                        wait_for_cancelled(devices[name], int(count))
                    case ["release"]:
                        for device in devices.values():
                            device.run(release(device))
                print("{}", flush=True)
        finally:
            for device in devices.values():
                device.stop()
            broker.stop()


if __name__ == "__main__":
    main()
