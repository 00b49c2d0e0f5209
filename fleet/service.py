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

RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0)
"""Before the next attempt, where broker or database are away."""

PRUNE_SECONDS = 3600.0

LOOK_SECONDS = 120.0
"""Between two looks at everything that the broker retains. NATS was seen not to send what is published in the 50 ms in
which a subscription is made, and loses what it retains without ending connections; 10,000 devices are 20 MB a look.
"""

NOT_RETAINED = ("/telemetry/llm", "/telemetry/system", "/event/+")

RESEND_SECONDS = 60.0
"""Until a device that is there, and does not follow the wish that the broker holds for it, is sent it again: the same
revision, which has no effect where it was heard.
"""


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
        holder = f"{socket.gethostname()}:{os.getpid()}"
        self._leader = Leader(database, holder)
        self._writer = Leader(database, holder, "ingest")
        self._inbox = Inbox(root, self._wake.set)
        self._collector = Collector(database, self._writer.fence)
        self._canary = CanaryRunner(address, root, self._note_score, clock)
        self._reconciler = Reconciler(database, self._leader, clock, self._canary.look)
        self._publisher = Publisher(database, self._leader, root, clock)
        self._retained = Retained(database, self._leader, root, settle=settle)
        self._settle = settle
        self._look_at = 0.0
        self._leading = 0
        self._writing = 0
        self._pruned = 0.0
        self._resent = 0.0
        self.trouble = ""
        """What is away now."""

    @property
    def leads(self) -> bool:
        """Whether this process decides about rollouts."""
        return self._leader.held

    @property
    def writes(self) -> bool:
        """Whether this process writes what devices say."""
        return self._writer.held

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
                    self.trouble = ""
                    wait = INTERVAL_SECONDS
                except LeadershipLost as lost:
                    log.warning("leads no more: %s", lost)
                    wait = INTERVAL_SECONDS
                except EdgeBundleError as error:
                    wait = RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)]
                    log.warning("%s; next attempt in %.0f s", error.message, wait)
                    self.trouble = error.message
                    failures += 1
                self._wait(wait, urgent=not failures)
        finally:
            self._canary.close()
            self._let_go()
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
        self._look_again()
        if "ingest" in self._roles:
            self._store()
        assert self._session is not None
        if not self._session.connected:
            # Another process may have a connection: to another node, or from another place.
            self._let_go()
            raise SourceUnavailable(f"the broker {self._address.name} is away")
        if "controller" in self._roles:
            self._control()

    def _let_go(self) -> None:
        self._leader.release()
        self._writer.release()

    def _connect(self) -> None:
        if self._session is not None:
            return
        session = BrokerSession(
            self._address, f"fleet-{secrets.token_hex(6)}", on_message=self._hear, on_reconnect=self._connected
        )
        try:
            self._connected()
            session.subscribe(*self._filters)
        except BaseException:
            session.close()
            raise
        self._session = session
        log.info("connected to the broker %s", self._address.name)

    @property
    def _filters(self) -> list[str]:
        device = Topics("any", self._root).status.removesuffix("/any/status")
        return [f"{device}/+/{each}" for each in (FILTERS if "ingest" in self._roles else ("desired",))]

    def _connected(self) -> None:
        """Called by the connection's thread, too."""
        self._look_at = self._clock() + self._settle

    def _look_again(self) -> None:
        """Have all retained documents sent again, once after a connect and then now and then."""
        assert self._session is not None
        if self._clock() < self._look_at or not self._session.connected:
            return
        self._look_at = self._clock() + LOOK_SECONDS
        self._retained.begin(self._clock())
        retained = [each for each in self._filters if not each.endswith(NOT_RETAINED)]
        self._session.subscribe(*retained)

    def _hear(self, message: Message) -> None:
        self._retained.hear(message.topic, message.payload)
        if "ingest" in self._roles:
            self._inbox.put(message.topic, message.payload, retained=message.retained, now=self._clock())

    def _store(self) -> None:
        """Write what was heard; where another process does, keep the last of it for the case that this one has to."""
        assert self._session is not None
        if not self._writer.held and not self._session.connected:
            return
        if not self._writer.acquire(self._clock()):
            return
        self._writer.confirm()
        batch = self._inbox.take()
        if self._writing != self._writer.epoch:
            batch.settle()
        try:
            self._collector.store(batch, self._clock())
        except (EdgeBundleError, LeadershipLost):
            # Retained documents come once: they are kept until they are written.
            self._inbox.put_back(batch)
            raise
        if self._writing != self._writer.epoch:
            self._writing = self._writer.epoch
            log.info("writes what devices say, epoch %d", self._writing)
        if self._clock() > self._pruned + PRUNE_SECONDS:
            self._pruned = self._clock()
            with self._database.write() as connection:
                counters.prune(connection, self._clock())

    def _control(self) -> None:
        if not self._leader.acquire(self._clock()):
            return
        if self._leading != self._leader.epoch:
            self._leading = self._leader.epoch
            log.info("leads, epoch %d", self._leading)
        self._leader.confirm()
        assert self._session is not None
        if lost := self._retained.check(self._clock):
            log.warning("the broker has lost the wishes for %d devices; they are sent again", len(lost))
        self._reconciler.run()
        if self._clock() > self._resent + RESEND_SECONDS:
            self._resent = self._clock()
            if unheard := self._publisher.send_unheard_again(self._clock() - RESEND_SECONDS):
                log.warning(
                    "%d devices are there and do not follow what is desired of them, which is sent again", unheard
                )
        self._publisher.send(self._session)
