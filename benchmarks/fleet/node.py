"""``python -m benchmarks.fleet.node``: how long nothing can be published after one of three nodes of NATS was killed.

A service and a client of ours (:class:`edge_bundle.broker_session.BrokerSession`) publish at QoS 1, one message after
the other: one of them over the node that is killed, the other one over another node. ``--kills`` times each node in
turn is killed and started again; told is how long each of the two had to wait for its next acknowledgement: the second
one for the election that the nodes hold, the first one for that and for its way to another node.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.fleet.pages import processor
from contract.errors import SourceUnavailable
from edge_bundle.broker import parse_broker
from edge_bundle.broker_session import BrokerSession
from tests.nats import Nats, NatsCluster

PAUSE_SECONDS = 0.05
LONGEST_SECONDS = 300.0
"""What takes longer is told as that."""

SETTLE_SECONDS = 5.0
"""Between two kills, in which nothing is missing."""


class Publisher:
    """Publishes without an end, over ``nodes`` in their order."""

    def __init__(self, name: str, nodes: list[Nats]) -> None:
        address = parse_broker("mqtt://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes))
        self._session = BrokerSession(address, name)
        self._topic = f"edge/bench/{name}"
        self.last = time.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._session.publish(self._topic, b"x", retain=True)
            except SourceUnavailable:
                continue
            self.last = time.monotonic()
            self._stopping.wait(PAUSE_SECONDS)

    def wait_from(self, moment: float) -> float:
        """Seconds from ``moment`` until something that was published after it was acknowledged."""
        while self.last < moment + 2 * PAUSE_SECONDS:
            if time.monotonic() > moment + LONGEST_SECONDS:
                return LONGEST_SECONDS
            time.sleep(0.01)
        return self.last - moment

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._session.close()


def outage(cluster: NatsCluster, number: int) -> tuple[float, float]:
    """Kill one node; seconds without an acknowledgement over another one, and over the killed one."""
    killed = cluster.nodes[number]
    others = [each for each in cluster.nodes if each is not killed]
    beside, over = Publisher("beside", others), Publisher("over", [killed, *others])
    try:
        time.sleep(SETTLE_SECONDS)
        killed.kill()
        moment = time.monotonic()
        waits = [0.0, 0.0]

        def wait(at: int, publisher: Publisher) -> None:
            waits[at] = publisher.wait_from(moment)

        threads = [threading.Thread(target=wait, args=each) for each in ((0, beside), (1, over))]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        return waits[0], waits[1]
    finally:
        beside.close()
        over.close()
        cluster.start()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet.node", description=__doc__)
    parser.add_argument("--kills", type=int, default=12)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        cluster = NatsCluster(Path(directory))
        cluster.start()
        try:
            found = [outage(cluster, number % 3) for number in range(arguments.kills)]
        finally:
            cluster.remove()
    print(f"{arguments.kills} kills of one of three nodes, {processor()}; load {os.getloadavg()[0]:.1f}")
    for name, each in (("over another node", [a for a, _ in found]), ("over the killed one", [b for _, b in found])):
        print(f"  {name:<20} median {statistics.median(each):.1f} s, longest {max(each):.1f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
