"""CANARY to COMMIT: a candidate is tried, swapped in and watched; each step ends with an event of the state table."""

from __future__ import annotations

from agent.install.desired import requested_by
from agent.install.ports import Clock, Serving
from agent.install.update.attempt import Attempt, Outcome
from agent.install.update.canary_run import CanaryRun, swap_mode
from agent.install.update.probation_watch import record_baseline, watch_probation
from agent.install.update.state_machine import Event
from agent.install.update.step_reporter import StepReporter
from agent.state.installation import Failure, InstallationState, Quarantined
from contract.errors import BundleRefused, EngineFailed
from contract.reasons import Reason

HOUR = 3600


class Activation:
    """Takes a sealed candidate to where it may be committed. ``now`` gives Unix seconds, ``clock`` monotonic ones."""

    def __init__(
        self,
        *,
        state: InstallationState,
        serving: Serving,
        reporter: StepReporter,
        canary_run: CanaryRun,
        clock: Clock,
        now: Clock,
    ) -> None:
        self._store = state
        self._serving = serving
        self._reporter = reporter
        self._canary_run = canary_run
        self._clock = clock
        self._now = now

    async def examine(self, attempt: Attempt) -> Event:
        """Try the candidate in a worker of its own."""
        digest = attempt.candidate
        assert digest is not None
        by, settings = requested_by(attempt.target), attempt.target.settings
        if by == "operator":
            self._store.release_quarantined(digest)
        elif by == "desired":
            # Neither a repair nor a security replacement waits for the limit.
            now = int(self._now())
            recent, limit = self._store.swaps_between(now - HOUR, now), settings.swaps_per_hour
            if limit and len(recent) >= limit:
                text = f"{len(recent)} swaps in the last hour, {limit} are allowed"
                return attempt.postpone(EngineFailed(text, reason=Reason.SWAP_LIMIT))
        if self._store.count_attempt(digest) > settings.max_attempts:
            text = f"activation failed {settings.max_attempts} times; giving up"
            return attempt.fail(Failure(Reason.ATTEMPTS_EXHAUSTED, text))
        began = self._clock()
        try:
            verdict = await self._canary_run.run_canary(digest, settings)
        except BundleRefused as refused:
            # This disk's fault, not the bundle's: it is obtained again.
            return attempt.postpone(refused)
        if isinstance(verdict, Failure):
            return attempt.fail(verdict)
        attempt.canaried = verdict
        self._reporter.canary_passed(verdict.new, verdict.passed, self._clock() - began)
        return Event.CANARY_PASSED

    async def swap(self, attempt: Attempt) -> Event:
        """Let the candidate answer from now on."""
        tried, old = attempt.canaried, self._serving.bundle
        assert tried is not None
        attempt.baseline = record_baseline(self._serving, self._store, old)
        mode = swap_mode(self._serving, attempt.target.settings, tried) if old is not None else "drain"
        if tried.is_adapter:
            # Another engine may take turns where requests shared a batch: that is no verdict on the adapter.
            attempt.baseline = None
        self._store.log_swap(tried.new.digest, int(self._now()))
        try:
            report = await self._serving.swap(tried.loaded, mode)
            tried.check_unchanged()
        except EngineFailed as error:
            return attempt.fail(Failure(Reason.ENGINE_FAILED, error.message))
        except BundleRefused as refused:
            # It serves already, but from bytes that were not verified: roll back to the old one.
            return attempt.fail(Failure(refused.reason, refused.message))
        self._reporter.swapped(old, tried.new, report)
        return Event.SWITCHED

    async def watch(self, attempt: Attempt) -> Event:
        """Wait until it is known whether it holds."""
        if attempt.canaried is not None:
            self._reporter.on_probation(attempt.canaried.new, attempt.target.settings)
        failure = await watch_probation(
            self._serving, attempt.target.settings, attempt.baseline, self._reporter.probation
        )
        return Event.HELD if failure is None else attempt.fail(failure)

    def report_commit(self, attempt: Attempt) -> Event:
        """The candidate is active now."""
        bundle = self._store.bundle(attempt.candidate)
        assert bundle is not None
        previous = self._store.bundle(self._store.snapshot().previous)
        # Nothing was counted for a bundle that does not answer now.
        counters = self._serving.counters() if attempt.canaried is not None else None
        self._reporter.committed(attempt.known_target, bundle, previous, counters)
        attempt.outcome = Outcome("active")
        return Event.COMMITTED

    def quarantine(self, attempt: Attempt) -> None:
        """The candidate is not tried again, unless this device's operator asks for it."""
        failure, digest = attempt.failure, attempt.candidate
        assert failure is not None and digest is not None
        bundle = self._store.bundle(digest)
        name, version = (bundle.name, bundle.version) if bundle else ("", "")
        self._store.quarantine(
            Quarantined(digest, name, version, failure.reason.value, failure.message, int(self._now()))
        )
        self._reporter.quarantined(digest, bundle, failure)
