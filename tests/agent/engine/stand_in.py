"""A deterministic engine without a model: bytes are tokens, logits are a hash of what was read last.

It implements the whole engine interface with the product's own request handling, so everything that does not need a
runtime can be tested against it, fast.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from agent.engine.choices import Choices
from agent.engine.interface import CanaryScore, Facts, Generation, StepEvent
from agent.engine.sampling import log_softmax
from agent.engine.sequence import TokenSequence, prepare, rejection
from agent.engine.tokenizing import Tokenizing
from contract.errors import RequestInvalid

CONTROLS = ("<|im_start|>", "<|im_end|>")
VOCABULARY = 256 + len(CONTROLS)
END = 257
SLICE = 16
"""Prompt tokens a step."""

TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


class ByteTokenizer:
    """UTF-8 bytes and two control tokens, with the methods that ``Tokenizing`` uses of the runtime's tokenizer."""

    eos_token_ids = (END,)

    def update_options(self, *, add_special_tokens: bool) -> None:
        """It has none that a text begins with."""

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in re.split(r"(<\|im_start\|>|<\|im_end\|>)", text):
            ids.extend([256 + CONTROLS.index(piece)] if piece in CONTROLS else piece.encode("utf-8", "replace"))
        return ids

    def decode(self, tokens: Any) -> str:
        return bytes(int(token) for token in tokens if token < 256).decode("utf-8", "replace")

    def create_stream(self) -> _Stream:
        return _Stream()


class _Stream:
    def __init__(self) -> None:
        import codecs

        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")

    def decode(self, token: int) -> str:
        return self._decoder.decode(bytes([token]) if token < 256 else b"")


def write_bundle(directory: Path) -> Path:
    """The files that ``Tokenizing`` reads."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    added = [{"content": text, "special": True} for text in CONTROLS]
    (directory / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    return directory


class StandIn:
    """See :class:`agent.engine.interface.Engine`."""

    def __init__(self, bundle_dir: Path, *, context_length: int = 512, slots: int = 4) -> None:
        self._tokenizing = Tokenizing(ByteTokenizer(), bundle_dir)
        self._waiting: list[TokenSequence] = []
        self._active: list[TokenSequence] = []
        self._filled: dict[int, int] = {}
        self._events: list[StepEvent] = []
        self._choices = Choices()
        self._facts = Facts("stand-in", "a test", slots, context_length, VOCABULARY, ("chat",), 0.0)

    @property
    def facts(self) -> Facts:
        return self._facts

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._active or self._events)

    @property
    def next_read(self) -> int:
        return 0

    def admit(self, generation: Generation) -> None:
        try:
            if generation.adapter is not None:
                raise RequestInvalid("no adapters here", field="adapter")
            prompt, limit = prepare(
                generation, self._tokenizing, context_length=self._facts.context_length, vocab_size=VOCABULARY
            )
        except RequestInvalid as refused:
            self._events.append(rejection(generation.request, refused))
            return
        self._choices.expect(generation)
        for choice in range(generation.n):
            self._waiting.append(TokenSequence(generation, prompt, limit, self._tokenizing, choice=choice))

    def step(self) -> list[StepEvent]:
        events, self._events = self._events, []
        while self._waiting and len(self._active) < self._facts.slots:
            answer = self._waiting.pop(0)
            if answer.choice == 0:
                self._filled[answer.generation.request] = 0
            self._active.append(answer)
        for answer in list(self._active):
            request = answer.generation.request
            if self._filled[request] < len(answer.prompt):
                self._filled[request] += SLICE if answer.choice == 0 else 0
                continue
            events.extend(answer.choose(logits([*answer.prompt, *answer.tokens])))
            if answer.finished:
                self._active.remove(answer)
        return self._choices.merge(events)

    def update(self, request: int, changes: dict[str, Any]) -> bool:
        found = [answer for answer in [*self._active, *self._waiting] if answer.generation.request == request]
        changed = [answer.change(changes) for answer in found]
        return bool(changed) and all(changed)

    def cancel(self, request: int) -> list[StepEvent]:
        ended: list[StepEvent] = []
        for answers in (self._active, self._waiting):
            for answer in list(answers):
                if answer.generation.request == request:
                    answers.remove(answer)
                    ended.append(answer.end("cancelled"))
        return self._choices.merge(ended)

    def release(self) -> None:
        self._choices.forget()
        self._active.clear()
        self._waiting.clear()

    def score(self, prompt: str, text: str, adapter: str | None = None, picture: bytes | None = None) -> CanaryScore:
        head, tail = self._tokenizing.encode(prompt, "prompt"), self._tokenizing.encode(text, "text")
        ids = [*head, *tail]
        losses = [-float(log_softmax(logits(ids[:end]))[ids[end]]) for end in range(max(1, len(head)), len(ids))]
        return CanaryScore(float(np.mean(losses)), len(losses), True)


def logits(tokens: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Depends on the last eight tokens; prefers lower-case letters and repeating what was there."""
    digest = hashlib.blake2b(repr(tokens[-8:]).encode(), digest_size=8).digest()
    row = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big"))).normal(size=VOCABULARY)
    row[ord("a") : ord("z") + 1] += 4.0
    row[[tokens[-1], END]] += 1.0
    row[256] = -9.0
    return row.astype(np.float32)
