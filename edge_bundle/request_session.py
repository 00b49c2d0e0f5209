"""One request from the first word to the last frame: what to send when. Pure: clock and frames are handed in.

A request is sent again, with the same bytes, whenever it may have been lost: the device answers an id once, whatever
is sent twice. After a broken connection ``resume`` asks for the text that went by meanwhile.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any, Literal

from msgspec import UNSET, structs

from contract.errors import EngineFailed, RequestInvalid, SourceUnavailable, UsageError
from contract.identifiers import is_identifier
from contract.mqtt.answers import LastFrame
from contract.mqtt.faults import ErrorBody
from contract.mqtt.pictures import split_picture
from contract.mqtt.requests import MAX_REQUEST_BYTES
from contract.mqtt.topics import Topics
from edge_bundle.pictures import take_out
from edge_bundle.replies import Answer, Found, Queued, Reassembly

SILENCE_SECONDS = 15.0
"""Without any frame for so long, the device is asked again: the same id never costs a second run."""

RETRY_SECONDS = 1.0
"""Before asking a busy device again, where it does not say when."""

PICTURE_MISSING = "picture_missing"
MAX_PARTS_SENT = 3
"""How often pictures are sent to a device that says that it has not got them."""

Action = Literal["ask", "resume"]


class RequestSession:
    """``device`` or ``group`` is asked as client ``name``; with ``retry``, refusals that name a time are waited out.

    ``asked``: whether the request was sent, so that somebody may be at it.

    Raises:
        UsageError: neither or both of device and group. RequestInvalid: what a device could not answer on the topic
            that is listened to, since it cannot read the id.
    """

    def __init__(
        self,
        body: dict[str, Any],
        *,
        name: str,
        root: str,
        device: str | None,
        group: str | None,
        now: float,
        timeout: float,
        retry: bool,
    ) -> None:
        if (device is None) == (group is None):
            raise UsageError("name either a device or a group")
        self.body = {"id": secrets.token_hex(8), **body}
        self.id = str(self.body["id"])
        if not is_identifier(self.id):
            raise RequestInvalid("an id is 1 to 64 of A-Z a-z 0-9 _ . -", field="id")
        self.payload = _written(self.body)
        self._pictures: dict[str, bytes] = {}
        if len(self.payload) > MAX_REQUEST_BYTES and device is not None:
            self.body, self._pictures = take_out(self.body)
            self.payload = _written(self.body)
        self._parts_due, self._parts_sent = bool(self._pictures), 0
        if len(self.payload) > MAX_REQUEST_BYTES:
            raise RequestInvalid(
                f"the request has {len(self.payload):,} bytes, a device takes {MAX_REQUEST_BYTES:,}: shorten it",
                code=413,
            )
        self.device = device
        self.asked = False
        self._name = name
        self._root = root
        self.group = group
        self._timeout = timeout
        self._retry = retry
        self._deadline = now + timeout
        self._ask_at: float | None = now
        self._resume_at: float | None = None
        self._heard = self._arrived = now
        self._position: int | None = None
        self._turned_away: ErrorBody | None = None
        self._reassembly = Reassembly()

    @property
    def topic(self) -> str:
        """Where the request goes: to the device that answers it, once that is known."""
        if self.device is not None:
            return Topics(self.device, self._root).generate(self._name)
        return Topics("any", self._root).group_generate(str(self.group), self._name)

    def cancel(self, device: str) -> tuple[str, bytes]:
        """Topic and payload that end the request on ``device``."""
        return control_message(self._root, device, self._name, self.id, "cancel")

    def message(self, action: Action) -> tuple[str, bytes]:
        """Topic and payload that ``action`` sends."""
        if action == "ask":
            return self.topic, self.payload
        assert self.device is not None
        return control_message(self._root, self.device, self._name, self.id, "resume")

    def messages(self, action: Action) -> Iterator[tuple[str, bytes]]:
        """Topics and payloads that ``action`` sends, in this order: pictures that do not fit into the request first."""
        if action == "ask" and self._parts_due:
            self._parts_due = False
            self._parts_sent += 1
            topics = Topics(str(self.device), self._root)
            for data in self._pictures.values():
                for part, piece in split_picture(data):
                    yield topics.picture(self._name, part), piece
        yield self.message(action)

    def reconnected(self, now: float) -> None:
        """The connection was gone: frames may be lost, and the request, too."""
        # To a group it would be another request for another device; the broker still has ours.
        if self.device is not None:
            self._ask_at = self._resume_at = now

    def _heard_nothing(self, now: float) -> None:
        self._heard = now
        # Brokers drop what a member of a group had not yet acknowledged when it vanished: another one shall answer.
        self._ask_at = now
        self._resume_at = None if self.device is None else now

    def actions(self, now: float) -> list[Action]:
        """What to send now.

        Raises:
            SourceUnavailable: the time is up.
        """
        if now >= self._deadline:
            raise SourceUnavailable(self._late())
        if now - self._heard >= SILENCE_SECONDS:
            self._heard_nothing(now)
        found: list[Action] = []
        if self._ask_at is not None and self._ask_at <= now:
            self._ask_at = None
            self.asked = True
            found.append("ask")
        if self._resume_at is not None and self._resume_at <= now:
            self._resume_at = None
            found.append("resume")
        return found

    def _late(self) -> str:
        """That the time is up, and how far it came."""
        within = f"within {self._timeout:g} s"
        if self._reassembly.shown:
            came, ago = len(self._reassembly.shown), self._deadline - self._arrived
            last = f", the last of them {ago:.0f} s ago" if ago >= 1 else ""
            return f"the answer of {self.device} was not complete {within}: {came} characters had come{last}"
        if self._turned_away is not None:
            return f"{self.device} could not answer {within}: {self._turned_away.message}"
        if self._position is not None:
            return f"{self.device} had not begun to answer {within}: {self._position} requests were before this one"
        return f"no answer from {self.device or f'the group {self.group}'} {within}; is it online?"

    def due_at(self) -> float:
        """When :meth:`actions` has something to do again."""
        times = [self._deadline, self._heard + SILENCE_SECONDS, self._ask_at, self._resume_at]
        return min(when for when in times if when is not None)

    def feed(self, topic: str, payload: bytes, now: float) -> list[Found]:
        """What a message on one of our reply topics says of this request."""
        *_, device, request_id = topic.rsplit("/", 2)
        if request_id != self.id:
            return []
        if device != self.device and self.device is not None:
            return self._hear_another(payload)
        self._heard = self._arrived = now
        self.device = device
        found = self._read(payload)
        for each in found:
            if isinstance(each, Queued):
                self._position = each.position
        if found and isinstance(found[-1], Answer) and self._lacks_pictures(found[-1].error):
            self._parts_due = True
            self._ask_at = now
            self._reassembly.asked_again()
            return []
        if self._retry and found and isinstance(found[-1], Answer) and _may_pass(found[-1].error):
            error = found[-1].error
            assert error is not None
            wait = RETRY_SECONDS if error.retry_after_ms is UNSET else max(0.05, error.retry_after_ms / 1000)
            self._turned_away = error
            if now + wait < self._deadline:
                self._ask_at = now + wait
                self._heard = now + wait
                self._reassembly.asked_again()
                return []
        return found

    def _lacks_pictures(self, error: ErrorBody | None) -> bool:
        """Whether the device has lost the parts that were sent, or never had them, and shall get them again."""
        lacks = error is not None and error.type == PICTURE_MISSING and bool(self._pictures)
        return lacks and self._parts_sent < MAX_PARTS_SENT

    def _hear_another(self, payload: bytes) -> list[Found]:
        """Another device than the one we listen to: of a group, its whole answer is as good; else it has no say."""
        if self.group is None:
            return []
        ends = [one for one in Reassembly().feed(payload) if isinstance(one, Answer) and one.last is not None]
        if not ends:
            return []
        return self._read(payload)

    def _read(self, payload: bytes) -> list[Found]:
        return [
            structs.replace(one, id=self.id) if isinstance(one, Answer) else one
            for one in self._reassembly.feed(payload)
        ]


def _written(body: dict[str, Any]) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise RequestInvalid(f"the request cannot be written as JSON: {error}") from error


def control_message(root: str, device: str, name: str, request_id: str, op: str, **more: Any) -> tuple[str, bytes]:
    """Topic and payload of a control message for a request of client ``name``."""
    return Topics(device, root).control(name), json.dumps({"id": request_id, "op": op, **more}).encode()


def last_of(answer: Answer) -> LastFrame:
    """The last frame of a request that was answered.

    Raises:
        SourceUnavailable, EngineFailed, RequestInvalid: it ended with an error.
    """
    if answer.error is not None:
        raise_error(answer.error)
    assert answer.last is not None
    return answer.last


def _may_pass(error: ErrorBody | None) -> bool:
    return error is not None and error.code in (429, 503) and error.type != "interrupted"


def raise_error(error: ErrorBody) -> None:
    """Turn a device's error into ours.

    Raises:
        SourceUnavailable: it cannot answer now. EngineFailed: it failed. RequestInvalid: the request is at fault.
    """
    if error.code in (429, 503):
        raise SourceUnavailable(f"the device cannot answer now: {error.message}")
    if error.code >= 500:
        raise EngineFailed(f"the device failed: {error.message}")
    field = error.field if isinstance(error.field, str) else None
    raise RequestInvalid(f"the device refuses the request: {error.message}", field=field, code=error.code)
