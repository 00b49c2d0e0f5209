"""How a request ends: logged, measured, its one result stored, and only then sent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from agent.engine.interface import FinishEvent
from agent.serving import requests
from agent.serving.active_request import ActiveRequest, EarlyEnd
from agent.serving.replies import Replies
from agent.serving.request_log import RequestLog
from agent.serving.requests import Refusal
from agent.serving.settlement import FAULT
from agent.state.result_writer import ResultWriter
from agent.telemetry.llm import LlmMeter
from contract.mqtt.answers import ErrorFrame, Frame, LastFrame
from contract.mqtt.encoding import encode

Stored = asyncio.Future[bytes]
"""The bytes of the result, once they count."""


class Completion:
    """``finish``, ``end_early`` and ``fail`` have the result stored, and sent once it is."""

    def __init__(self, result_store: ResultWriter, replies: Replies, meter: LlmMeter, request_log: RequestLog) -> None:
        self._result_store = result_store
        self._replies = replies
        self._meter = meter
        self._log = request_log
        self._now = asyncio.get_running_loop().time

    def finish(self, request: ActiveRequest, event: FinishEvent) -> Stored:
        """The engine has finished ``request``."""
        now = self._now()
        reasons = [
            request.ending if request.ending is not None and reason == "cancelled" else reason
            for reason in event.reasons or [event.reason]
        ]
        reason = reasons[0]
        rest = self._rest(request, now)
        last = request.frames.last(
            reason,
            now,
            reasons=reasons,
            prompt_tokens=event.prompt_tokens,
            completion_tokens=event.completion_tokens,
            cached_tokens=event.cached_tokens,
            logprobs=request.params.logprobs,
        )
        started, first = request.frames.times()
        self._meter.finish(
            reason,
            prompt_tokens=event.prompt_tokens,
            completion_tokens=event.completion_tokens,
            cached_tokens=event.cached_tokens,
            queue_seconds=started - request.accepted,
            first_token_seconds=None if first is None else first - request.accepted,
            decode_seconds=None if first is None else now - first,
            total_seconds=now - request.accepted,
        )
        self._log.ended(request, reason, now - request.accepted, tokens=event.completion_tokens)
        return self._store(request, last, rest)

    def end_early(self, request: ActiveRequest, reason: EarlyEnd) -> Stored:
        """``request`` was cancelled, or its deadline has come, with no engine at work on it."""
        now = self._now()
        self._log.ended(request, reason, now - request.accepted, tokens=request.frames.tokens)
        rest = self._rest(request, now)
        return self._store(request, request.frames.last(reason, now), rest)

    def fail(self, request: ActiveRequest, refusal: Refusal) -> Stored:
        """``request`` ends with an error.

        One that names a time to come again is no result: the request may come again under its id, and is run then.
        """
        seconds = self._now() - request.accepted
        self._log.ended(request, "error", seconds, tokens=request.frames.tokens, error=refusal.kind)
        self._meter.finish(refusal.kind, total_seconds=seconds)
        last = requests.error_frame(request.frames.sequence, refusal, request.attempt)
        return self._store(request, last, is_result=refusal.retry_after_ms is None)

    def _rest(self, request: ActiveRequest, now: float) -> Sequence[Frame]:
        """The last pieces of ``request``; none while the connection is backed up, where they would be lost and leave a
        gap in the numbers: the last frame has the whole text.
        """
        return request.frames.rest(now) if self._replies.writable else ()

    def _store(
        self,
        request: ActiveRequest,
        last: LastFrame | ErrorFrame,
        rest: Sequence[Frame] = (),
        *,
        is_result: bool = True,
    ) -> Stored:
        store = self._result_store.answered if is_result else self._result_store.rejected
        stored = store(request.key, encode(last))
        stored.add_done_callback(partial(self._deliver, request, rest))
        return stored

    def _deliver(self, request: ActiveRequest, rest: Sequence[Frame], stored: Stored) -> None:
        """Send what was stored, after the ``rest`` of its pieces. What the disk does not take is retried until it does:
        ``stored`` fails only by a fault of ours.
        """
        if stored.exception() is None:
            for piece in rest if self._replies.writable else ():
                self._replies.piece(request, piece)
            self._replies.deliver(request.key, stored.result(), request.correlation)
        else:
            self._replies.error(request.key, FAULT, request.correlation)
