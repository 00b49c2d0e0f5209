"""When which piece of an answer goes out. Pure: the clock is handed in, the connection's state too.

The first piece goes at once, later ones at most every ``interval`` seconds. What cannot be sent is kept and merged
into the next frame: decoding never waits for the network, and a slow reader gets fewer, longer frames.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET
from msgspec.structs import replace

from agent.engine.interface import CallDelta
from agent.serving.output import Output
from contract.mqtt.messages import Frame, LastFrame, Timing, Usage


class FrameStream:
    """The frames of one request; ``s`` goes on counting over attempts, so that no number stands for two frames."""

    def __init__(self, interval: float, *, stream: bool, now: float) -> None:
        self._interval = interval
        self._stream = stream
        self._accepted = now
        self._next_due = now
        self._started = now
        self._first_token: float | None = None
        self._sequence = 0
        self._output = Output()
        self._unsent = Output()
        self._tokens = 0
        self._fresh_attempt = True
        self.attempt = 1
        self.bundle = ""
        self.position = 0
        self.last_position: int | None = None

    @property
    def text(self) -> str:
        """All text of this attempt."""
        return self._output.text

    @property
    def tokens(self) -> int:
        return self._tokens

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
        return not self._fresh_attempt

    def begin(self, attempt: int, bundle: str, now: float) -> None:
        """An attempt starts on a worker; text of an earlier attempt is void."""
        self.attempt = attempt
        self.bundle = bundle
        self._started = now
        self._first_token = None
        self._output.clear()
        self._unsent.clear()
        self._tokens = 0
        self._fresh_attempt = True
        self._next_due = now

    def waiting(self, position: int, estimate: float) -> Frame:
        """No text yet: so many come before it, and it may begin in about ``estimate`` seconds."""
        frame = Frame(s=self._sequence, d="", n=0, position=position, estimate_ms=_milliseconds(estimate))
        self.last_position = position
        self._sequence += 1
        return frame

    def feed(self, text: str, tokens: int, now: float, *, thought: str = "", calls: Sequence[CallDelta] = ()) -> None:
        """New text, more of a thought, or of calls, came out of the engine."""
        if self._first_token is None:
            self._first_token = now
        self._tokens = tokens
        self._output.add(text, thought, calls)
        if self._stream:
            self._unsent.add(text, thought, calls)

    def due_at(self) -> float | None:
        """When the next frame may go; None when there is nothing to send."""
        return self._next_due if self._unsent else None

    def take(self, now: float) -> Frame | None:
        """The next frame, if it is due."""
        if not self._unsent or now < self._next_due:
            return None
        frame = self._first(self._unsent) if self._fresh_attempt else self._piece(self._unsent)
        self._fresh_attempt = False
        self._unsent.clear()
        self._sequence += 1
        self._next_due = now + self._interval
        return frame

    def snapshot(self, now: float) -> Frame:
        """All text so far in one frame, for a client that lost some; it starts the text again like a first frame."""
        frame = self._first(self._output)
        self._unsent.clear()
        self._fresh_attempt = False
        self._sequence += 1
        self._next_due = now + self._interval
        return frame

    def _piece(self, output: Output) -> Frame:
        return Frame(
            s=self._sequence,
            d=output.text,
            n=self._tokens,
            reasoning_content=output.thought,
            tool_calls=output.fragments,
        )

    def _first(self, output: Output) -> Frame:
        """One that begins the text."""
        return replace(
            self._piece(output),
            attempt=self.attempt,
            bundle=self.bundle,
            queue_ms=_milliseconds(self._started - self._accepted),
            position=self.position,
        )

    def last(
        self,
        reason: str,
        now: float,
        *,
        prompt_tokens: int = 0,
        completion_tokens: int | None = None,
        cached_tokens: int = 0,
        logprobs: list[dict[str, object]] | None = None,
    ) -> LastFrame:
        """The last frame; it carries the whole text."""
        completion = self._tokens if completion_tokens is None else completion_tokens
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
            logprobs=UNSET if logprobs is None else logprobs,
            reasoning_content=self._output.thought,
            tool_calls=self._output.calls,
        )

    def times(self) -> tuple[float, float | None]:
        """When this attempt started and when the first token came."""
        return self._started, self._first_token


def _milliseconds(seconds: float) -> float:
    return round(max(0.0, seconds) * 1000, 3)
