"""What is logged of each request, so that it can be followed from its topic to the worker and back.

Every line has the client and the id, from the worker on also its process and the number that it knows the request by.
What the client wrote and what it got is in no line, unless ``prompts`` is set: then in private fields of the last one.
"""

from __future__ import annotations

import logging
import re

from msgspec import UNSET

from agent.serving.active_request import ActiveRequest
from agent.serving.requests import Refusal
from agent.state.result_store import Key
from agent.systemd.journal import fields
from contract.mqtt.conversation import ImagePart, Message
from contract.mqtt.requests import GenerateRequest

log = logging.getLogger("edge_agent.serving")


class RequestLog:
    """A line for each turn that a request takes; the end and refusals at level info, the way at debug."""

    def __init__(self, *, prompts: bool) -> None:
        self._prompts = prompts

    def accepted(self, request: ActiveRequest) -> None:
        log.debug(
            "request accepted", extra=fields(client=request.key.client, request=request.key.id, attempt=request.attempt)
        )

    def refused(self, key: Key, refusal: Refusal) -> None:
        """Never with the refusal's sentence, and of its field only a name of ours: both may quote what was sent."""
        field = re.split(r"[.\[]", refusal.field or "")[0]
        known = field if field in GenerateRequest.__struct_fields__ else None
        found = fields(client=key.client, request=key.id, code=refusal.code, error=refusal.kind, field=known)
        log.info("request refused", extra=found)

    def began(self, request: ActiveRequest, worker: int, bundle: str) -> None:
        request.worker = worker
        found = fields(
            client=request.key.client, request=request.key.id, number=request.number, worker=worker, bundle=bundle
        )
        log.debug("request given to a worker", extra=found)

    def lost(self, request: ActiveRequest) -> None:
        found = fields(
            client=request.key.client,
            request=request.key.id,
            number=request.number,
            worker=request.worker,
            attempt=request.attempt,
        )
        log.warning("request was with a worker that ended", extra=found)

    def ended(
        self, request: ActiveRequest, outcome: str, seconds: float, *, tokens: int = 0, error: str | None = None
    ) -> None:
        private = {}
        if self._prompts:
            private = {"prompt": _prompt_of(request.params), "answer": request.frames.text}
        found = fields(
            private,
            client=request.key.client,
            request=request.key.id,
            outcome=outcome,
            tokens=tokens,
            seconds=f"{seconds:.3f}",
            number=request.number,
            worker=request.worker,
            bundle=request.frames.bundle or None,
            attempt=request.attempt,
            error=error,
        )
        log.info("request ended", extra=found)


def _prompt_of(request: GenerateRequest) -> str:
    if request.prompt is not UNSET:
        return request.prompt
    turns = [] if request.messages is UNSET else request.messages
    return "\n".join(f"{turn.role}: {_text_of(turn)}" for turn in turns)


def _text_of(turn: Message) -> str:
    return "".join("[a picture]" if isinstance(part, ImagePart) else part.text for part in turn.parts)
