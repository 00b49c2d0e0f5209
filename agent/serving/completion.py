"""How a request ends: counted, its one result committed, and only then sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent.engine.stepping import FinishEvent
from agent.serving import requests
from agent.serving.active_request import ActiveRequest
from agent.serving.replies import Replies
from agent.serving.request_log import RequestLog
from agent.serving.requests import Refusal
from agent.serving.settlement import FAULT
from agent.serving.statistics import Statistics
from agent.serving.store_health import StoreHealth
from agent.state.answer_writer import AnswerWriter
from agent.state.answers import Key
from agent.telemetry.llm import LlmMeter
from contract.mqtt import messages
from contract.mqtt.messages import ErrorFrame, LastFrame


class Completion:
    """``active`` are the accepted requests without a result; an ended one leaves it once its result is committed."""

    def __init__(
        self,
        active: dict[Key, ActiveRequest],
        result_store: AnswerWriter,
        replies: Replies,
        meter: LlmMeter,
        *,
        health: StoreHealth,
        now: Callable[[], float],
        request_log: RequestLog,
    ) -> None:
        self._requests = active
        self._result_store = result_store
        self._replies = replies
        self._meter = meter
        self._health = health
        self._now = now
        self._log = request_log
        self.statistics = Statistics()

    def start_new_statistics(self) -> None:
        """Another model serves from now on."""
        self.statistics = Statistics(seconds_each=self.statistics.seconds_each)
        self._meter.swaps += 1

    def crashed(self, *, current: bool) -> None:
        """A worker died; ``current``: one of what is served now, and not one that finishes its last answers."""
        self.statistics.crashes += current
        self._meter.crashes += 1

    def restarted(self) -> None:
        """A worker took the place of one that had died."""
        self._meter.restarts += 1

    def began(self, request: ActiveRequest) -> None:
        """A worker has ``job`` now."""
        request.statistics = self.statistics

    def record_tokens(self, request: ActiveRequest, tokens: int) -> None:
        """The answer to ``job`` has ``tokens`` now."""
        if request.statistics is not None:
            request.statistics.record_tokens(request.number, tokens, self._now())

    def stopped(self, request: ActiveRequest) -> None:
        """No worker is at work on ``job`` any more."""
        if request.statistics is not None:
            request.statistics.record_end(request.number, self._now())

    def finish(self, request: ActiveRequest, event: FinishEvent) -> None:
        """The engine is through with ``job``."""
        now = self._now()
        if event.text:
            request.frames.feed(event.text, event.completion_tokens, now)
        reason = request.ending if request.ending is not None and event.reason == "cancelled" else event.reason
        last = request.frames.last(
            reason,
            now,
            prompt_tokens=event.prompt_tokens,
            completion_tokens=event.completion_tokens,
            cached_tokens=event.cached_tokens,
            logprobs=list(request.logprobs) if request.params.logprobs else None,
        )
        started, first = request.frames.times()
        decode = None if first is None else now - first
        if request.statistics is not None:
            request.statistics.record_end(request.number, now, event.completion_tokens)
            request.statistics.finished += 1
        self.statistics.record_duration(now - started)
        self._meter.finish(
            reason,
            prompt_tokens=event.prompt_tokens,
            completion_tokens=event.completion_tokens,
            cached_tokens=event.cached_tokens,
            queue_seconds=started - request.accepted,
            first_token_seconds=None if first is None else first - request.accepted,
            decode_seconds=decode,
            total_seconds=now - request.accepted,
        )
        self._log.ended(request, reason, now - request.accepted, tokens=event.completion_tokens)
        self._commit(request, last)

    def end_early(self, request: ActiveRequest, bundle: str) -> None:
        """``job`` ends for the reason it names, with no engine at work on it."""
        assert request.ending is not None
        request.frames.bundle = request.frames.bundle or bundle
        self._log.ended(request, request.ending, self._now() - request.accepted, tokens=request.frames.tokens)
        self._commit(request, request.frames.last(request.ending, self._now()))

    def fail(self, request: ActiveRequest, refusal: Refusal, *, ours: bool = True) -> None:
        """End ``job`` with an error; ``ours`` when the client is not to blame.

        One that names a time to come again is no result: the request may come again under its id, and is run then.
        """
        self.stopped(request)
        (request.statistics or self.statistics).failed += ours
        self._log.ended(
            request, "error", self._now() - request.accepted, tokens=request.frames.tokens, error=refusal.kind
        )
        self._meter.finish(refusal.kind, total_seconds=self._now() - request.accepted)
        last = requests.error_frame(request.frames.sequence, refusal, request.attempt)
        self._commit(request, last, is_result=refusal.retry_after_ms is None)

    def _commit(self, request: ActiveRequest, last: LastFrame | ErrorFrame, *, is_result: bool = True) -> None:
        request.running = False
        request.ended = True
        payload = messages.encode(last)
        store = self._result_store.answered if is_result else self._result_store.turned_away
        future = store(request.key, payload)

        def stored(done: asyncio.Future[bytes]) -> None:
            # What the disk does not take is held until it does: this future fails by a fault of ours alone.
            self._health.note(done.exception())
            if self._requests.get(request.key) is request:
                del self._requests[request.key]
            if done.exception() is None:
                self._replies.deliver(request.key, done.result(), request.correlation)
            else:
                self._replies.error(request.key, FAULT, request.correlation)

        future.add_done_callback(stored)
