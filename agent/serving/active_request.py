"""What is known of one accepted request while it waits and runs."""

from __future__ import annotations

from typing import Any, Literal

from agent.serving.frames import FrameStream
from agent.serving.statistics import Statistics
from agent.state.answers import Key
from contract.mqtt.messages import GenerateRequest

REQUEUED_PRIORITY = 10
"""Above every priority that a client can ask for: it had its turn already and lost it through no fault of its own."""


class ActiveRequest:
    """``number`` is new for each attempt, so that events of a dead worker can never be taken for those of its heir.

    ``ending`` is set once it is decided that it ends early, and why, ``ended`` once it has its result. ``stream_mark``
    says whether the result store knows that pieces of the answer may have left: no frame goes out before. ``changes``
    are what ``update`` asked for so far: they hold while it waits, too, and for the next attempt. ``worker``: the
    process that has it, or had it last. ``size``: its bytes as it came in. ``statistics``: where what its worker does
    with it counts.
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
        self.running = False
        self.ended = False
        self.ending: Literal["cancelled", "deadline"] | None = None
        self.stream_mark: Literal["no", "asked", "yes"] = "no"
        self.logprobs: list[dict[str, Any]] = []
        self.changes: dict[str, Any] = {}

    def prepare_retry(self) -> None:
        """Back to the queue for another attempt."""
        self.attempt += 1
        self.running = False
        self.statistics = None
        self.stream_mark = "no"
        self.logprobs.clear()
