"""How a request ends: counted, its one result committed, and only then sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent.engine.stepping import FinishEvent
from agent.serving import requests
from agent.serving.counting import Counting
from agent.serving.jobs import Job
from agent.serving.ledger_health import LedgerHealth
from agent.serving.replies import Replies
from agent.serving.request_log import RequestLog
from agent.serving.requests import Refusal
from agent.serving.settlement import FAULT
from agent.state.answer_writer import AnswerWriter
from agent.state.answers import Key
from agent.telemetry.llm import LlmMeter
from contract.mqtt import messages
from contract.mqtt.messages import ErrorFrame, LastFrame


class Outcomes:
    """``jobs`` are the accepted requests without a result; an ended one leaves it once its result is committed."""

    def __init__(
        self,
        jobs: dict[Key, Job],
        ledger: AnswerWriter,
        replies: Replies,
        meter: LlmMeter,
        *,
        health: LedgerHealth,
        now: Callable[[], float],
        request_log: RequestLog,
    ) -> None:
        self._jobs = jobs
        self._ledger = ledger
        self._replies = replies
        self._meter = meter
        self._health = health
        self._now = now
        self._log = request_log
        self.counting = Counting()

    def count_anew(self) -> None:
        """Another model serves from now on."""
        self.counting = Counting(seconds_each=self.counting.seconds_each)
        self._meter.swaps += 1

    def crashed(self, *, current: bool) -> None:
        """A worker died; ``current``: one of what is served now, and not one that finishes its last answers."""
        self.counting.crashes += current
        self._meter.crashes += 1

    def restarted(self) -> None:
        """A worker took the place of one that had died."""
        self._meter.restarts += 1

    def began(self, job: Job) -> None:
        """A worker has ``job`` now."""
        job.counting = self.counting

    def heard(self, job: Job, tokens: int) -> None:
        """The answer to ``job`` has ``tokens`` now."""
        if job.counting is not None:
            job.counting.heard(job.number, tokens, self._now())

    def stopped(self, job: Job) -> None:
        """No worker is at work on ``job`` any more."""
        if job.counting is not None:
            job.counting.ended(job.number, self._now())

    def finish(self, job: Job, event: FinishEvent) -> None:
        """The engine is through with ``job``."""
        now = self._now()
        if event.text:
            job.frames.feed(event.text, event.completion_tokens, now)
        reason = job.ending if job.ending is not None and event.reason == "cancelled" else event.reason
        last = job.frames.last(
            reason,
            now,
            prompt_tokens=event.prompt_tokens,
            completion_tokens=event.completion_tokens,
            cached_tokens=event.cached_tokens,
            logprobs=list(job.logprobs) if job.request.logprobs else None,
        )
        started, first = job.frames.times()
        decode = None if first is None else now - first
        if job.counting is not None:
            job.counting.ended(job.number, now, event.completion_tokens)
            job.counting.finished += 1
        self.counting.took(now - started)
        self._meter.finish(
            reason,
            prompt_tokens=event.prompt_tokens,
            completion_tokens=event.completion_tokens,
            cached_tokens=event.cached_tokens,
            queue_seconds=started - job.accepted,
            first_token_seconds=None if first is None else first - job.accepted,
            decode_seconds=decode,
            total_seconds=now - job.accepted,
        )
        self._log.ended(job, reason, now - job.accepted, tokens=event.completion_tokens)
        self._commit(job, last)

    def end_early(self, job: Job, bundle: str) -> None:
        """``job`` ends for the reason it names, with no engine at work on it."""
        assert job.ending is not None
        job.frames.bundle = job.frames.bundle or bundle
        self._log.ended(job, job.ending, self._now() - job.accepted, tokens=job.frames.tokens)
        self._commit(job, job.frames.last(job.ending, self._now()))

    def fail(self, job: Job, refusal: Refusal, *, ours: bool = True) -> None:
        """End ``job`` with an error; ``ours`` when the client is not to blame.

        One that names a time to come again is no result: the request may come again under its id, and is run then.
        """
        self.stopped(job)
        (job.counting or self.counting).failed += ours
        self._log.ended(job, "error", self._now() - job.accepted, tokens=job.frames.tokens, error=refusal.kind)
        self._meter.finish(refusal.kind, total_seconds=self._now() - job.accepted)
        last = requests.error_frame(job.frames.sequence, refusal, job.attempt)
        self._commit(job, last, is_result=refusal.retry_after_ms is None)

    def _commit(self, job: Job, last: LastFrame | ErrorFrame, *, is_result: bool = True) -> None:
        job.running = False
        job.ended = True
        payload = messages.encode(last)
        store = self._ledger.answered if is_result else self._ledger.turned_away
        future = store(job.key, payload)

        def stored(done: asyncio.Future[bytes]) -> None:
            # What the disk does not take is held until it does: this future fails by a fault of ours alone.
            self._health.note(done.exception())
            if self._jobs.get(job.key) is job:
                del self._jobs[job.key]
            if done.exception() is None:
                self._replies.deliver(job.key, done.result(), job.correlation)
            else:
                self._replies.error(job.key, FAULT, job.correlation)

        future.add_done_callback(stored)
