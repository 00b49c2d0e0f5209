"""What was found out about the broker and must not be found out again after a restart: ``broker.json``.

A file beside ``state.db``, since nothing depends on it: one that is missing, spoiled or of another broker is as good as
none.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
from msgspec import Struct

from contract.errors import StoreBroken, StoreFull
from contract.system.durable import Disk

log = logging.getLogger("edge_agent.mqtt")

MAX_BYTES = 1 << 16
"""A few numbers and an address."""


class BrokerFacts(Struct, frozen=True):
    """``broker``: which one, as configured. ``refused_bytes``: messages of this size cut connections, found ``times``
    times, last at ``found_at`` (Unix seconds).
    """

    broker: str
    refused_bytes: int | None = None
    found_at: float = 0.0
    times: int = 1


class BrokerMemory:
    """``broker`` identifies the broker and how it is reached: what was found of another one says nothing."""

    def __init__(self, path: Path, broker: str, disk: Disk | None = None) -> None:
        self._path = path
        self._broker = broker
        self._disk = disk or Disk()

    def load(self) -> BrokerFacts:
        """What is known."""
        try:
            with self._path.open("rb") as file:
                found = msgspec.json.decode(file.read(MAX_BYTES), type=BrokerFacts)
        except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
            return BrokerFacts(self._broker)
        positive = found.times > 0 and (found.refused_bytes is None or found.refused_bytes > 0)
        usable = found.broker == self._broker and positive
        return found if usable else BrokerFacts(self._broker)

    def save(self, refused_bytes: int | None, found_at: float = 0.0, times: int = 1) -> None:
        """Remember it; what the disk does not take is found out again."""
        facts = BrokerFacts(self._broker, refused_bytes, found_at, times)
        try:
            self._disk.write_file(self._path, msgspec.json.encode(facts), 0o600)
        except (StoreFull, StoreBroken) as error:
            log.warning("what was learned about the broker could not be stored: %s", error.message)
