"""From frames to one answer. Pure."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from contract.mqtt.messages import ErrorBody, LastFrame

MAX_FRAME_BYTES = 64 << 20
"""A device keeps no larger answer itself."""


class Piece(Struct, frozen=True):
    """New text to show. ``restart``: everything shown before is void (another attempt, or a resumed stream)."""

    text: str
    restart: bool = False


class Answer(Struct, frozen=True):
    """How it ended: exactly one of ``last`` and ``error`` is set; ``raw`` is the frame as it came."""

    last: LastFrame | None
    error: ErrorBody | None
    raw: dict[str, Any]


class Reassembly:
    """Frames of one request in any order and number; tolerates loss, repetition and new attempts."""

    def __init__(self) -> None:
        self.shown = ""
        self.tokens = 0
        self._next = 0
        self._attempt = 1
        self._broken = False

    def feed(self, payload: bytes) -> list[Piece | Answer]:
        """What is new after this frame; nothing for what is no frame."""
        try:
            frame = msgspec.json.decode(payload)
            if not isinstance(frame, dict):
                return []
            if "error" in frame:
                return [Answer(None, msgspec.convert(frame["error"], ErrorBody), frame)]
            if "finish_reason" in frame:
                return self._end(msgspec.convert(frame, LastFrame), frame)
            return self._piece(int(frame["s"]), str(frame["d"]), int(frame["n"]), frame.get("attempt"))
        except (msgspec.MsgspecError, KeyError, TypeError, ValueError):
            return []

    def _piece(self, sequence: int, text: str, tokens: int, attempt: int | None) -> list[Piece | Answer]:
        if sequence < self._next:
            return []
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

    def _end(self, last: LastFrame, raw: dict[str, Any]) -> list[Piece | Answer]:
        found: list[Piece | Answer] = []
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
