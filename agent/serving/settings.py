"""The ``[serving]`` table of the configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from contract.mqtt.messages import DEFAULT_PRIORITY


class ServingSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of what waits and runs. Times in seconds unless the name says otherwise.

    ``queue_limit`` requests wait at most, ``client_queue_limit`` of one client. ``max_priority`` caps what any client
    may ask for, ``client_max_priority`` what a certain one may: whoever may be more urgent than others can keep them
    waiting. ``drain_seconds``: how long a swap waits for running answers before it runs them again on the new model;
    ``stop_seconds`` the same when the agent stops. While more than ``group_high_mark`` requests wait, this device takes
    none that were sent to its groups.
    ``store_results``: ``text`` keeps prompts until they are answered and answers for a while, so that a restart loses
    nothing; ``hash`` writes no text to the disk, and what a restart interrupts has to be asked again.
    ``log_prompts`` puts prompts and answers into the log, as fields of their own; without it they never are there.
    ``idle_unload``: after so many seconds without a request the model's process is ended, which gives all of its memory
    back; the next request waits until it is loaded again. 0: it stays loaded.
    """

    queue_limit: Annotated[int, Meta(ge=1, le=10_000)] = 128
    client_queue_limit: Annotated[int, Meta(ge=1, le=10_000)] = 64
    stream_interval_ms: Annotated[int, Meta(ge=0, le=10_000)] = 50
    max_priority: Annotated[int, Meta(ge=0, le=9)] = DEFAULT_PRIORITY
    client_max_priority: dict[str, Annotated[int, Meta(ge=0, le=9)]] = {}
    group_high_mark: Annotated[int, Meta(ge=0, le=10_000)] = 4
    store_results: Literal["text", "hash"] = "text"
    log_prompts: bool = False
    drain_seconds: Annotated[float, Meta(gt=0, le=3600)] = 120.0
    stop_seconds: Annotated[float, Meta(ge=0, le=600)] = 10.0
    idle_unload: Annotated[float, Meta(ge=0, le=30 * 86400)] = 0.0

    def priority_of(self, client: str, asked: int) -> int:
        """What ``client`` gets when it asks for ``asked``."""
        return min(asked, self.client_max_priority.get(client, self.max_priority))
