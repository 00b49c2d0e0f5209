"""The ``[serving]`` table of the configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from contract.mqtt.requests import DEFAULT_PRIORITY, MAX_TOKENS


class ServingSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """``[serving]``: bounds of what waits and runs."""

    queue_limit: Annotated[
        int, Meta(ge=1, le=10_000, description="requests that wait at most; one more is answered 429")
    ] = 128
    client_queue_limit: Annotated[int, Meta(ge=1, le=10_000, description="the same for those of one client")] = 64
    stream_interval_ms: Annotated[
        int, Meta(ge=0, le=10_000, description="least time between two pieces of a streamed answer")
    ] = 50
    max_priority: Annotated[
        int, Meta(ge=0, le=9, description="highest priority that any client gets; higher ones are lowered to it")
    ] = DEFAULT_PRIORITY
    client_max_priority: Annotated[
        dict[str, Annotated[int, Meta(ge=0, le=9)]],
        Meta(description="the same for certain clients, by name: whoever may be more urgent can keep others waiting"),
    ] = {}
    group_high_mark: Annotated[
        int,
        Meta(ge=0, le=10_000, description="while more requests wait than this, none that was sent to a group is taken"),
    ] = 4
    store_results: Annotated[
        Literal["text", "hash"],
        Meta(
            description="`text`: prompts are kept until they are answered, answers for a while, so that a restart "
            "loses nothing; `hash`: no text is written, and what a restart interrupts has to be asked again"
        ),
    ] = "text"
    default_max_tokens: Annotated[
        int,
        Meta(
            ge=0,
            le=MAX_TOKENS,
            extra={"unit": "tokens"},
            description="longest answer where neither the request nor the bundle says; 0: to the context's end",
        ),
    ] = 4096
    max_tokens_limit: Annotated[
        int,
        Meta(
            ge=0,
            le=MAX_TOKENS,
            extra={"unit": "tokens"},
            description="longest answer whatever a request or the bundle says; 0: no limit",
        ),
    ] = 0
    check_model: Annotated[
        bool,
        Meta(
            description="refuse (404) a request whose `model` is neither the active bundle's name (NAME or "
            "NAME@VERSION) nor one of `model_aliases`; otherwise `model` is ignored"
        ),
    ] = False
    model_aliases: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=256)]],
        Meta(max_length=64, description="more names under which a request may ask for the active bundle"),
    ] = []
    log_prompts: Annotated[bool, Meta(description="put prompts and answers into the log, as fields of their own")] = (
        False
    )
    drain_seconds: Annotated[
        float,
        Meta(gt=0, le=3600, description="how long a swap waits for running answers before it runs them again"),
    ] = 120.0
    stop_seconds: Annotated[float, Meta(ge=0, le=600, description="the same when the agent is stopped")] = 10.0
    idle_unload: Annotated[
        float,
        Meta(
            ge=0,
            le=30 * 86400,
            extra={"unit": "seconds"},
            description="without a request for so long, the model's process ends and gives its memory back; the next "
            "request loads it again; 0: it stays",
        ),
    ] = 0.0

    def priority_of(self, client: str, asked: int) -> int:
        """What ``client`` gets when it asks for ``asked``."""
        return min(asked, self.client_max_priority.get(client, self.max_priority))
