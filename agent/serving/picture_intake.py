"""Pictures that come in parts, from messages to the requests that name them."""

from __future__ import annotations

import asyncio
import logging

import msgspec

from agent.serving import requests
from agent.serving.picture_parts import KEEP_SECONDS, PictureParts
from agent.serving.replies import Replies
from agent.serving.requests import Refusal
from agent.state.result_store import Key
from contract.errors import Fault, RequestInvalid
from contract.mqtt.picture_references import references, with_pictures
from contract.mqtt.pictures import MAX_PICTURE_BYTES, MAX_PICTURE_PARTS, PicturePart
from contract.mqtt.requests import GenerateRequest
from contract.mqtt.topics import NO_ID

log = logging.getLogger("edge_agent.serving")

NO_PART = RequestInvalid(
    "a part of a picture goes to picture/CLIENT/DIGEST/NUMBER-COUNT: 64 digits 0-9 a-f, and "
    f"1-1 to {MAX_PICTURE_PARTS}-{MAX_PICTURE_PARTS}",
    field="picture",
)


class PictureIntake:
    """Keeps parts until requests name them; what is wrong with one is said on the reply topic without an id."""

    def __init__(self, replies: Replies) -> None:
        self._replies = replies
        self._loop = asyncio.get_running_loop()
        self._parts = PictureParts(self._loop.time)
        self._timer: asyncio.TimerHandle | None = None

    def receive(self, client: str, part: PicturePart | None, data: bytes) -> None:
        """A part came in; None: its topic does not say which."""
        try:
            if part is None:
                raise NO_PART
            self._parts.add(client, part, data)
        except RequestInvalid as refused:
            log.info("refused a part of a picture of %s: %s", client, refused.message)
            self._replies.error(Key(client, NO_ID), requests.refusal_of(refused), None)
        self._sweep_later()

    def expand(self, client: str, request: GenerateRequest, payload: bytes) -> tuple[GenerateRequest, bytes]:
        """``request`` and its bytes, with the pictures that are here in the place of their names.

        Raises:
            RequestInvalid: together they are more than a request takes.
        """
        named = {each.digest: self._parts.find(client, each.digest) for each in references(request)}
        found = {digest: data for digest, data in named.items() if data is not None}
        if not found:
            return request, payload
        sizes = [len(found.get(each.digest, b"")) for each in references(request)]
        if sum(sizes) > MAX_PICTURE_BYTES:
            raise RequestInvalid(
                f"the pictures of a request have {MAX_PICTURE_BYTES:,} bytes together at most, not {sum(sizes):,}",
                field="messages",
                code=413,
            )
        expanded = with_pictures(request, found)
        return expanded, msgspec.json.encode(expanded)

    def missing(self, client: str, request: GenerateRequest) -> Refusal | None:
        """That pictures which ``request`` still names are not here, and which; None where it names none."""
        faults = tuple(
            Fault(each.field, f"the picture sha256:{each.digest} {self._parts.lacking(client, each.digest)}")
            for each in references(request)
        )
        if not faults:
            return None
        text = f"{faults[0].message}; send its parts, then the request again with the same id"
        return Refusal(404, requests.PICTURE_MISSING, text, faults[0].field, details=faults)

    def _sweep_later(self) -> None:
        if self._timer is None and len(self._parts):
            self._timer = self._loop.call_later(KEEP_SECONDS + 1, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        self._parts.sweep()
        self._sweep_later()
