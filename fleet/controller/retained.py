"""Does the broker still hold the wishes? One that was emptied, or restored from an older copy, is given them again."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable

from fleet.ingest.reading import parse_topic, read_desired
from fleet.store import outbox
from fleet.store.database import Database
from fleet.store.leader import Leader

OURS = re.compile(r"ro[0-9]{1,18}\.w[0-9]{1,9}\.a[0-9]{1,9}(\.[a-z]{1,16})?")
"""Revisions that this program makes: one that is not the current wish is an older one of ours, which came too late."""

SETTLE_SECONDS = 3.0
"""After a subscription, until all retained documents came. Too early costs a wish that is sent twice: harmless."""


class Retained:
    """``hear`` and ``begin`` may be called by the connection's thread."""

    def __init__(self, database: Database, leader: Leader, root: str, *, settle: float = SETTLE_SECONDS) -> None:
        self._database = database
        self._leader = leader
        self._root = root
        self._settle = settle
        self._lock = threading.Lock()
        self._held: dict[str, str] = {}
        self._since: float | None = None

    def begin(self, now: float) -> None:
        """What the broker holds is to be found out anew: all of it is coming."""
        with self._lock:
            self._held.clear()
            self._since = now

    def hear(self, topic: str, payload: bytes) -> None:
        """A wish, as the broker holds it."""
        address = parse_topic(topic, self._root)
        if address is not None and address.kind == "desired":
            with self._lock:
                self._held[address.device] = read_desired(payload)

    def check(self, clock: Callable[[], float]) -> list[str]:
        """Mark as unsent what the broker lost; the devices.

        Raises:
            LeadershipLost: somebody else looks. StoreBroken, StoreFull, SourceUnavailable: the database.
        """
        with self._lock:
            if self._since is None or clock() < self._since + self._settle:
                return []
            held = dict(self._held)
            self._since = None
        with self._database.write() as connection:
            self._leader.fence(connection)
            lost = [
                device
                for device, wish in outbox.current(connection).items()
                if wish.payload and _is_lost(held.get(device), wish.revision)
            ]
            outbox.send_again(connection, lost)
        return lost


def _is_lost(held: str | None, revision: str) -> bool:
    """Somebody else's wish stays: they meant it."""
    return held is None or (held != revision and OURS.fullmatch(held) is not None)
