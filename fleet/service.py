"""The service: one loop that stores what was heard, decides, and sends. Its roles may be spread over processes."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Collection
from typing import Literal

from contract.errors import EdgeBundleError, SourceUnavailable
from contract.mqtt.topics import Topics
from edge_bundle.broker import BrokerAddress
from edge_bundle.broker_session import BrokerSession, Message
from fleet.controller.canary import CanaryRunner
from fleet.controller.publisher import Publisher
from fleet.controller.reconciler import Reconciler
from fleet.controller.retained import SETTLE_SECONDS, Retained
from fleet.ingest.collector import Collector
from fleet.ingest.inbox import Inbox
from fleet.ingest.reading import FILTERS
from fleet.rollout.canary import Score
from fleet.rollout.probing import Probe
from fleet.store import canary, counters
from fleet.store.database import Database
from fleet.store.leader import Leader, LeadershipLost

log = logging.getLogger("edge_fleet")

Role = Literal["controller", "ingest", "web", "gateway"]
ROLES: tuple[Role, ...] = ("controller", "ingest", "web", "gateway")
LOOP_ROLES: tuple[Role, ...] = ("controller", "ingest")
"""Those that :class:`Service` plays; the others answer HTTP (:mod:`fleet.http`)."""

INTERVAL_SECONDS = 1.0
"""Between two turns, unless something urgent comes: deadlines and bakes are minutes."""

LEAST_INTERVAL_SECONDS = 0.1
"""Between two turns, whatever comes: a flood must not make us decide all the time."""

RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Before the next attempt, where broker or database are away."""

PRUNE_SECONDS = 3600.0


class Service:
    """``clock`` gives Unix seconds. :meth:`run` returns after :meth:`stop`."""

    def __init__(
        self,
        database: Database,
        address: BrokerAddress,
        root: str,
        roles: Collection[Role] = LOOP_ROLES,
        *,
        clock: Callable[[], float] = time.time,
        settle: float = SETTLE_SECONDS,
    ) -> None:
        self._database = database
        self._address = address
        self._root = root
        self._roles = roles
        self._clock = clock
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._session: BrokerSession | None = None
        self._leader = Leader(database, f"{socket.gethostname()}:{os.getpid()}")
        self._inbox = Inbox(root, self._wake.set)
        self._collector = Collector(database)
        self._canary = CanaryRunner(address, root, self._note_score, clock)
        self._reconciler = Reconciler(database, self._leader, clock, self._canary.look)
        self._publisher = Publisher(database, self._leader, root, clock)
        self._retained = Retained(database, self._leader, root, settle=settle)
        self._leads = False
        self._pruned = 0.0

    def stop(self) -> None:
        """Let :meth:`run` end; may be called by a signal handler."""
        self._stopping.set()
        self._wake.set()

    def run(self) -> None:
        """Serve until :meth:`stop`. Whatever is away is waited for: devices go on without us."""
        failures = 0
        try:
            while not self._stopping.is_set():
                try:
                    self._turn()
                    failures = 0
                    wait = INTERVAL_SECONDS
                except LeadershipLost as lost:
                    log.warning("leads no more: %s", lost)
                    self._leads = False
                    wait = INTERVAL_SECONDS
                except EdgeBundleError as error:
                    wait = RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)]
                    log.warning("%s; next attempt in %.0f s", error.message, wait)
                    failures += 1
                self._wait(wait, urgent=not failures)
        finally:
            self._canary.close()
            self._leader.release()
            if self._session is not None:
                self._session.close()

    def _note_score(self, probe: Probe, score: Score) -> None:
        with self._database.write() as connection:
            canary.note(connection, probe.rollout, probe.device, probe.attempt, score)
        self._wake.set()

    def _wait(self, seconds: float, *, urgent: bool) -> None:
        if urgent:
            self._wake.wait(seconds)
            # What comes at once is taken together.
            self._stopping.wait(LEAST_INTERVAL_SECONDS)
        else:
            self._stopping.wait(seconds)
        self._wake.clear()

    def _turn(self) -> None:
        self._connect()
        if "ingest" in self._roles:
            self._store()
        if "controller" in self._roles:
            self._control()

    def _connect(self) -> None:
        if self._session is not None:
            return
        session = BrokerSession(
            self._address,
            f"fleet-{secrets.token_hex(6)}",
            on_message=self._hear,
            on_reconnect=lambda: self._retained.reconnected(self._clock()),
        )
        try:
            self._retained.reconnected(self._clock())
            device = Topics("any", self._root).status.removesuffix("/any/status")
            filters = FILTERS if "ingest" in self._roles else ("desired",)
            session.subscribe(*(f"{device}/+/{each}" for each in filters))
        except BaseException:
            session.close()
            raise
        self._session = session
        log.info("connected to the broker %s", self._address.name)

    def _hear(self, message: Message) -> None:
        self._retained.hear(message.topic, message.payload)
        if "ingest" in self._roles:
            self._inbox.put(message.topic, message.payload, retained=message.retained, now=self._clock())

    def _store(self) -> None:
        batch = self._inbox.take()
        try:
            self._collector.store(batch, self._clock())
        except EdgeBundleError:
            # Retained documents come once: they are kept until they are written.
            self._inbox.put_back(batch)
            raise
        if self._clock() > self._pruned + PRUNE_SECONDS:
            self._pruned = self._clock()
            with self._database.write() as connection:
                counters.prune(connection, self._clock())

    def _control(self) -> None:
        if not self._leader.acquire(self._clock()):
            return
        if not self._leads:
            self._leads = True
            log.info("leads, epoch %d", self._leader.epoch)
        self._leader.confirm()
        assert self._session is not None
        if lost := self._retained.check(self._clock):
            log.warning("the broker has lost the wishes for %d devices; they are sent again", len(lost))
        self._reconciler.run()
        if not self._session.connected:
            raise SourceUnavailable(f"the broker {self._address.name} is away")
        self._publisher.send(self._session)
