"""Sends what is due while requests wait and run: pieces of text, positions in the queue; and wakes up for deadlines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from agent.serving.active_request import ActiveRequest
from agent.serving.queue import RequestQueue
from agent.serving.replica import Replica
from agent.serving.replies import Replies
from agent.serving.store_health import StoreHealth
from agent.state.answer_writer import AnswerWriter

POSITION_UPDATE_INTERVAL = 3.0
"""Between two words to a request that waits: often enough for a person, and 128 that wait cost next to nothing."""


class StreamSender:
    """``replicas`` run requests now; ``estimate`` says how many seconds the n-th of the queue has
    to wait; ``on_deadline`` gets every request whose deadline has come.
    """

    def __init__(
        self,
        queue: RequestQueue[ActiveRequest],
        result_store: AnswerWriter,
        replies: Replies,
        health: StoreHealth,
        *,
        replicas: Callable[[], list[Replica]],
        estimate: Callable[[int], float],
        on_deadline: Callable[[ActiveRequest], None],
    ) -> None:
        self._queue = queue
        self._result_store = result_store
        self._replies = replies
        self._health = health
        self._replicas = replicas
        self._estimate = estimate
        self._on_deadline = on_deadline
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._timer: asyncio.TimerHandle | None = None
        self._next_position_update: float | None = None

    def flush(self, request: ActiveRequest) -> None:
        """Send what is due of ``job``, or see to it that it is sent when it is."""
        due = request.frames.due_at()
        if due is None or not request.running:
            return
        if request.stream_mark == "no":
            request.stream_mark = "asked"
            future = self._result_store.streaming(request.key, request.attempt)
            future.add_done_callback(partial(self._on_stream_marked, request, request.number))
        elif request.stream_mark == "yes" and self._replies.writable:
            frame = request.frames.take(self._now())
            if frame is None:
                self.schedule(due)
            else:
                self._replies.piece(request, frame)

    def _on_stream_marked(self, request: ActiveRequest, number: int, future: asyncio.Future[None]) -> None:
        self._health.note(future.exception())
        # Without the note no piece may leave; the last frame still will.
        if future.exception() is None and request.number == number:
            request.stream_mark = "yes"
            self.flush(request)

    def on_writable(self) -> None:
        """The connection takes frames again."""
        for replica in self._replicas():
            for request in replica.running.values():
                self.flush(request)
        if any(request.frames.last_position is None for request in self._queue):
            self._send_positions()

    def send_position(self, request: ActiveRequest) -> None:
        """Say to a request that has to wait how many are before it, and about how long."""
        self._send_position(request, self._queue.position(request.number, self._now()))

    def _send_positions(self) -> None:
        for ahead, request in enumerate(self._queue.in_order(self._now())):
            self._send_position(request, ahead)

    def _send_position(self, request: ActiveRequest, ahead: int) -> None:
        place = ahead + sum(len(replica.running) for replica in self._replicas())
        # Waiting once more after a crash is no news to whoever has seen text.
        if (
            request.frames.streams
            and self._replies.writable
            and request.attempt == 1
            and request.frames.last_position != place
        ):
            self._replies.piece(request, request.frames.waiting(place, self._estimate(ahead)))

    def schedule(self, at: float | None = None) -> None:
        """Wake up for the next frame, word or deadline; with ``at``, only that one is new."""
        if at is not None and self._wakes_by(at):
            # The way of every token: all else was scheduled when it came up.
            return
        times = [self._queue.next_deadline(), at]
        if len(self._queue):
            self._next_position_update = self._next_position_update or self._now() + POSITION_UPDATE_INTERVAL
            times.append(self._next_position_update)
        for replica in self._replicas():
            for request in replica.running.values():
                times.append(request.deadline if request.ending is None else None)
                if request.stream_mark == "yes" and self._replies.writable:
                    times.append(request.frames.due_at())
        due = min((when for when in times if when is not None), default=None)
        if due is None:
            return
        if self._wakes_by(due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._tick)

    def _wakes_by(self, due: float) -> bool:
        timer = self._timer
        return timer is not None and not timer.cancelled() and timer.when() <= due

    def _tick(self) -> None:
        self._timer = None
        now = self._now()
        for request in self._queue.expired(now):
            self._on_deadline(request)
        for replica in self._replicas():
            for request in list(replica.running.values()):
                if request.deadline is not None and request.deadline <= now:
                    self._on_deadline(request)
                else:
                    self.flush(request)
        if self._next_position_update is not None and now >= self._next_position_update:
            self._next_position_update = None
            self._send_positions()
        self.schedule()

    def close(self) -> None:
        """Wake up no more."""
        if self._timer is not None:
            self._timer.cancel()
