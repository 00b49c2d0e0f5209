"""Monitors what is installed: refreshes trust periodically, reports new warnings, and takes a revoked bundle out of
service where the policy demands that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import NamedTuple

from agent.install.ports import Uniform
from agent.install.process.client import InstallerClient
from agent.install.process.messages import RefreshTrustJob
from agent.install.reporter import FAULT
from agent.install.settings import InstallConfig
from agent.install.trust.revocation import adapters_to_drop, find_replacement, must_be_replaced, replacement_target
from agent.install.update.runner import UpdateRunner
from agent.install.update.step_reporter import StepReporter
from agent.state.installation import InstallationState, InstalledBundle
from agent.state.warnings import Warned
from agent.systemd.journal import fields
from contract.errors import BundleRefused, EdgeBundleError, SourceInvalid
from contract.identifiers import Digest
from contract.reasons import Reason
from contract.source.access import Source

log = logging.getLogger("edge_agent.install")

FIRST_REFRESH_SECONDS = 300.0
"""After a start trust is refreshed within this time: a device that is switched on for an hour a day hears of it."""


def _is_damage(warned: Warned, digest: Digest) -> bool:
    return warned.digest == digest and warned.reason is not Reason.REVOKED


class RefreshResult(NamedTuple):
    """How a refresh ended: ``done`` unless something else came first; ``problem`` is why it failed."""

    done: bool
    problem: EdgeBundleError | None


class _Request(NamedTuple):
    """Somebody waits for a refresh from ``sources``, others than those that are configured."""

    sources: tuple[Source, ...]
    result: asyncio.Future[EdgeBundleError | None]


class TrustMonitor:
    """``due`` is when to call :meth:`refresh`, by the event loop's clock; ``uniform`` gives a random number between
    two.

    Raises:
        StoreBroken, StoreFull: from the methods that change what is installed.
    """

    def __init__(
        self,
        *,
        state: InstallationState,
        config: InstallConfig,
        installer: InstallerClient,
        runner: UpdateRunner,
        reporter: StepReporter,
        uniform: Uniform,
    ) -> None:
        self._store = state
        self._settings, self._sources = config.settings, config.sources
        self._installer = installer
        self._runner = runner
        self._reporter = reporter
        self._uniform = uniform
        self._clock = asyncio.get_running_loop().time
        self._reported = {(each.reason, each.digest) for each in state.warning_store.warnings()}
        self._unfit: set[Digest] = set()
        self._requests: list[_Request] = []
        self._damage_check_due = True
        self.due = self._clock() + self._period(first=True)

    def _period(self, *, first: bool = False) -> float:
        period = self._settings.trust_refresh_seconds
        if not period or not self._sources:
            return float("inf")
        # Spread, so that a fleet that came up together does not ask together.
        share = self._uniform(0.0 if first else 0.9, 1.0)
        return share * (min(period, FIRST_REFRESH_SECONDS) if first else period)

    def refresh_soon(self) -> None:
        """Refresh soon, once: something was not listed that may have been published a moment ago."""
        self.due = min(self.due, self._clock() + min(self._period(), self._settings.retry_longest_seconds))

    @property
    def reasons(self) -> list[str]:
        """Why there are warnings, each once."""
        return sorted({reason.value for reason, _ in self._reported})

    @property
    def is_requested(self) -> bool:
        """Whether somebody waits for a refresh."""
        return bool(self._requests)

    def request(self, sources: Sequence[Source] = ()) -> asyncio.Future[EdgeBundleError | None]:
        """Have trust refreshed by :meth:`refresh_next`, from ``sources`` or those that are configured; why it failed,
        once it is done.
        """
        request = _Request(tuple(sources), asyncio.get_running_loop().create_future())
        self._requests.append(request)
        return request.result

    def fail_requests(self, error: EdgeBundleError) -> None:
        """Nothing can be refreshed now."""
        for request in self._requests:
            if not request.result.done():
                request.result.set_result(error)
        self._requests.clear()

    async def refresh_next(self, interrupted: asyncio.Event) -> None:
        """Refresh trust, for the first request that waits or because it is due; what ``interrupted`` announces goes
        first.
        """
        request = self._requests[0] if self._requests else None
        result = RefreshResult(True, FAULT)
        try:
            result = await self.refresh(interrupted, () if request is None else request.sources)
        except EdgeBundleError as error:
            result = RefreshResult(True, error)
            raise
        finally:
            if request is not None and result.done:
                self._requests.remove(request)
                if not request.result.done():
                    request.result.set_result(result.problem)

    async def refresh(self, interrupted: asyncio.Event, sources: Sequence[Source] = ()) -> RefreshResult:
        """Let the installer refresh trust from the sources; what ``interrupted`` announces goes first.

        ``sources``: others than those that are configured.
        """
        job = RefreshTrustJob(
            str(self._installer.directory.root),
            list(sources or self._sources.values()),
            offline_grace=self._settings.offline_grace,
        )
        done = True
        problem: EdgeBundleError | None = None
        delay = min(self._period(), self._settings.retry_longest_seconds)
        work = asyncio.ensure_future(self._installer.run(job, lambda line: None))
        interruption = asyncio.create_task(interrupted.wait())
        try:
            await asyncio.wait({work, interruption}, return_when=asyncio.FIRST_COMPLETED)
            done = work.done()
            if done:
                work.result()
                delay = self._period()
        except (BundleRefused, SourceInvalid) as refused:
            # It stands among the warnings now.
            log.warning("trust could not be refreshed: %s", refused.message)
            problem = refused
        except EdgeBundleError as error:
            log.info("trust could not be refreshed for now: %s", error.message)
            problem = error
        finally:
            for each in (work, interruption):
                each.cancel()
            await asyncio.gather(work, interruption, return_exceptions=True)
            self.due = self._clock() + delay
            self._damage_check_due = True
        self.report_new_warnings()
        self._reporter.publish()
        return RefreshResult(done, problem)

    def report_new_warnings(self) -> None:
        """Report warnings that are new since the last time."""
        warnings = self._store.warning_store.warnings()
        for each in warnings:
            if (each.reason, each.digest) not in self._reported:
                bundle = self._store.bundle(each.digest)
                detail = {"bundle": bundle and bundle.reference, "reason": each.reason, "message": each.message}
                self._reporter.event("refused", detail)
                log.warning("%s", each.message, extra=fields(reason=each.reason, bundle=detail["bundle"]))
        self._reported = {(each.reason, each.digest) for each in warnings}

    def next_damaged(self) -> InstalledBundle | None:
        """The active bundle if its bytes on this disk are not what they should be; asked again, only after the next
        refresh: a disk that cannot be repaired must not cost one download after the other.
        """
        if not self._damage_check_due:
            return None
        self._damage_check_due = False
        active = self._store.bundle(self._store.snapshot().active)
        found = active is not None and any(
            _is_damage(each, active.digest) for each in self._store.warning_store.warnings()
        )
        return active if found else None

    def repaired(self, digest: Digest | None) -> None:
        """Every byte of ``digest`` was verified since: the warning is over."""
        warnings = self._store.warning_store.warnings()
        others = [each for each in warnings if digest is None or not _is_damage(each, digest)]
        if len(others) < len(warnings):
            self._store.warning_store.replace(others)
            self._reported = {(each.reason, each.digest) for each in others}

    async def replace_revoked(self) -> bool:
        """Go back to an acceptable bundle, or to none, if policy wants what is active out of service; whether anything
        was done.
        """
        for adapter in adapters_to_drop(self._store, self._settings, self._sources):
            await self._runner.drop_adapter(adapter)
            self._reporter.replaced(adapter, None)
        active = self._store.bundle(self._store.snapshot().active)
        if active is None or not must_be_replaced(self._store, self._settings, self._sources):
            return False
        found = find_replacement(self._store, self._unfit)
        if found is None:
            await self._runner.retire()
        else:
            outcome = await self._runner.run(replacement_target(found, self._settings, self._reporter.revision))
            if outcome.kind == "refused":
                self._unfit.add(found.digest)
            if outcome.kind != "active":
                return outcome.kind == "refused"
        self._reporter.replaced(active, found)
        return True
