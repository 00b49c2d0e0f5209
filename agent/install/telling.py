"""How an installation went, for those who follow it (events) and for those who look back (``audit.jsonl``)."""

from __future__ import annotations

from agent.install.ports import SealedBundle, SwapReport
from agent.install.reporting import Reporter
from agent.install.wishes import Wish
from agent.state.audit import AuditLog
from agent.state.installation import Failure, InstalledBundle
from contract.errors import EdgeBundleError
from contract.mqtt.messages import ReportedError
from contract.names import Digest
from contract.reasons import Reason


class Telling:
    """One method for each way that a step can end."""

    def __init__(self, reporter: Reporter, audit: AuditLog) -> None:
        self._reporter = reporter
        self._audit = audit

    def refused(self, wish: Wish, refused: EdgeBundleError) -> None:
        """The installer wrote it into the log."""
        self._reporter.event(
            "refused",
            {"bundle": wish.reference, "revision": wish.revision, "reason": refused.reason, "message": refused.message},
        )

    def swapped(self, old: SealedBundle | None, new: SealedBundle, report: SwapReport) -> None:
        self._reporter.hold_ms = report.hold_ms
        self._reporter.event(
            "swap",
            {
                "bundle": new.manifest.reference,
                "digest": new.digest,
                "from": None if old is None else old.manifest.reference,
                "mode": report.mode,
                "hold_ms": report.hold_ms,
            },
        )

    def came_back(self, hold_ms: float) -> None:
        """What had made room for a candidate answers again."""
        self._reporter.hold_ms = hold_ms

    def committed(self, bundle: InstalledBundle) -> None:
        self._audit.note(
            "committed", bundle=bundle.reference, digest=bundle.digest, security_epoch=bundle.security_epoch
        )
        self._reporter.event(
            "install", {"bundle": bundle.reference, "digest": bundle.digest, "security_epoch": bundle.security_epoch}
        )

    def quarantined(self, digest: Digest, bundle: InstalledBundle | None, failure: Failure) -> None:
        """The rollback that follows is what the event is about."""
        reference = bundle.reference if bundle else None
        self._audit.note(
            "refused", bundle=reference, digest=digest, reason=failure.reason.value, message=failure.message
        )

    def rolled_back(self, wish: Wish | None, active: InstalledBundle | None, failure: Failure | None) -> None:
        self._audit.note(
            "rolled_back",
            bundle=None if active is None else active.reference,
            digest=None if active is None else active.digest,
            reason=str(Reason.INTERRUPTED if failure is None else failure.reason),
            message=f"from {'an unknown bundle' if wish is None else wish.reference}",
        )
        self._reporter.event(
            "rollback",
            {
                "from": None if wish is None else wish.reference,
                "to": None if active is None else active.reference,
                "reason": Reason.INTERRUPTED if failure is None else failure.reason,
                "message": "it was interrupted" if failure is None else failure.message,
            },
        )
        if failure is not None:
            self._reporter.error = ReportedError(failure.reason, failure.message)
