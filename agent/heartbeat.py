"""Feeding the watchdog while every part of the agent goes on, and trying a store that failed again."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from agent.host import facts as host
from agent.mqtt import MAX_TURN_SECONDS
from agent.operator.control import ControlServer
from agent.parts import Parts
from agent.presence import Presence
from agent.state.layout import StateDirectory
from agent.systemd.liveness import LAG_SECONDS, Liveness
from agent.systemd.notify import Notifier
from contract.errors import StoreBroken, StoreFull
from contract.mqtt.requests import MAX_REQUEST_BYTES

log = logging.getLogger("edge_agent")

TURNS_MISSED = 3
"""So many rounds of a part may fail to come before it counts as stalled."""

STALLS_MISSED = 2.0
"""A worker silent for so many times what it is allowed was not ended by whoever watches it: then we are at fault."""

SAMPLE_SECONDS = 20.0
"""A sample on a box that swaps."""

HEARTBEAT_SECONDS = 10.0
"""The watchdog is fed at least this often."""


class Heartbeat:
    """Of one agent; the telemetry loop beats by :meth:`note`, the connection is looked at here."""

    def __init__(
        self, parts: Parts, presence: Presence, control: ControlServer, directory: StateDirectory, notifier: Notifier
    ) -> None:
        self._parts = parts
        self._presence = presence
        self._control = control
        self._directory = directory
        self._notifier = notifier
        self._restoring: asyncio.Task[None] | None = None
        self.liveness = Liveness()

    def expect(self) -> None:
        """From now on every part must go on."""
        now = asyncio.get_running_loop().time()
        self.liveness.expect("mqtt", TURNS_MISSED * MAX_TURN_SECONDS, now)
        self.liveness.expect("telemetry", TURNS_MISSED * (self._parts.telemetry.interval + SAMPLE_SECONDS), now)

    def note(self, part: str) -> None:
        """``part`` goes on."""
        self.liveness.beat(part, asyncio.get_running_loop().time())

    async def run(self) -> None:
        """Feed the watchdog, but only while every part of us goes on; until cancelled."""
        period = min(HEARTBEAT_SECONDS, (self._notifier.watchdog_seconds or 2 * HEARTBEAT_SECONDS) / 2)
        clock = asyncio.get_running_loop().time
        connection = self._parts.frontend.gateway.connection
        turns, due = -1, clock()
        while True:
            if clock() - due > LAG_SECONDS:
                log.warning("the event loop was held up for %.1f s", clock() - due)
            if connection.turns != turns:
                turns = connection.turns
                self.note("mqtt")
            stalled = self.liveness.stalled(clock()) + self._stalled_workers()
            if stalled:
                log.error("%s made no progress; the watchdog is not fed", " and ".join(stalled))
            else:
                self._notifier.progress()
            self._probe_store()
            self._presence.publish()
            due = clock() + period
            await asyncio.sleep(period)

    async def restored(self) -> None:
        """Wait for a restoration of the state that goes on: what runs in its thread ends by itself, with the file or
        with the copy.
        """
        if self._restoring is not None:
            await asyncio.gather(self._restoring, return_exceptions=True)

    def _stalled_workers(self) -> list[str]:
        """Those that should have been ended for their silence long ago, and were not."""
        return [
            f"the worker of {replica.bundle.manifest.reference}"
            for replica in self._parts.frontend.serving.replicas
            if replica.worker is not None and replica.worker.silence > STALLS_MISSED
        ]

    def _probe_store(self) -> None:
        """A store that failed is tried again once a request fits."""
        if self._parts.state.unwritable is not None:
            if self._restoring is None or self._restoring.done():
                # Not in this task: a disk that hangs must not keep the watchdog from being fed.
                self._restoring = asyncio.create_task(self._restore_state(), name="restoring the state")
            return
        with contextlib.suppress(StoreBroken):
            if host.disk_available(self._directory.root) >= MAX_REQUEST_BYTES:
                self._parts.frontend.serving.probe_store()

    async def _restore_state(self) -> None:
        """Record everything again, if that is possible now."""
        try:
            await asyncio.to_thread(self._parts.state.restore)
        except (StoreBroken, StoreFull) as error:
            log.debug("the state cannot be written yet: %s", error.message)
            return
        log.info("the state can be written again: results are stored and the desired state is followed as usual")
        if not self._control.listening:
            await self._control.start()
        await self._parts.frontend.serving.recover_rest()
        self._parts.reconciler.recovered()
        self._presence.publish()
