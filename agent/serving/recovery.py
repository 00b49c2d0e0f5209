"""What an earlier run of the agent left behind, and what becomes of it."""

from __future__ import annotations

from msgspec import Struct

from agent.serving import requests
from agent.serving.replies import Replies
from agent.serving.requests import Refusal
from agent.state.answer_writer import AnswerWriter
from agent.state.answers import Unfinished
from contract.errors import RequestInvalid
from contract.mqtt import messages, reading
from contract.mqtt.messages import GenerateRequest

MAX_ATTEMPTS = 3
"""Restarts that a request may survive: one that takes the agent down with it must not do so for ever."""


class LeftOver(Struct, frozen=True):
    """``request`` is run again, unless ``refusal`` says why that cannot be."""

    of: Unfinished
    request: GenerateRequest
    refusal: Refusal | None


async def take_up(ledger: AnswerWriter, replies: Replies) -> list[LeftOver]:
    """Deliver the answers that the broker may not have; what else was accepted, oldest first.

    That waits while answers cannot be stored: it was promised one result, and each attempt has to be counted.
    """
    for key, last, correlation in await ledger.undelivered():
        # Without its text, the client hears at least that there is nothing to wait for.
        known = last if last is not None else messages.encode(requests.error_frame(0, requests.GONE))
        replies.deliver(key, known, correlation)
    return [] if ledger.volatile else await unfinished(ledger)


async def unfinished(ledger: AnswerWriter) -> list[LeftOver]:
    """What was accepted and has no answer, oldest first."""
    return [_judge(left) for left in await ledger.unfinished()]


def _judge(left: Unfinished) -> LeftOver:
    request, refusal = GenerateRequest(), None
    if left.request is not None:
        try:
            _, request = reading.parse_request(left.request, left.correlation)
        except RequestInvalid as error:
            # An older agent accepted what this one does not.
            return LeftOver(left, request, requests.refusal_of(error))
    if left.attempt > MAX_ATTEMPTS:
        refusal = _interrupted("the device restarted too often")
    elif left.streamed or left.request is None:
        refusal = _interrupted("the device restarted while it answered")
    return LeftOver(left, request, refusal)


def _interrupted(why: str) -> Refusal:
    return Refusal(503, requests.INTERRUPTED, f"{why}; ask again with another id")
