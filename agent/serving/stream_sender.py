"""Sends what is due while requests wait and run: pieces of text, and positions in the queue."""

from __future__ import annotations

import asyncio
from functools import partial

from agent.serving.active_request import ActiveRequest, StreamState
from agent.serving.replies import Replies
from agent.serving.scheduler import Scheduler
from agent.serving.store_health import StoreHealth
from agent.state.result_writer import ResultWriter

OPEN = StreamState.OPEN
"""Looked up once: every token asks for it."""


class StreamSender:
    """Looks at the scheduler to see who waits and runs, and changes nothing there."""

    def __init__(self, scheduler: Scheduler, result_store: ResultWriter, replies: Replies, health: StoreHealth) -> None:
        self._scheduler = scheduler
        self._result_store = result_store
        self._replies = replies
        self._health = health
        self._now = asyncio.get_running_loop().time

    def flush(self, request: ActiveRequest, now: float) -> float | None:
        """Send what is due of ``request``; when the rest is to be tried again, if it is only a matter of time."""
        due = request.frames.due_at()
        if due is None or not request.running:
            return None
        if request.stream is OPEN:
            if self._replies.writable:
                frame = request.frames.take(now)
                if frame is None:
                    return due
                while frame is not None:
                    self._replies.piece(request, frame)
                    frame = request.frames.take(now)
        elif request.stream is StreamState.CLOSED:
            request.stream = StreamState.OPENING
            future = self._result_store.streaming(request.key, request.attempt)
            future.add_done_callback(partial(self._open, request, request.number))
        return None

    def _open(self, request: ActiveRequest, number: int, future: asyncio.Future[None]) -> None:
        self._health.note(future.exception())
        # Without the note no piece may leave; the last frame still will.
        if future.exception() is None and request.number == number:
            request.stream = OPEN
            # The first piece of an attempt is due at once: there is nothing to wake up for.
            self.flush(request, self._now())

    def next_due(self) -> float | None:
        """When the next piece may leave."""
        if not self._replies.writable:
            return None
        running = (request for request in self._scheduler.running if request.stream is OPEN)
        return min((due for request in running if (due := request.frames.due_at()) is not None), default=None)

    def send_position(self, request: ActiveRequest) -> None:
        """Tell a request that has to wait how many are before it, and about how long."""
        self._send_position(request, self._scheduler.queue.position(request.number, self._now()))

    def send_positions(self) -> None:
        """Tell all that wait."""
        for ahead, request in enumerate(self._scheduler.queue.in_order(self._now())):
            self._send_position(request, ahead)

    def _send_position(self, request: ActiveRequest, ahead: int) -> None:
        position = ahead + self._scheduler.active
        frames = request.frames
        # Waiting once more after a crash is no news to whoever has seen text.
        if frames.streams and self._replies.writable and request.attempt == 1 and frames.last_position != position:
            self._replies.piece(request, frames.waiting(position, self._scheduler.estimate(ahead)))
