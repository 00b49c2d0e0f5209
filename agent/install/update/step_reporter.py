"""How an installation went, for those who follow it (events), for those who look back (``audit.jsonl``), and for those
who read the log: one line for each step of a bundle's life, with the step's name and what was measured in its fields.
"""

from __future__ import annotations

import logging

from agent.install.desired import DesiredBundle, RequestedBy, Rollback, requested_by, revision_of
from agent.install.ports import Clock, SealedBundle, ServingCounters, SwapReport
from agent.install.process.messages import Progressed, Resolved
from agent.install.reporter import OnEvent, OnReported, Reporter, reported_error, retry_error
from agent.install.settings import InstallSettings
from agent.install.update.canary import CanaryPassed
from agent.state.audit import AuditLog, AuditRateLimiter, suppressed_text
from agent.state.installation import Failure, InstallationState, InstalledBundle
from agent.systemd.journal import fields
from contract.errors import BundleRefused, EdgeBundleError
from contract.identifiers import Digest
from contract.mqtt.faults import ReportedError
from contract.mqtt.reports import PlannedSwap
from contract.reasons import Reason

log = logging.getLogger("edge_agent.install")


class StepReporter(Reporter):
    """One method for each step, and for each way that one can end; what it changes in ``reported`` the
    :class:`~agent.install.reporter.Reporter` publishes.
    """

    def __init__(
        self,
        state: InstallationState,
        on_reported: OnReported,
        on_event: OnEvent,
        *,
        audit: AuditLog,
        audit_limiter: AuditRateLimiter,
        clock: Clock,
    ) -> None:
        super().__init__(state, on_reported, on_event, clock)
        self._audit = audit
        self._audit_limiter = audit_limiter

    def wanted(self, target: DesiredBundle) -> None:
        log.info(
            "installation of %s was requested",
            target.reference,
            extra=fields(step="wanted", bundle=target.reference, by=requested_by(target), revision=revision_of(target)),
        )

    def resolved(self, target: DesiredBundle, line: Resolved) -> None:
        log.info(
            "%s is listed and trusted",
            target.reference,
            extra=fields(
                step="resolved",
                bundle=target.reference,
                digest=line.digest,
                epoch=line.security_epoch,
                bytes=line.bytes,
            ),
        )

    def swap_planned(self, planned: PlannedSwap | None) -> None:
        """How the candidate will take over; None where nothing serves."""
        self.swap = planned
        self.publish()

    def fetched(self, target: DesiredBundle, last: Progressed | None, seconds: float) -> None:
        """``last``: the last progress that was heard of; without it, nothing had to come."""
        log.info(
            "%s is downloaded",
            target.reference,
            extra=fields(
                step="fetched",
                bundle=target.reference,
                bytes=0 if last is None else last.fetched,
                reused=0 if last is None else last.reused,
                seconds=f"{seconds:.1f}",
            ),
        )

    def canary_passed(self, bundle: SealedBundle, passed: CanaryPassed, seconds: float) -> None:
        log.info(
            "%s passed its canary",
            bundle.manifest.reference,
            extra=fields(
                step="canary",
                bundle=bundle.manifest.reference,
                drift=f"{passed.drift:.4f}",
                peak_rss_bytes=passed.peak_rss_bytes,
                seconds=f"{seconds:.1f}",
            ),
        )

    def refused(self, target: DesiredBundle, refused: EdgeBundleError) -> None:
        """The installer wrote it into ``audit.jsonl``."""
        log.warning(
            "%s was refused: %s",
            target.reference,
            refused.message,
            extra=fields(step="refused", bundle=target.reference, reason=refused.reason, by=requested_by(target)),
        )
        self.event(
            "refused",
            {
                "bundle": target.reference,
                "revision": revision_of(target),
                "reason": refused.reason,
                "message": refused.message,
            },
        )

    def postponed(self, target: DesiredBundle, error: EdgeBundleError, delay: float | None) -> None:
        """Nothing is wrong with it; it is tried again in ``delay`` seconds, or when the operator asks again."""
        log.warning(
            "%s is postponed: %s",
            target.reference,
            error.message if delay is None else retry_error(error, delay).message,
            extra=fields(
                step="postponed",
                bundle=target.reference,
                reason=error.reason,
                retry_seconds=None if delay is None else f"{delay:.1f}",
            ),
        )

    def swapped(self, old: SealedBundle | None, new: SealedBundle, report: SwapReport) -> None:
        before = None if old is None else old.manifest.reference
        log.info(
            "%s is serving",
            new.manifest.reference,
            extra=fields(
                step="swapped",
                bundle=new.manifest.reference,
                previous=before,
                mode=report.mode,
                pause_ms=f"{report.queue_pause_ms:.1f}",
            ),
        )
        self.queue_pause_ms = report.queue_pause_ms
        self.event(
            "swap",
            {
                "bundle": new.manifest.reference,
                "digest": new.digest,
                "from": before,
                "mode": report.mode,
                "queue_pause_ms": report.queue_pause_ms,
            },
        )

    def on_probation(self, bundle: SealedBundle, settings: InstallSettings) -> None:
        log.info(
            "%s is on probation",
            bundle.manifest.reference,
            extra=fields(
                step="probation",
                bundle=bundle.manifest.reference,
                seconds=f"{settings.probation_seconds:g}",
                requests=settings.probation_requests or None,
            ),
        )

    def resumed(self, queue_pause_ms: float) -> None:
        """What had made room for a candidate answers again."""
        self.queue_pause_ms = queue_pause_ms

    def committed(
        self,
        target: DesiredBundle | None,
        bundle: InstalledBundle,
        previous: InstalledBundle | None,
        counters: ServingCounters | None,
    ) -> None:
        """``target``: None when the agent was started again since; ``counters`` are those of its probation."""
        self.meter.installed()
        back = isinstance(target, Rollback)
        speed = None if counters is None or counters.speed is None else f"{counters.speed.aggregate:.1f}"
        log.info(
            "%s is committed",
            bundle.reference,
            extra=fields(
                step="committed",
                bundle=bundle.reference,
                epoch=bundle.security_epoch,
                by=None if target is None else requested_by(target),
                answered=None if counters is None else counters.finished,
                failed=None if counters is None else counters.failed,
                tokens_per_second=speed,
            ),
        )
        by = "operator" if target is not None and requested_by(target) == "operator" else None
        self._audit.note(
            "committed", bundle=bundle.reference, digest=bundle.digest, security_epoch=bundle.security_epoch, by=by
        )
        if back:
            self._rolled_back_by_operator(bundle, previous)
        self.event(
            "install", {"bundle": bundle.reference, "digest": bundle.digest, "security_epoch": bundle.security_epoch}
        )

    def _rolled_back_by_operator(self, bundle: InstalledBundle, left: InstalledBundle | None) -> None:
        """By order of this device's operator."""
        self.meter.rolled_back(Reason.OPERATOR)
        before = None if left is None else left.reference
        message = f"the operator of this device rolled back from {before or 'nothing'}"
        log.info(
            "rolled back to %s by the operator",
            bundle.reference,
            extra=fields(
                step="rolled_back", bundle=bundle.reference, previous=before, reason=Reason.OPERATOR, by="operator"
            ),
        )
        self._audit.note(
            "rolled_back",
            bundle=bundle.reference,
            digest=bundle.digest,
            reason=Reason.OPERATOR.value,
            message=message,
            by="operator",
        )
        self.event(
            "rollback",
            {"from": before, "to": bundle.reference, "reason": Reason.OPERATOR, "message": message, "by": "operator"},
        )

    def quarantined(self, digest: Digest, bundle: InstalledBundle | None, failure: Failure) -> None:
        """The rollback that follows is what the event is about."""
        reference = bundle.reference if bundle else None
        self._audit.note(
            "refused", bundle=reference, digest=digest, reason=failure.reason.value, message=failure.message
        )

    def rolled_back(
        self,
        left: str | None,
        active: InstalledBundle | None,
        failure: Failure | None,
        superseded_by: RequestedBy | None,
    ) -> None:
        """A candidate failed, or was abandoned: for another target, or when the agent ended."""
        reason = Reason.INTERRUPTED if failure is None else failure.reason
        self.meter.rolled_back(reason)
        why = "the agent ended meanwhile" if superseded_by is None else "another bundle is desired"
        message = why if failure is None else failure.message
        by = superseded_by if failure is None and superseded_by is not None else "automatic"
        to = None if active is None else active.reference
        log.warning(
            "rolled back to %s: %s",
            to or "nothing",
            message,
            extra=fields(step="rolled_back", bundle=to, previous=left, reason=reason, by=by),
        )
        self._audit.note(
            "rolled_back",
            bundle=to,
            digest=None if active is None else active.digest,
            reason=str(reason),
            message=f"from {left or 'an unknown bundle'}",
        )
        self.event("rollback", {"from": left, "to": to, "reason": reason, "message": message, "by": by})
        if failure is not None:
            self.error = ReportedError(failure.reason, failure.message)

    def replaced(self, old: InstalledBundle, new: InstalledBundle | None) -> None:
        """What was active was revoked, and is out of service."""
        by = "nothing: no other bundle here is acceptable" if new is None else new.reference
        error = BundleRefused(Reason.REVOKED, f"{old.reference} was revoked by its publisher and replaced by {by}")
        self.meter.rolled_back(error.reason)
        self._audit.note("replaced", bundle=old.reference, digest=old.digest, error=error)
        to = None if new is None else new.reference
        log.warning(
            "%s",
            error.message,
            extra=fields(step="rolled_back", bundle=to, previous=old.reference, reason=error.reason, by="automatic"),
        )
        self.event(
            "rollback",
            {
                "from": old.reference,
                "to": to,
                "reason": error.reason,
                "message": error.message,
                "by": "automatic",
            },
        )
        self.error = reported_error(error)
        self.publish()

    def document_refused(self, revision: str | None, refused: BundleRefused) -> None:
        """A ``desired`` document cannot be followed; as many are audited as :class:`AuditRateLimiter` allows."""
        self.meter.failed(refused.reason)
        self.event("refused", {"reason": refused.reason, "message": refused.message, "revision": revision})
        suppressed = self._audit_limiter.suppressed()
        self._audit_limiter.consume()
        if suppressed is not None:
            self._audit.note(
                "refused",
                revision=revision,
                reason=refused.reason,
                message=refused.message + suppressed_text(suppressed),
            )
