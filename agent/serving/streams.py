"""Sends what is due while requests wait and run: pieces of text, news of the queue; and wakes up for deadlines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from agent.serving.jobs import Job
from agent.serving.ledger_health import LedgerHealth
from agent.serving.queue import RequestQueue
from agent.serving.replies import Replies
from agent.serving.seat import Seat
from agent.state.answer_writer import AnswerWriter

NEWS_SECONDS = 3.0
"""Between two words to a request that waits: often enough for a person, and 128 that wait cost next to nothing."""


class Streams:
    """``seats`` are the places where requests run now; ``estimate`` says how many seconds the n-th of the queue has
    to wait; ``on_deadline`` gets every request whose deadline has come.
    """

    def __init__(
        self,
        queue: RequestQueue[Job],
        ledger: AnswerWriter,
        replies: Replies,
        health: LedgerHealth,
        *,
        seats: Callable[[], list[Seat]],
        estimate: Callable[[int], float],
        on_deadline: Callable[[Job], None],
    ) -> None:
        self._queue = queue
        self._ledger = ledger
        self._replies = replies
        self._health = health
        self._seats = seats
        self._estimate = estimate
        self._on_deadline = on_deadline
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._timer: asyncio.TimerHandle | None = None
        self._next_news: float | None = None

    def flush(self, job: Job) -> None:
        """Send what is due of ``job``, or see to it that it is sent when it is."""
        due = job.frames.due_at()
        if due is None or not job.running:
            return
        if job.marked == "no":
            job.marked = "asked"
            future = self._ledger.streaming(job.key, job.attempt)
            future.add_done_callback(partial(self._marked, job, job.number))
        elif job.marked == "yes" and self._replies.writable:
            frame = job.frames.take(self._now())
            if frame is None:
                self.schedule(due)
            else:
                self._replies.piece(job, frame)

    def _marked(self, job: Job, number: int, future: asyncio.Future[None]) -> None:
        self._health.note(future.exception())
        # Without the note no piece may leave; the last frame still will.
        if future.exception() is None and job.number == number:
            job.marked = "yes"
            self.flush(job)

    def on_writable(self) -> None:
        """The connection takes frames again."""
        for seat in self._seats():
            for job in seat.jobs.values():
                self.flush(job)
        if any(job.frames.told is None for job in self._queue):
            self._tell_positions()

    def tell_position(self, job: Job) -> None:
        """Say to a request that has to wait how many are before it, and about how long."""
        self._tell(job, self._queue.position(job.number, self._now()))

    def _tell_positions(self) -> None:
        for ahead, job in enumerate(self._queue.in_order(self._now())):
            self._tell(job, ahead)

    def _tell(self, job: Job, ahead: int) -> None:
        place = ahead + sum(len(seat.jobs) for seat in self._seats())
        # Waiting once more after a crash is no news to whoever has seen text.
        if job.frames.streams and self._replies.writable and job.attempt == 1 and job.frames.told != place:
            self._replies.piece(job, job.frames.waiting(place, self._estimate(ahead)))

    def schedule(self, at: float | None = None) -> None:
        """Wake up for the next frame, word or deadline; with ``at``, only that one is new."""
        if at is not None and self._wakes_by(at):
            # The way of every token: all else was scheduled when it came up.
            return
        times = [self._queue.next_deadline(), at]
        if len(self._queue):
            self._next_news = self._next_news or self._now() + NEWS_SECONDS
            times.append(self._next_news)
        for seat in self._seats():
            for job in seat.jobs.values():
                times.append(job.deadline if job.ending is None else None)
                if job.marked == "yes" and self._replies.writable:
                    times.append(job.frames.due_at())
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
        for job in self._queue.expired(now):
            self._on_deadline(job)
        for seat in self._seats():
            for job in list(seat.jobs.values()):
                if job.deadline is not None and job.deadline <= now:
                    self._on_deadline(job)
                else:
                    self.flush(job)
        if self._next_news is not None and now >= self._next_news:
            self._next_news = None
            self._tell_positions()
        self.schedule()

    def close(self) -> None:
        """Wake up no more."""
        if self._timer is not None:
            self._timer.cancel()
