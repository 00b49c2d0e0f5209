"""One request and its onnxruntime-genai Generator: prefilled in slices, then advanced token by token."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from agent.engine.interface import READ_SLICE, StepEvent, TokenEvent
from agent.engine.sampling import Row
from agent.engine.sequence import TokenSequence
from agent.engine.vision import ImageInputs, cannot_take

log = logging.getLogger("edge_agent.engine")


class GeneratorSequence:
    """A request that takes turns with others. ``length`` tokens of ``kv_bytes`` are allocated by ``start``;
    ``seen`` are the pictures in its prompt. Of several ``answers`` to it one is generated after the other, from the
    prompt that was read for the first; where the model's caches cannot be taken back to it, it is read again.

    Every method but the constructor may raise whatever the runtime raises, and ``prefill`` RequestInvalid, where the
    model's graphs cannot do with a picture.
    """

    def __init__(
        self,
        answers: Sequence[TokenSequence],
        length: int,
        kv_bytes: int,
        make: Callable[[dict[str, Any]], Any],
        *,
        seen: ImageInputs | None,
    ) -> None:
        self.answer, *self._later = answers
        self.kv_bytes = kv_bytes
        self.beams = self.answer.generation.num_beams
        self._length = length
        self._make = make
        self._seen = seen
        self._generator: Any = None
        self._filled = 0
        self._options: dict[str, Any] = {"max_length": self._length}
        self._first_row: Row | None = None
        self._at_prompt = True

    @property
    def answers(self) -> list[TokenSequence]:
        """Those that are not over."""
        return [self.answer, *self._later]

    @property
    def prefilled(self) -> bool:
        return self._filled == len(self.answer.prompt)

    @property
    def reads_at_once(self) -> int:
        """Tokens that the next ``prefill`` feeds in one piece because the runtime wants them whole."""
        whole = not self.prefilled and (self._seen is not None or self.beams > 1)
        return len(self.answer.prompt) if whole else 0

    def start(self) -> None:
        """Allocate the Generator."""
        if self.beams > 1:
            wanted = self.answer.generation
            self._options |= {
                "num_beams": self.beams,
                "repetition_penalty": wanted.repetition_penalty,
                "no_repeat_ngram_size": wanted.no_repeat_ngram_size,
                "min_length": min(len(self.answer.prompt) + wanted.min_tokens, self._length),
            }
        self._generator = self._make(self._options)

    def prefill(self) -> None:
        """Feed one slice of the prompt. With pictures it goes in whole, as the runtime wants it, and beam search takes
        it whole: it crashes on slices.
        """
        prompt = self.answer.prompt
        if self._seen is not None:
            seen, self._seen = self._seen, self._seen if self._later else None
            try:
                self._generator.set_inputs(seen.inputs(prompt))
            except Exception as error:
                # Of one request alone, and it came from outside: no reason to end everybody else's worker.
                raise cannot_take(error) from error
            self._filled = len(prompt)
            return
        end = len(prompt) if self.beams > 1 else min(self._filled + READ_SLICE, len(prompt))
        self._generator.append_tokens(np.array(prompt[self._filled : end], dtype=np.int32))
        self._filled = end

    def advance(self) -> list[StepEvent]:
        """One token."""
        if self.beams > 1:
            return self._advance_beams()
        events = self.answer.choose(self._row())
        if not self.answer.finished:
            self._generator.append_tokens(np.array(self.answer.tokens[-1:], dtype=np.int32))
        elif self._later:
            self.answer = self._later.pop(0)
            self._return_to_prompt()
        return events

    def _row(self) -> Row:
        """The logits to choose from; those behind the prompt are kept for the answers that come later."""
        if self._at_prompt and self._first_row is not None:
            self._at_prompt = False
            return self._first_row
        row: Row = self._generator.get_logits().reshape(-1)
        if self._at_prompt and self._later:
            self._first_row = row.copy()
        self._at_prompt = False
        return row

    def _return_to_prompt(self) -> None:
        self._at_prompt = True
        if self._seen is None:
            try:
                self._generator.rewind_to(len(self.answer.prompt))
            except Exception:
                log.debug("this model's caches cannot be taken back: the prompt is read again", exc_info=True)
            else:
                self.answer.cached_tokens = len(self.answer.prompt)
                return
        self._filled = 0
        self._generator = None  # its memory first
        self._generator = self._make(self._options)

    def _advance_beams(self) -> list[StepEvent]:
        """No text before the end: the best beam may still change."""
        if not self._generator.is_done():
            self._generator.generate_next_token()
        steps = int(self._generator.token_count()) - len(self.answer.prompt)
        if not self._generator.is_done():
            return [TokenEvent(self.answer.generation.request, "", steps)]
        found = self._generator.get_sequence(0)[len(self.answer.prompt) :]
        events: list[StepEvent] = []
        for token in found:
            events.extend(self.answer.take(int(token)))
            if self.answer.finished:
                return events
        return [*events, self.answer.end("stop")]
