"""``python -m tests.fleet.simulate --devices N``: N devices on a broker, until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys

from edge_bundle.broker import DEFAULT, parse_broker
from tests.fleet.simulate.device import Behaviour, SimulatedDevice
from tests.fleet.simulate.links import serve


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fleet.simulate", description=__doc__)
    parser.add_argument("--devices", type=int, default=30, metavar="N")
    parser.add_argument("--broker", default=DEFAULT, metavar="URL")
    parser.add_argument("--pace", type=float, default=0.5, metavar="SECONDS", help="how long one phase takes")
    parser.add_argument("--telemetry", type=float, default=10.0, metavar="SECONDS", help="between two samples")
    parser.add_argument("--bad", action="append", default=[], metavar="NAME@VERSION", help="fails its canary")
    parser.add_argument("--slow", action="append", default=[], metavar="NAME@VERSION", help="runs at half the speed")
    arguments = parser.parse_args()
    bundles = {each: Behaviour(fails="CANARY") for each in arguments.bad}
    bundles |= {each: Behaviour(speed=0.5) for each in arguments.slow}
    devices = [
        SimulatedDevice(f"sim-{number}", pace=arguments.pace, bundles=bundles) for number in range(arguments.devices)
    ]
    address = parse_broker(arguments.broker)
    print(f"{len(devices)} devices on {address.name}; Ctrl-C ends them", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(devices, address.host, address.port, telemetry=arguments.telemetry))
    return 0


if __name__ == "__main__":
    sys.exit(main())
