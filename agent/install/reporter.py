"""Composes ``reported`` from what is recorded and what is going on, and keeps progress from flooding the broker."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from msgspec import UNSET

from agent.install.ports import Clock
from agent.install.process.messages import Progressed
from agent.install.update.state_machine import State
from agent.state.installation import InstallationState, InstalledBundle
from agent.telemetry.installs import InstallMeter
from contract.errors import EdgeBundleError, EngineFailed, StoreBroken, StoreFull
from contract.identifiers import Digest
from contract.mqtt.faults import MAX_FIELD, MAX_MESSAGE, ReportedError, fault_details
from contract.mqtt.reports import BundleState, PlannedSwap, Probation, Progress, Reported, Waiting
from contract.mqtt.topics import EventType
from contract.reasons import Reason

log = logging.getLogger("edge_agent.install")

PROGRESS_INTERVAL_SECONDS = 1.0
"""Progress is published this often at most: it is for people."""

FAULT = EngineFailed("the device failed at this document; its log says why", reason=Reason.INTERNAL_ERROR)

OnReported = Callable[[Reported], None]
OnEvent = Callable[[EventType, dict[str, Any]], None]


def reported_error(error: EdgeBundleError) -> ReportedError:
    """The form of an error in ``reported``."""
    return ReportedError(
        reason=error.reason or Reason.INTERRUPTED,
        message=error.message[:MAX_MESSAGE],
        field=UNSET if error.field is None else error.field[:MAX_FIELD],
        details=fault_details(error.details),
    )


def retry_error(error: EdgeBundleError, delay: float) -> ReportedError:
    """The form in ``reported`` of an error after which the device tries again in ``delay`` seconds."""
    return msgspec.structs.replace(
        reported_error(error),
        message=f"{error.message}; retrying in {delay_text(delay)}",
        retry_in_seconds=round(delay, 1),
    )


def _retried(error: ReportedError | None) -> ReportedError | None:
    """``error`` while the next attempt is under way."""
    if error is None or error.retry_in_seconds is UNSET:
        return error
    return msgspec.structs.replace(
        error, message=error.message.rpartition("; retrying in ")[0] + "; retrying now", retry_in_seconds=0.0
    )


def delay_text(seconds: float) -> str:
    """A wait, for people."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


class Reporter:
    """Reports what the device does about its target. ``active`` is the committed bundle: what a restart returns to."""

    def __init__(
        self,
        state: InstallationState,
        on_reported: OnReported,
        on_event: OnEvent,
        clock: Clock,
    ) -> None:
        self._store = state
        self._on_event = on_event
        self._clock = clock
        self._phase = State.IDLE
        self._progress: Progress | None = None
        self._probation: Probation | None = None
        self._progress_published_at = float("-inf")
        self._last_published: Reported | None = None
        self.meter = InstallMeter()
        self.observers: list[OnReported] = [on_reported]
        self.revision: str | None = None
        self.error: ReportedError | None = None
        self.queue_pause_ms: float | None = None
        self.swap: PlannedSwap | None = None
        self.waiting: Waiting | None = None

    @property
    def current(self) -> Reported:
        """What is reported now."""
        snapshot = self._store.snapshot()
        return Reported(
            revision=self.revision,
            phase=self._phase.value,
            progress=self._progress,
            active=self._bundle(snapshot.active),
            previous=self._bundle(snapshot.previous),
            adapters=[bundle.reported for bundle in self._store.adapters_of(snapshot.active)] or UNSET,
            error=self.error,
            queue_pause_ms=UNSET if self.queue_pause_ms is None else self.queue_pause_ms,
            desired=snapshot.followed or UNSET,
            warnings=self._warnings() or UNSET,
            probation=self._probation or UNSET,
            swap=self.swap or UNSET,
            waiting=self.waiting or UNSET,
        )

    def _warnings(self) -> list[ReportedError]:
        found = [ReportedError(each.reason, each.message) for each in self._store.warning_store.warnings()]
        unwritable = self._store.unwritable
        if unwritable is not None:
            text = "results are kept in memory only and nothing is installed until that is resolved"
            found.append(ReportedError(unwritable.reason or Reason.STORE_BROKEN, f"{unwritable.message}: {text}"))
        unread = self._store.set_aside()
        if unread:
            sources = ", ".join(sorted({each.source for each in unread}))
            text = f"rows of state.db that could not be read were set aside, the rest is used: {sources}"
            found.append(ReportedError(Reason.STORED_DATA_INVALID, text))
        return found

    def _bundle(self, digest: Digest | None) -> BundleState | None:
        bundle: InstalledBundle | None = self._store.bundle(digest)
        return None if bundle is None else bundle.reported

    def begin(self, revision: str | None, *, again: bool = False) -> None:
        """Work on a target begins, and the report on the one before is over; ``again``: it is the same one, and why it
        failed stays until that is over.
        """
        self.revision = revision
        self.queue_pause_ms = self._progress = self.swap = self.waiting = None
        self.error = _retried(self.error) if again else None

    def held(self, revision: str | None, waiting: Waiting) -> None:
        """The target waits for its time; reported with the phase ``IDLE``."""
        self.begin(revision)
        self.waiting = waiting

    def phase(self, state: State) -> None:
        """Another state was entered."""
        self._phase = state
        self._probation = None
        if state is State.IDLE:
            self._progress = self.swap = None
        self.publish()

    def progress(self, line: Progressed) -> None:
        """Bytes arrived; reported at most once a second."""
        left = UNSET if line.seconds_left is None else line.seconds_left
        self._progress = Progress(done=line.done, total=line.total, reused=line.reused, seconds_left=left)
        if self._clock() - self._progress_published_at >= PROGRESS_INTERVAL_SECONDS:
            self._progress_published_at = self._clock()
            self.publish()

    def probation(self, probation: Probation) -> None:
        """The candidate serves, and is watched; reported at most once a second."""
        self._probation = probation
        if self._clock() - self._progress_published_at >= PROGRESS_INTERVAL_SECONDS:
            self._progress_published_at = self._clock()
            self.publish()

    def publish(self) -> None:
        """Report, unless it is what was reported last."""
        current = self.current
        if current != self._last_published:
            self._last_published = current
            for observer in list(self.observers):
                observer(current)

    @property
    def reasons(self) -> list[str]:
        """Reason codes of what keeps the state from being recorded or was not readable in it."""
        unwritable = self._store.unwritable
        own = [] if unwritable is None else [str(unwritable.reason)]
        return own + ([str(Reason.STORED_DATA_INVALID)] if self._store.set_aside() else [])

    @contextmanager
    def observed(self, observer: OnReported) -> Iterator[None]:
        """``observer`` is called with what is reported, too, while the block runs."""
        self.observers.append(observer)
        try:
            yield
        finally:
            self.observers.remove(observer)

    def set_aside(self) -> None:
        """Report what of the state could not be read, once."""
        try:
            found = self._store.newly_set_aside()
        except (StoreBroken, StoreFull):
            # Then at a start when it can be recorded that it was reported.
            return
        for each in found:
            text = f"{each.source} of state.db was set aside: {each.reason}"
            log.warning("%s", text)
            self.event("refused", {"bundle": None, "reason": Reason.STORED_DATA_INVALID, "message": text})

    def fault(self) -> None:
        """Report the exception that is being handled, and go on."""
        log.exception("the installation failed by a fault of this agent")
        self.error = reported_error(FAULT)
        try:
            self.publish()
        except Exception:
            log.exception("it cannot be reported")

    def event(self, kind: EventType, detail: dict[str, Any]) -> None:
        self._on_event(kind, detail)
