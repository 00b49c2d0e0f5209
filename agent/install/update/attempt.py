"""One attempt at making a bundle active: what is known of its candidate, and how it ends."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from agent.install.desired import DesiredBundle, RequestedBy, requested_by
from agent.install.ports import Speed
from agent.install.process.messages import Progressed
from agent.install.reporter import reported_error, retry_error
from agent.install.update.canary_run import Candidate
from agent.install.update.state_machine import Event
from agent.install.update.step_reporter import StepReporter
from agent.state.installation import Failure
from contract.errors import EdgeBundleError, EngineFailed, SourceUnavailable
from contract.identifiers import Digest
from contract.system.backoff import Backoff


class Outcome(Struct, frozen=True):
    """How an update ended. ``later``: nothing is wrong with the target, try again; ``refused`` covers
    what was rolled back.

    ``retry_in``: the seconds after which to try again, for a target that stays until it is active.
    """

    kind: Literal["active", "refused", "later", "superseded"]
    error: EdgeBundleError | None = None
    retry_in: float = 0.0


class Attempt:
    """``target`` is None when a restart goes on with what was recorded of an earlier one.

    ``canaried`` and ``baseline`` are there once the candidate has passed its canary and is about to be swapped in.
    """

    def __init__(
        self,
        reporter: StepReporter,
        backoff: Backoff,
        target: DesiredBundle | None = None,
        *,
        max_done: int = 0,
    ) -> None:
        self._reporter = reporter
        self._backoff = backoff
        self._target = target
        self._advanced = False
        self.max_done = max_done
        self.candidate: Digest | None = None
        self.failure: Failure | None = None
        self.outcome = Outcome("superseded")
        self.superseded_by: RequestedBy | None = None
        self.progressed: Progressed | None = None
        self.canaried: Candidate | None = None
        self.baseline: Speed | None = None

    @property
    def target(self) -> DesiredBundle:
        """What is to become active."""
        assert self._target is not None, "only a restart has none, and it downloads and tries nothing"
        return self._target

    @property
    def known_target(self) -> DesiredBundle | None:
        """What is to become active, if this is no restart."""
        return self._target

    def progress(self, line: Progressed) -> None:
        """Bytes arrived."""
        self.progressed = line
        if line.done > self.max_done:
            # Not what was fetched: a source that is wrong at one offset sends the bytes around it again.
            self.max_done, self._advanced = line.done, True
        self._reporter.progress(line)

    def refuse(self, refused: EdgeBundleError) -> Event:
        """The bundle cannot be accepted."""
        self.outcome = Outcome("refused", refused)
        self._reporter.error = reported_error(refused)
        self._reporter.refused(self.target, refused)
        return Event.REFUSED

    def postpone(self, error: EdgeBundleError) -> Event:
        """Nothing is wrong with the bundle: it is tried again later."""
        if requested_by(self.target) == "operator":
            # Who asked decides whether to ask again.
            self.outcome = Outcome("later", error)
            self._reporter.error = reported_error(error)
            self._reporter.postponed(self.target, error, None)
            return Event.UNAVAILABLE
        if self._advanced:
            # It makes progress, if slowly.
            self._backoff.reset()
        delay = self._backoff.after_failure(error.retry_after if isinstance(error, SourceUnavailable) else None)
        self.outcome = Outcome("later", error, delay)
        self._reporter.error = retry_error(error, delay)
        self._reporter.postponed(self.target, error, delay)
        return Event.UNAVAILABLE

    def fail(self, failure: Failure) -> Event:
        """The candidate did not hold."""
        self.failure = failure
        error = EngineFailed(failure.message, reason=failure.reason)
        self.outcome = Outcome("refused", error)
        self._reporter.error = reported_error(error)
        return Event.FAILED
