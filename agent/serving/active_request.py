"""What is known of one accepted request while it waits and runs, and the states of its life. Pure.

The table is the only truth about the life: nothing else records whether a request waits, runs or is over, and a step
that the table does not have raises and changes nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from agent.serving.frames import FrameStream
from agent.serving.statistics import Statistics
from agent.state.result_store import Key
from contract.mqtt.requests import GenerateRequest

EarlyEnd = Literal["cancelled", "deadline"]


class State(enum.Enum):
    """Where an accepted request is."""

    QUEUED = "queued"
    """It waits for its turn."""
    RUNNING = "running"
    """A replica is at work on it."""
    CANCELLING = "cancelling"
    """It is to end early, and its replica was asked to cancel it."""
    COMPLETING = "completing"
    """Its one result is decided, and is being stored."""
    DONE = "done"
    """Its result is stored, and on its way to the client."""


class Step(enum.Enum):
    """What can happen to it."""

    START = "start"
    CANCEL = "cancel"
    REQUEUE = "requeue"
    COMPLETE = "complete"
    STORE = "store"


TRANSITIONS: Mapping[tuple[State, Step], State] = MappingProxyType(
    {
        (State.QUEUED, Step.START): State.RUNNING,
        (State.QUEUED, Step.COMPLETE): State.COMPLETING,
        (State.RUNNING, Step.CANCEL): State.CANCELLING,
        (State.RUNNING, Step.REQUEUE): State.QUEUED,
        (State.RUNNING, Step.COMPLETE): State.COMPLETING,
        (State.CANCELLING, Step.COMPLETE): State.COMPLETING,
        (State.COMPLETING, Step.STORE): State.DONE,
    }
)
"""One that is to end early is never queued again: without its replica it ends at once."""


class IllegalStep(Exception):
    """A fault of ours: the request is not where it would have to be for this."""


class StreamState(enum.Enum):
    """Whether pieces of an answer may leave: no sooner than the result store knows that they may have."""

    CLOSED = "closed"
    OPENING = "opening"
    OPEN = "open"


class ActiveRequest:
    """``number`` is new for each attempt, so that no event of a dead worker is taken for one of its replacement.

    ``deadline`` and ``accepted`` on the clock of the scheduler; ``size``: its bytes as it came in. ``changes`` are what
    ``update`` asked for so far: they apply while it waits, too, and to the next attempt. ``ending``: why it ends early,
    once that is decided. ``worker``: the process that has it, or had it last. ``statistics``: where what its worker
    does with it counts.
    """

    def __init__(
        self,
        key: Key,
        params: GenerateRequest,
        frames: FrameStream,
        *,
        accepted: float,
        deadline: float | None,
        correlation: bytes | None,
    ) -> None:
        self.key = key
        self.params = params
        self.frames = frames
        self.accepted = accepted
        self.deadline = deadline
        self.correlation = correlation
        self.attempt = 1
        self.size = 0
        self.number = 0
        self.worker: int | None = None
        self.statistics: Statistics | None = None
        self.crashes = 0
        self.ending: EarlyEnd | None = None
        self.stream = StreamState.CLOSED
        self.changes: dict[str, Any] = {}
        self._state = State.QUEUED
        self._running = False

    @property
    def state(self) -> State:
        return self._state

    @property
    def running(self) -> bool:
        """A replica has it."""
        return self._running

    @property
    def completed(self) -> bool:
        """Its result is decided: nothing can change it any more."""
        return self._state is State.COMPLETING or self._state is State.DONE

    def advance(self, step: Step) -> None:
        """Go on to the next state.

        Raises:
            IllegalStep: the table does not have this; nothing has changed.
        """
        after = TRANSITIONS.get((self._state, step))
        if after is None:
            raise IllegalStep(f"a request that is {self._state.value} cannot {step.value}")
        self._state = after
        # Every token asks for it.
        self._running = after in (State.RUNNING, State.CANCELLING)
        if step is Step.REQUEUE:
            self.attempt += 1
            self.statistics = None
            self.stream = StreamState.CLOSED
