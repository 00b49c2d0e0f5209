"""When which piece of an answer goes out. Pure: the clock is handed in, the connection's state too.

The first piece goes at once, later ones at most every ``interval`` seconds. What cannot be sent is kept and merged
into the next frame: decoding never waits for the network, and a slow reader gets fewer, longer frames. Of several
answers to one request each has pieces of its own, which carry its number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET, UnsetType

from agent.engine.interface import CallDelta
from agent.serving.output import Output
from contract.mqtt.answers import Choice, Frame, LastFrame, Timing, Usage


class _Answer:
    """What there is of one answer; ``due``: when its next piece may go."""

    def __init__(self, due: float) -> None:
        self.output = Output()
        self.unsent = Output()
        self.tokens = 0
        self.fresh = True
        self.due = due
        self.logprobs: list[dict[str, Any]] = []


class FrameStream:
    """The frames of one request; ``s`` goes on counting over attempts, so that no number stands for two frames."""

    def __init__(self, interval: float, *, stream: bool, now: float, choices: int = 1) -> None:
        self._interval = interval
        self._stream = stream
        self._accepted = now
        self._started = now
        self._first_token: float | None = None
        self._sequence = 0
        self._choices = [_Answer(now) for _ in range(choices)]
        self.attempt = 1
        self.bundle = ""
        self.position = 0
        self.last_position: int | None = None

    @property
    def text(self) -> str:
        """All text of this attempt, of the first answer."""
        return self._choices[0].output.text

    @property
    def tokens(self) -> int:
        """Of all answers together."""
        return sum(choice.tokens for choice in self._choices)

    @property
    def sequence(self) -> int:
        """The number of the next frame."""
        return self._sequence

    @property
    def streams(self) -> bool:
        """Whether pieces are wanted at all."""
        return self._stream

    @property
    def begun(self) -> bool:
        """Whether text of this attempt has gone out."""
        return not all(choice.fresh for choice in self._choices)

    @property
    def empty(self) -> bool:
        """Whether nothing came of any answer."""
        return not any(choice.output for choice in self._choices)

    def begin(self, attempt: int, bundle: str, now: float) -> None:
        """An attempt starts on a worker; text of an earlier attempt is void."""
        self.attempt = attempt
        self.bundle = bundle
        self._started = now
        self._first_token = None
        self._choices = [_Answer(now) for _ in self._choices]

    def waiting(self, position: int, estimate: float) -> Frame:
        """No text yet: so many come before it, and it may begin in about ``estimate`` seconds."""
        frame = Frame(s=self._sequence, d="", n=0, position=position, estimate_ms=_milliseconds(estimate))
        self.last_position = position
        self._sequence += 1
        return frame

    def feed(
        self,
        text: str,
        tokens: int | None,
        now: float,
        *,
        thought: str = "",
        calls: Sequence[CallDelta] = (),
        choice: int = 0,
        logprobs: list[dict[str, Any]] | None = None,
    ) -> None:
        """New text, more of a thought, or of calls, came out of the engine; ``tokens`` are those of the answer so far,
        if they changed.
        """
        if not 0 <= choice < len(self._choices):
            return
        found = self._choices[choice]
        if self._first_token is None:
            self._first_token = now
        if tokens is not None:
            found.tokens = tokens
        if logprobs:
            found.logprobs.extend(logprobs)
        found.output.add(text, thought, calls)
        if self._stream:
            found.unsent.add(text, thought, calls)

    def due_at(self) -> float | None:
        """When the next frame may go; None when there is nothing to send."""
        return min((choice.due for choice in self._choices if choice.unsent), default=None)

    def take(self, now: float) -> Frame | None:
        """The next frame, if one is due."""
        for index, choice in enumerate(self._choices):
            if choice.unsent and now >= choice.due:
                return self._piece(index, choice.unsent, now, begins=choice.fresh)
        return None

    def snapshot(self, now: float) -> list[Frame]:
        """All text so far in one frame for each answer, for a client that lost some; each starts its text again like a
        first frame.
        """
        return [
            self._piece(index, choice.output, now, begins=True)
            for index, choice in enumerate(self._choices)
            if choice.output
        ]

    def rest(self, now: float) -> list[Frame]:
        """The last pieces: with them, what was sent of each answer is its whole text."""
        return [
            self._piece(index, choice.unsent, now, begins=choice.fresh)
            for index, choice in enumerate(self._choices)
            if choice.unsent
        ]

    def _piece(self, index: int, output: Output, now: float, *, begins: bool) -> Frame:
        choice = self._choices[index]
        frame = Frame(
            s=self._sequence,
            d=output.text,
            n=choice.tokens,
            index=index if len(self._choices) > 1 else UNSET,
            attempt=self.attempt if begins else UNSET,
            bundle=self.bundle if begins else UNSET,
            queue_ms=_milliseconds(self._started - self._accepted) if begins else UNSET,
            position=self.position if begins else UNSET,
            reasoning_content=output.thought,
            tool_calls=output.fragments,
        )
        choice.unsent.clear()
        choice.fresh = False
        choice.due = now + self._interval
        self._sequence += 1
        return frame

    def last(
        self,
        reason: str,
        now: float,
        *,
        reasons: Sequence[str] = (),
        prompt_tokens: int = 0,
        completion_tokens: int | None = None,
        cached_tokens: int = 0,
        logprobs: bool = False,
    ) -> LastFrame:
        """The last frame; it carries the whole text of all answers. ``reasons`` are theirs, if not all the same."""
        completion = self.tokens if completion_tokens is None else completion_tokens
        first = self._first_token
        return LastFrame(
            s=self._sequence,
            text=self.text,
            finish_reason=reason,  # type: ignore[arg-type] # the caller's literals are a subset
            usage=Usage(prompt_tokens, completion, prompt_tokens + completion, cached_tokens),
            timing=Timing(
                queue_ms=_milliseconds(self._started - self._accepted),
                first_token_ms=UNSET if first is None else _milliseconds(first - self._accepted),
                total_ms=_milliseconds(now - self._accepted),
            ),
            attempt=self.attempt,
            bundle=self.bundle,
            logprobs=self._choices[0].logprobs if logprobs else UNSET,
            reasoning_content=self._choices[0].output.thought,
            tool_calls=self._choices[0].output.calls,
            choices=self._several(reasons or [reason] * len(self._choices), logprobs=logprobs),
        )

    def _several(self, reasons: Sequence[str], *, logprobs: bool) -> list[Choice] | UnsetType:
        """Every answer with its end, where there are several; a worker may have said fewer ends than there are."""
        if len(self._choices) == 1:
            return UNSET
        return [
            Choice(
                index=index,
                text=choice.output.text,
                finish_reason=reasons[min(index, len(reasons) - 1)],  # type: ignore[arg-type] # as above
                logprobs=choice.logprobs if logprobs else UNSET,
                reasoning_content=choice.output.thought,
                tool_calls=choice.output.calls,
            )
            for index, choice in enumerate(self._choices)
        ]

    def times(self) -> tuple[float, float | None]:
        """When this attempt started and when the first token came."""
        return self._started, self._first_token


def _milliseconds(seconds: float) -> float:
    return round(max(0.0, seconds) * 1000, 3)
