"""From frames to one answer. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct, structs

from contract.mqtt.answers import Choice, ControlFault, LastFrame
from contract.mqtt.faults import ErrorBody
from contract.mqtt.requests import MAX_CHOICES
from contract.mqtt.tools import MAX_CALLS, CallFragment, ToolCallDelta

MAX_FRAME_BYTES = 64 << 20
"""A device keeps no larger answer itself."""


class Piece(Struct, frozen=True):
    """New text to show. ``restart``: everything shown before is void (another attempt, or a resumed stream).

    ``reasoning`` is more of what the model thinks first, ``tool_calls`` are more of its calls, as OpenAI streams them:
    ``index``, and of a new one ``id`` and ``function.name``, then more of ``function.arguments``. ``index``: of which
    answer, where several were asked for (``n``). ``bundle``: which one answers, where the frame names it.
    """

    text: str
    restart: bool = False
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    index: int = 0
    bundle: str = ""

    @property
    def is_news(self) -> bool:
        return bool(self.text or self.restart or self.reasoning or self.tool_calls)


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


class AnswerSoFar:
    """What was handed on so far: text, thoughts, and of each call its id, name and arguments."""

    def __init__(self) -> None:
        self.text = ""
        self.reasoning = ""
        self.calls: list[tuple[str, str, str]] = []

    def add(self, text: str, reasoning: str, calls: Iterable[ToolCallDelta]) -> None:
        """More of each."""
        self.text += text
        self.reasoning += reasoning
        for each in calls:
            while len(self.calls) <= each.index < MAX_CALLS:
                self.calls.append(("", "", ""))
            if 0 <= each.index < len(self.calls):
                request_id, name, arguments = self.calls[each.index]
                function = each.function
                self.calls[each.index] = (
                    request_id or (each.id or ""),
                    name or (function.name or ""),
                    arguments + (function.arguments or ""),
                )

    def rest(self, whole: AnswerSoFar) -> Piece:
        """What ``whole`` has beyond this: all of it, as a restart, where this is not how it begins."""
        same = whole.text.startswith(self.text) and whole.reasoning.startswith(self.reasoning)
        same = same and len(self.calls) <= len(whole.calls)
        for mine, theirs in zip(self.calls, whole.calls, strict=False):
            same = same and mine[:2] == theirs[:2] and theirs[2].startswith(mine[2])
        if not same:
            return AnswerSoFar().rest(whole) if self.empty else structs.replace(AnswerSoFar().rest(whole), restart=True)
        calls = [*self.calls, *([("", "", "")] * (len(whole.calls) - len(self.calls)))]
        deltas = tuple(
            _delta(index, theirs, theirs[2][len(mine[2]) :])
            for index, (mine, theirs) in enumerate(zip(calls, whole.calls, strict=True))
            if mine != theirs
        )
        return Piece(whole.text[len(self.text) :], reasoning=whole.reasoning[len(self.reasoning) :], tool_calls=deltas)

    @property
    def empty(self) -> bool:
        return not (self.text or self.reasoning or self.calls)


def _delta(index: int, call: tuple[str, str, str], arguments: str) -> ToolCallDelta:
    """More ``arguments`` of a call; with what it is called where all of them are new."""
    if arguments != call[2]:
        return ToolCallDelta(index, CallFragment(arguments=arguments))
    return ToolCallDelta(index, CallFragment(call[1], arguments), call[0], "function")


class Reassembly:
    """Frames of one request in any order and number; tolerates loss, repetition and new attempts."""

    def __init__(self) -> None:
        self.tokens = 0
        self._shown: dict[int, AnswerSoFar] = {}
        self._next = 0
        self._attempt = 1
        self._broken = False
        # Answers that began again since a frame was missed.
        self._whole: set[int] = set()

    @property
    def shown(self) -> str:
        """The text so far, of the first answer."""
        return self._of(0).text

    def _of(self, index: int) -> AnswerSoFar:
        return self._shown.setdefault(index, AnswerSoFar())

    def _become(self, index: int, whole: AnswerSoFar, bundle: str = "") -> list[Found]:
        piece = structs.replace(self._of(index).rest(whole), index=index, bundle=bundle)
        self._shown[index] = whole
        return [piece] if piece.is_news else []

    def asked_again(self) -> None:
        """The request was turned away and begins anew, with frames from 0 on; what was shown is still shown."""
        self._next = 0
        self._attempt = 1
        self._broken = False
        self._whole.clear()

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
        more = AnswerSoFar()
        deltas = msgspec.convert(frame.get("tool_calls") or [], list[ToolCallDelta])
        more.add(str(frame["d"]), str(frame.get("reasoning_content") or ""), deltas)
        index = int(frame.get("index") or 0)
        if not 0 <= index < MAX_CHOICES:
            return []
        bundle = str(frame.get("bundle") or "")
        tokens, attempt = int(frame["n"]), frame.get("attempt")
        return self._piece(sequence, index, more, deltas, tokens=tokens, attempt=attempt, bundle=bundle)

    def _piece(
        self,
        sequence: int,
        index: int,
        more: AnswerSoFar,
        deltas: list[ToolCallDelta],
        *,
        tokens: int,
        attempt: int | None,
        bundle: str,
    ) -> list[Found]:
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
            self._whole.clear()
        self._next = sequence + 1
        self.tokens = tokens
        if begins:
            self._whole.add(index)
            return self._become(index, more, bundle)
        if self._broken and index not in self._whole:
            return []
        self._of(index).add(more.text, more.reasoning, deltas)
        piece = Piece(more.text, reasoning=more.reasoning, tool_calls=tuple(deltas), index=index, bundle=bundle)
        return [piece] if piece.is_news else []

    def _end(self, last: LastFrame, raw: dict[str, Any]) -> list[Found]:
        found: list[Found] = []
        for choice in choices_of(last):
            whole = AnswerSoFar()
            whole.text = choice.text
            whole.reasoning = choice.reasoning_content or ""
            whole.calls = [(each.id, each.function.name, each.function.arguments) for each in choice.tool_calls or []]
            found += self._become(choice.index, whole)
        self.tokens = last.usage.completion_tokens
        return [*found, Answer(last, None, raw)]


def choices_of(last: LastFrame) -> list[Choice]:
    """The answers of a last frame: one, unless several were asked for."""
    if last.choices:
        return last.choices
    return [Choice(0, last.text, last.finish_reason, last.logprobs, last.reasoning_content, last.tool_calls)]


def is_refusal(payload: bytes) -> bool:
    """Whether this says of a control message that it did nothing."""
    return any(isinstance(each, Refused) for each in Reassembly().feed(payload))
