"""RESOLVE to SEAL as the agent sees them: the job that the installer process gets, and what becomes of its reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from agent.install.desired import (
    DesiredBundle,
    Install,
    OperatorOrder,
    Repair,
    ReplaceRevoked,
    Rollback,
    requested_by,
)
from agent.install.ports import Clock, Serving
from agent.install.process.client import InstallerClient
from agent.install.process.messages import InstallJob, Line, Progressed, Reached, Resolved, ReverifyJob
from agent.install.update.attempt import Attempt
from agent.install.update.state_machine import STEPS, Event
from agent.install.update.step_reporter import StepReporter
from agent.install.update.swap_plan import Needs, plan_swap
from agent.state.audit import AuditRateLimiter
from agent.state.layout import StateDirectory
from agent.worker.settings import WorkerSettings
from contract.causes import Cause
from contract.errors import BundleRefused, EdgeBundleError, EngineFailed, SourceInvalid
from contract.identifiers import Digest


class DownloadStep:
    """Runs the installer for an attempt. ``clock`` gives monotonic seconds."""

    def __init__(
        self,
        installer: InstallerClient,
        reporter: StepReporter,
        audit_limiter: AuditRateLimiter,
        *,
        serving: Serving,
        worker: WorkerSettings,
        clock: Clock,
    ) -> None:
        self._installer = installer
        self._reporter = reporter
        self._audit_limiter = audit_limiter
        self._serving = serving
        self._worker = worker
        self._clock = clock
        self._fetching_since = 0.0

    async def run(self, attempt: Attempt, enter: Callable[[Event], object]) -> Event:
        """Have the target on this disk, sealed; ``enter`` gets the events on the way, what is returned is the last."""
        target = attempt.target
        operator = requested_by(target) == "operator"
        # What this device's own operator asks for is written down in any case.
        suppressed = 0 if operator else self._audit_limiter.suppressed()
        job = job_of(target, self._installer.directory, suppressed_refusals=suppressed)
        try:
            await self._installer.run(job, lambda line: self._hear(attempt, line, enter))
        except BundleRefused as refused:
            if not operator:
                self._audit_limiter.consume()
            return attempt.postpone(refused) if refused.cause is Cause.DEVICE else attempt.refuse(refused)
        except EdgeBundleError as error:
            if isinstance(error, SourceInvalid) and not operator:
                self._audit_limiter.consume()
            return attempt.postpone(error)
        if not operator:
            self._audit_limiter.consume()
        # The previous failure is over.
        self._reporter.error = None
        return Event.SEALED

    def _hear(self, attempt: Attempt, line: Line, enter: Callable[[Event], object]) -> None:
        match line:
            case Resolved():
                attempt.candidate = Digest(line.digest)
                self._fetching_since = self._clock()
                self._reporter.resolved(attempt.target, line)
                if line.min_ram_bytes:
                    needs = Needs(line.min_ram_bytes, line.peak_rss_bytes)
                    self._reporter.swap_planned(plan_swap(self._serving, attempt.target.settings, self._worker, needs))
                enter(Event.RESOLVED)
            case Reached(event) if event not in STEPS:
                raise EngineFailed(f"the installer reported {event}, which only the agent may")
            case Reached(event) if event is not Event.SEALED:
                if event is Event.RESERVED:
                    self._fetching_since = self._clock()
                if event in (Event.FETCHED, Event.PRESENT):
                    self._reporter.fetched(attempt.target, attempt.progressed, self._clock() - self._fetching_since)
                enter(event)
            case Progressed():
                attempt.progress(line)


def job_of(
    target: DesiredBundle, directory: StateDirectory, *, suppressed_refusals: int | None
) -> InstallJob | ReverifyJob:
    """What the installer process is sent for ``target``."""
    state_dir = str(directory.root)
    match target:
        case Rollback() | ReplaceRevoked():
            return ReverifyJob(
                state_dir,
                target.name,
                target.version,
                target.digest,
                allow_epoch=isinstance(target, Rollback) and target.allow_epoch,
                suppressed_refusals=suppressed_refusals,
            )
        case Install() | Repair():
            origin = target.origin if isinstance(target, Install) else None
            return InstallJob(
                state_dir,
                target.name,
                target.version,
                list(target.sources),
                quota_bytes=target.settings.quota_bytes,
                offline_grace=target.settings.offline_grace,
                parallel_fetches=target.settings.parallel_fetches,
                bytes_per_second=target.settings.download_bytes_per_second,
                ignore_quarantine=isinstance(origin, OperatorOrder),
                root=origin.root if isinstance(origin, OperatorOrder) else None,
                suppressed_refusals=suppressed_refusals,
            )
        case _:
            assert_never(target)
