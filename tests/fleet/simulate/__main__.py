"""``python -m tests.fleet.simulate --devices N``: N devices on a broker, until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys

from edge_bundle.broker import add_broker, find_broker
from tests.fleet.simulate.device import Behaviour, SimulatedDevice
from tests.fleet.simulate.links import Faults, serve


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fleet.simulate", description=__doc__)
    parser.add_argument("--devices", type=int, default=30, metavar="N")
    add_broker(parser)
    parser.add_argument("--name", default="sim", metavar="PREFIX", help="devices are PREFIX-0, PREFIX-1, …")
    parser.add_argument("--seed", type=int, default=0, help="of everything that differs between devices")
    parser.add_argument("--pace", type=float, default=0.5, metavar="SECONDS", help="how long one phase takes")
    parser.add_argument("--telemetry", type=float, default=10.0, metavar="SECONDS", help="between two samples")
    parser.add_argument("--requests", type=float, default=1.0, metavar="N", help="requests a second that each answers")
    bundles = parser.add_argument_group("bundles", "NAME@VERSION; may be given several times")
    bundles.add_argument("--bad", action="append", default=[], metavar="BUNDLE", help="fails its canary on the device")
    bundles.add_argument("--slow", action="append", default=[], metavar="BUNDLE", help="runs at half the speed")
    bundles.add_argument("--wrong", action="append", default=[], metavar="BUNDLE", help="answers with something else")
    bundles.add_argument("--crashing", action="append", default=[], metavar="BUNDLE", help="crashes 60 times an hour")
    faults = parser.add_argument_group("faults")
    faults.add_argument(
        "--breaks", type=float, default=0.0, metavar="N", help="connections that break, a device and hour"
    )
    faults.add_argument("--away", type=float, default=5.0, metavar="SECONDS", help="how long one is away then")
    faults.add_argument(
        "--clocks", type=float, default=0.0, metavar="SECONDS", help="clocks are wrong by up to so much"
    )
    faults.add_argument("--drift", type=float, default=0.0, metavar="PPM", help="and go wrong by up to so much")
    faults.add_argument("--source-fails", type=int, default=0, metavar="N", help="downloads fail up to N times first")
    arguments = parser.parse_args()
    devices = make_devices(arguments)
    address = find_broker(arguments)
    print(f"{len(devices)} devices on {address.name}; Ctrl-C ends them", flush=True)
    failing = Faults(arguments.breaks, arguments.away)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(devices, address, telemetry=arguments.telemetry, faults=failing))
    return 0


def make_devices(arguments: argparse.Namespace) -> list[SimulatedDevice]:
    """As the options say; the same for the same ``--seed``."""
    bundles = {each: Behaviour(fails="CANARY") for each in arguments.bad}
    bundles |= {each: Behaviour(speed=0.5) for each in arguments.slow}
    bundles |= {each: Behaviour(says="Bananas, all of them.") for each in arguments.wrong}
    bundles |= {each: Behaviour(crashes_per_hour=60) for each in arguments.crashing}
    numbers = random.Random(arguments.seed)
    return [
        SimulatedDevice(
            f"{arguments.name}-{number}",
            pace=arguments.pace,
            requests_per_second=arguments.requests,
            bundles=bundles,
            source_fails=numbers.randint(0, arguments.source_fails),
            clock_offset=numbers.uniform(-1, 1) * arguments.clocks,
            clock_rate=1 + numbers.uniform(-1, 1) * arguments.drift / 1e6,
        )
        for number in range(arguments.devices)
    ]


if __name__ == "__main__":
    sys.exit(main())
