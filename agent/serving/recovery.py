"""What an earlier run of the agent left behind, and what becomes of it."""

from __future__ import annotations

import logging

import msgspec
from msgspec import Struct

from agent.serving import requests
from agent.serving.replies import Replies
from agent.serving.requests import Refusal, error_frame
from agent.serving.settlement import FAULT
from agent.state.result_store import Key, Unfinished
from agent.state.result_writer import ResultWriter
from contract.errors import RequestInvalid
from contract.mqtt import reading
from contract.mqtt.encoding import encode
from contract.mqtt.requests import MAX_STORED_BYTES, GenerateRequest

log = logging.getLogger("edge_agent.serving")

MAX_ATTEMPTS = 3
"""Restarts that a request may survive: one that takes the agent down with it must not do so for ever."""


LOST = Refusal(
    500, requests.INTERNAL_ERROR, "the device cannot read what it stored of this request; ask again with another id"
)


class PendingRequest(Struct, frozen=True):
    """``params`` are run again, unless ``refusal`` gives a reason why that cannot be."""

    of: Unfinished
    params: GenerateRequest
    refusal: Refusal | None


async def recover(result_store: ResultWriter, replies: Replies) -> list[PendingRequest]:
    """Deliver the answers that the broker may not have; what else was accepted, oldest first.

    That waits while answers cannot be stored: it was promised one result, and each attempt has to be counted.
    """
    lost = await result_store.set_aside_unreadable()
    for each in lost:
        replies.error(Key(each.client, each.id), LOST, None)
    for key, last, correlation in await result_store.undelivered():
        # Without its text, the client learns at least that there is nothing to wait for.
        refusal = requests.GONE if last is None else None if _is_frame(last) else LOST
        known = last if last is not None and refusal is None else encode(error_frame(0, refusal or LOST))
        replies.deliver(key, known, correlation)
    return [] if result_store.volatile else await pending_requests(result_store)


def _is_frame(stored: bytes) -> bool:
    """Whether ``stored`` is what we store: one JSON object."""
    try:
        return isinstance(msgspec.json.decode(stored), dict)
    except (ValueError, RecursionError):
        return False


async def pending_requests(result_store: ResultWriter) -> list[PendingRequest]:
    """What was accepted and has no answer, oldest first."""
    await result_store.set_aside_unreadable()
    return [_on_recorded(left) for left in await result_store.unfinished()]


def _on_recorded(left: Unfinished) -> PendingRequest:
    """As :func:`_judge`; a request at which that fails is stored, so it would keep every start from coming through."""
    try:
        return _judge(left)
    except Exception:
        log.exception("a request from before the restart cannot be resumed")
        return PendingRequest(left, GenerateRequest(), FAULT)


def _judge(left: Unfinished) -> PendingRequest:
    request, refusal = GenerateRequest(), None
    if left.request is not None:
        try:
            _, request = reading.parse_request(left.request, left.correlation, left.key.id, max_bytes=MAX_STORED_BYTES)
        except RequestInvalid as error:
            # An older agent accepted what this one does not.
            return PendingRequest(left, request, requests.refusal_of(error))
    if left.attempt > MAX_ATTEMPTS:
        refusal = _interrupted("the device restarted too often")
    elif left.streamed or left.request is None:
        refusal = _interrupted("the device restarted while it answered")
    return PendingRequest(left, request, refusal)


def _interrupted(why: str) -> Refusal:
    return Refusal(503, requests.INTERRUPTED, f"{why}; ask again with another id")
