"""An engine that obeys what :mod:`tests.agent.worker.double.script` reads in a prompt."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from agent.engine.interface import (
    CallDelta,
    CanaryScore,
    Facts,
    FinishEvent,
    FinishReason,
    Generation,
    RejectEvent,
    StepEvent,
    TokenEvent,
)
from contract.errors import EngineFailed
from tests.agent.worker.double.script import MISHAPS, Script, read_script

SLOTS = 4
CONTEXT = 4096
CALL_TOKENS = 4


def obey(mishap: str) -> None:
    """Of the mishaps, those that any engine can have: it gives up, or has a fault."""
    if mishap == "raise":
        raise EngineFailed("the runtime gave up")
    if mishap == "surprise":
        raise ZeroDivisionError("one over none")
    raise EngineFailed(f"nobody obeys {mishap!r} here")


@dataclass
class _Answer:
    generation: Generation
    script: Script
    done: int = 0
    """Tokens so far, of each choice."""


class ScriptedEngine:
    """See :class:`agent.engine.interface.Engine`. ``mishap`` is told of a word of ``MISHAPS`` and does not return.

    Answers that wait do so until :meth:`let_go`.
    """

    def __init__(self, slots: int = SLOTS, mishap: Callable[[str], None] = obey) -> None:
        self.facts = Facts("fake", "a test", slots, CONTEXT, 1000, ("logprobs",), 0.0)
        self._mishap = mishap
        self._answers: list[_Answer] = []
        self._events: list[StepEvent] = []
        self._may_go = False

    def computed_by(self, kernels: str) -> None:
        """Nothing is computed."""

    @property
    def busy(self) -> bool:
        return bool(self._events) or any(map(self._can_advance, self._active))

    @property
    def next_read(self) -> int:
        return max((tokens for tokens, _ in self._reading()), default=0)

    @property
    def _active(self) -> list[_Answer]:
        return self._answers[: self.facts.slots]

    def _reading(self) -> list[tuple[int, float]]:
        return [answer.script.read for answer in self._active if answer.done == 0]

    def _can_advance(self, answer: _Answer) -> bool:
        script = answer.script
        return self._may_go or script.pause is None or answer.done < script.pause or answer.done >= script.tokens

    def let_go(self) -> None:
        """Those that wait go on, and from now on none waits."""
        self._may_go = True

    def admit(self, generation: Generation) -> None:
        script = read_script(generation)
        if script.mishap is not None:
            self._mishap(script.mishap)
        if script.rejected or script.words >= CONTEXT:
            field = "messages" if generation.prompt is None else "prompt"
            refusal = RejectEvent(generation.request, 400, "invalid_request", "the prompt is too long", field)
            self._events.append(refusal)
        else:
            self._answers.append(_Answer(generation, script))

    def step(self) -> list[StepEvent]:
        active = [answer for answer in self._active if self._can_advance(answer)]
        if reading := self._reading():
            time.sleep(max(seconds for _, seconds in reading))
        events, self._events = self._events, []
        for answer in active:
            events.extend(_advance(answer))
            if answer.script.calls is not None or answer.done >= answer.script.tokens:
                events.append(_finish(answer))
                self._answers.remove(answer)
        return events

    def update(self, request: int, changes: dict[str, Any]) -> bool:
        for answer in self._answers:
            if answer.generation.request == request:
                limit = changes.get("max_tokens")
                if limit is not None and limit < answer.script.tokens:
                    answer.script = replace(answer.script, tokens=max(limit, answer.done), limited=True)
                return True
        return False

    def cancel(self, request: int) -> list[StepEvent]:
        for answer in self._answers:
            if answer.generation.request == request:
                self._answers.remove(answer)
                return [_end(answer, "cancelled")]
        return []

    def release(self) -> None:
        self._answers.clear()
        self._events.clear()

    def score(self, prompt: str, text: str, adapter: str | None = None, picture: bytes | None = None) -> CanaryScore:
        if prompt in MISHAPS:
            self._mishap(prompt)
        return CanaryScore(1.0, max(1, len(text.split())), True)


def _advance(answer: _Answer) -> list[StepEvent]:
    request, index = answer.generation.request, answer.done
    if answer.script.calls is not None:
        name, _ = answer.script.calls
        call = [CallDelta(0, "call_1", name), CallDelta(0, arguments='{"word": ')]
        return [
            TokenEvent(request, "", 1, thought="Hm, "),
            TokenEvent(request, "", 2, thought="well."),
            TokenEvent(request, "", 3, calls=call),
        ]
    if index >= answer.script.tokens:
        return []
    answer.done += 1
    return [
        TokenEvent(request, f"{index} " if choice == 0 else f"{index}.{choice} ", answer.done, choice=choice)
        for choice in range(answer.generation.n)
    ]


def _finish(answer: _Answer) -> FinishEvent:
    if answer.script.calls is not None:
        rest = [CallDelta(0, arguments=f'"{answer.script.calls[1]}"}}')]
        request, words = answer.generation.request, answer.script.words
        return FinishEvent(request, "tool_calls", "", prompt_tokens=words, completion_tokens=CALL_TOKENS, calls=rest)
    return _end(answer, "length" if answer.script.limited else "stop")


def _end(answer: _Answer, reason: FinishReason) -> FinishEvent:
    generation = answer.generation
    several = generation.n > 1
    return FinishEvent(
        generation.request,
        reason,
        "!" if several and reason != "cancelled" else "",
        prompt_tokens=answer.script.words,
        completion_tokens=answer.done * generation.n,
        choice=generation.n - 1 if several else 0,
        reasons=[reason] * generation.n if several else [],
    )
