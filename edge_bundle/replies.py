"""From frames to one answer. Pure."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from contract.mqtt.messages import ControlFault, ErrorBody, LastFrame

MAX_FRAME_BYTES = 64 << 20
"""A device keeps no larger answer itself."""


class Piece(Struct, frozen=True):
    """New text to show. ``restart``: everything shown before is void (another attempt, or a resumed stream)."""

    text: str
    restart: bool = False


class Queued(Struct, frozen=True):
    """It waits: ``position`` others come first, and it may begin in ``estimate_ms``."""

    position: int
    estimate_ms: float


class Refused(Struct, frozen=True):
    """A control message (``op``) for this request did nothing; the request goes on."""

    op: str
    error: ErrorBody


class Answer(Struct, frozen=True):
    """How it ended: exactly one of ``last`` and ``error`` is set; ``raw`` is the frame as it came."""

    last: LastFrame | None
    error: ErrorBody | None
    raw: dict[str, Any]
    id: str = ""


Found = Piece | Queued | Refused | Answer


class Reassembly:
    """Frames of one request in any order and number; tolerates loss, repetition and new attempts."""

    def __init__(self) -> None:
        self.shown = ""
        self.tokens = 0
        self._next = 0
        self._attempt = 1
        self._broken = False

    def asked_again(self) -> None:
        """The request was turned away and begins anew, with frames from 0 on; what was shown is still shown."""
        self._next = 0
        self._attempt = 1
        self._broken = False

    def feed(self, payload: bytes) -> list[Found]:
        """What is new after this frame; nothing for what is no frame."""
        try:
            frame = msgspec.json.decode(payload)
            return self._read(frame) if isinstance(frame, dict) else []
        except (msgspec.MsgspecError, KeyError, TypeError, ValueError):
            return []

    def _read(self, frame: dict[str, Any]) -> list[Found]:
        if "control" in frame:
            fault = msgspec.convert(frame["control"], ControlFault)
            return [Refused(fault.op, fault.error)]
        if "error" in frame:
            return [Answer(None, msgspec.convert(frame["error"], ErrorBody), frame)]
        if "finish_reason" in frame:
            return self._end(msgspec.convert(frame, LastFrame), frame)
        sequence = int(frame["s"])
        if "estimate_ms" in frame:
            self._next = max(self._next, sequence + 1)
            return [Queued(int(frame["position"]), float(frame["estimate_ms"]))]
        return self._piece(sequence, str(frame["d"]), int(frame["n"]), frame.get("attempt"))

    def _piece(self, sequence: int, text: str, tokens: int, attempt: int | None) -> list[Found]:
        # A device that restarted counts from 0 again.
        newer = attempt is not None and attempt > self._attempt
        if sequence < self._next and not newer:
            return []
        self._attempt = attempt or self._attempt
        # A frame that names the attempt begins the text; so does the answer to resume.
        begins = attempt is not None
        if sequence > self._next and not begins:
            # Something is missing in between: the last frame will have it.
            self._broken = True
        self._next = sequence + 1
        self.tokens = tokens
        if begins:
            restart = bool(self.shown)
            self._broken = False
            common = text.startswith(self.shown)
            piece = Piece(text[len(self.shown) :]) if common else Piece(text, restart)
            self.shown = text
            return [piece] if piece.text or piece.restart else []
        if self._broken:
            return []
        self.shown += text
        return [Piece(text)] if text else []

    def _end(self, last: LastFrame, raw: dict[str, Any]) -> list[Found]:
        found: list[Found] = []
        if last.text.startswith(self.shown):
            tail = last.text[len(self.shown) :]
            if tail:
                found.append(Piece(tail))
        else:
            found.append(Piece(last.text, restart=True))
        self.shown = last.text
        self.tokens = last.usage.completion_tokens
        found.append(Answer(last, None, raw))
        return found


def is_refusal(payload: bytes) -> bool:
    """Whether this says of a control message that it did nothing."""
    return any(isinstance(each, Refused) for each in Reassembly().feed(payload))
