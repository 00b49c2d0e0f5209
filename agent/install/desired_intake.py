"""Takes in ``desired`` documents: the latest that can be followed becomes the target, others are reported.

Whatever is wrong with a document, or fails while it is taken in, the next one is heard: a broker keeps it and sends it
again at every connection and every start.
"""

from __future__ import annotations

import asyncio
import logging

from agent.install.desired import read_desired, revision_in
from agent.install.planner import Planner
from agent.install.reporter import reported_error
from agent.install.settings import InstallConfig
from agent.install.update.runner import UpdateRunner
from agent.install.update.state_machine import State
from agent.install.update.step_reporter import StepReporter
from agent.state.installation import InstallationState
from contract.errors import BundleRefused, StoreBroken, StoreFull
from contract.mqtt.faults import ReportedError

log = logging.getLogger("edge_agent.install")

DEBOUNCE_SECONDS = 0.2
"""A new desired document is read at most this often: a flood costs one read per interval."""

RECORD_RETRY_SECONDS = 2.0
"""A desired document that could not be recorded is tried again after this time."""


class DesiredIntake:
    """``receive`` may be called at any time in the event loop; ``changed`` is set when there is another target."""

    def __init__(
        self,
        *,
        state: InstallationState,
        config: InstallConfig,
        reporter: StepReporter,
        planner: Planner,
        runner: UpdateRunner,
        changed: asyncio.Event,
    ) -> None:
        self._store = state
        self._settings, self._sources = config.settings, config.sources
        self._reporter = reporter
        self._planner = planner
        self._runner = runner
        self._changed = changed
        self._arrived = asyncio.Event()
        self._pending: bytes | None = None
        self._asked_again = False
        self._rejected: tuple[str | None, ReportedError] | None = None
        self._unlisted_in: dict[str, int] | None = None

    def receive(self, payload: bytes, *, repeated: bool) -> None:
        """A document arrived; only the latest counts. ``repeated``: it is the broker's retained copy."""
        self._pending = payload
        self._asked_again = self._asked_again or not repeated
        self._arrived.set()

    async def run(self) -> None:
        """Take in what arrives, until cancelled."""
        last_error = ""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            payload, self._pending = self._pending, None
            asked, self._asked_again = self._asked_again, False
            if payload is not None:
                try:
                    self._consider(payload, again=asked)
                except (StoreBroken, StoreFull) as error:
                    if error.message != last_error:
                        log.warning("a desired document could not be recorded: %s", error.message)
                    last_error = error.message
                    self._pending = self._pending or payload
                    self._asked_again = self._asked_again or asked
                    self._arrived.set()
                    self._reporter.error = reported_error(error)
                    self._reporter.publish()
                    await asyncio.sleep(RECORD_RETRY_SECONDS)
                except Exception:
                    self._reporter.fault()
            await asyncio.sleep(DEBOUNCE_SECONDS)

    def follow_recorded(self) -> None:
        """After a start, the document that was accepted last is the target again.

        Raises:
            StoreBroken, StoreFull.
        """
        snapshot = self._store.snapshot()
        if snapshot.desired is None or snapshot.overridden:
            return
        try:
            self._reporter.revision = revision_in(snapshot.desired)
            self._adopt(snapshot.desired)
        except (StoreBroken, StoreFull):
            raise
        except Exception:
            # It is stored, so it would keep every start from coming through.
            self._planner.adopt(None)
            self._reporter.fault()

    def was_unlisted(self) -> None:
        """The desired bundle is not listed by the metadata that there is."""
        self._unlisted_in = self._store.role_versions()

    def retry_unlisted(self) -> None:
        """If newer metadata has arrived since, try it once more: a cache may have lagged the publisher."""
        if self._unlisted_in is None or self._unlisted_in == self._store.role_versions():
            return
        self._unlisted_in = None
        snapshot = self._store.snapshot()
        if self._planner.target is None and snapshot.desired is not None and not snapshot.overridden:
            self._adopt(snapshot.desired)
            self._changed.set()

    def report_rejected(self) -> None:
        """The target is active, but the broker may retain a later document that was refused."""
        if self._rejected is not None:
            self._reporter.revision, self._reporter.error = self._rejected
            self._reporter.publish()

    def _consider(self, payload: bytes, *, again: bool) -> None:
        snapshot = self._store.snapshot()
        rejected, self._rejected = self._rejected, None
        if payload == (snapshot.desired or b""):
            idle = self._runner.state is State.IDLE
            unfinished = self._planner.target is not None or self._reporter.error is not None
            if (again or rejected is not None) and unfinished and payload and not snapshot.overridden and idle:
                self._try_now(payload)
            elif rejected is not None:
                # What was wrong with the document before is over.
                self._reporter.revision, self._reporter.error = revision_in(payload), None
            self._reporter.publish()
            return
        try:
            read_desired(payload, self._settings, self._sources)
        except BundleRefused as refused:
            self._reject(payload, refused)
            return
        self._store.record_desired(payload or None)
        self._adopt(payload)
        if not payload:
            self._planner.withdraw()
        self._runner.supersede("desired")
        self._changed.set()

    def _try_now(self, payload: bytes) -> None:
        """The same document was published again: neither wait for the next attempt, nor take the last refusal for
        final.
        """
        if self._planner.target is None:
            self._adopt(payload)
        self._runner.backoff.reset()
        self._planner.try_now()
        self._changed.set()

    def _adopt(self, payload: bytes) -> None:
        """Make an accepted document the target."""
        try:
            target = read_desired(payload, self._settings, self._sources)
        except BundleRefused as refused:
            # It was accepted under an older configuration.
            self._planner.adopt(None)
            self._reject(payload, refused)
            return
        self._planner.adopt(target)
        self._runner.backoff.reset()
        self._unlisted_in = None
        if target is None:
            self._reporter.begin(None)

    def _reject(self, payload: bytes, refused: BundleRefused) -> None:
        """Report it; a target that is being installed goes on, since whoever sent this may not be its author."""
        self._reporter.document_refused(revision_in(payload), refused)
        if self._runner.state is State.IDLE:
            waiting = self._reporter.waiting
            self._reporter.begin(revision_in(payload))
            self._reporter.waiting = waiting
        self._reporter.error = reported_error(refused)
        self._rejected = (revision_in(payload), self._reporter.error)
        self._reporter.publish()
