"""Speculative decoding by prompt lookup: which tokens to draft, and how many. Pure.

What follows the last three tokens where they stood before, in the prompt or in the answer, is the draft of what comes
next. The model then reads the draft in one run instead of a run for each token, and what it would have chosen itself
is kept: a wrong draft costs time, never a token. So that it costs little, drafts are paid from what earlier ones saved
and from a small share of the tokens that were made without.
"""

from __future__ import annotations

from collections.abc import Sequence

LOOKUP = 3
"""Tokens that have to be the same; two are found again too often in text that is not copied."""

MAX_DRAFT = 8

STEP_COST = 0.35
"""Of a decoding step: what each drafted token adds to the run that reads it. Measured at 0.13 to 0.19 with AVX-512
VNNI, and for rows of a batch at 0.23 to 0.34 with AVX2 (SmolLM2-135M); larger models wait longer for memory."""

ALLOWED_LOSS = 0.03
"""Of a step, for every token that was generated: an answer of which no draft is right takes 1.03 times as long."""


class PromptLookup:
    """A text that grows, and what followed its last tokens before."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        """Where the latest earlier text that ends with these tokens goes on."""

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """The text goes on with ``tokens``."""
        for token in tokens:
            if len(self._tokens) >= LOOKUP:
                self._after[tuple(self._tokens[-LOOKUP:])] = len(self._tokens)
            self._tokens.append(token)

    def draft(self, count: int) -> list[int]:
        """What may come next, at most ``count`` tokens; none if the last tokens never stood there before.

        A text that repeats itself goes on repeating itself: what is copied from may be what was just drafted. A draft
        ends in front of a token below zero, a place of a picture: no model says one.
        """
        start = self._after.get(tuple(self._tokens[-LOOKUP:]))
        if start is None:
            return []
        found: list[int] = []
        for offset in range(start, start + count):
            token = self._tokens[offset] if offset < len(self._tokens) else found[offset - len(self._tokens)]
            if token < 0:
                break
            found.append(token)
        return found


class DraftPolicy:
    """How many tokens to draft: twice as many after a draft that was right, half as many after one that was not.

    In steps of decoding, ``saved`` is what drafts saved so far, less what they cost.
    """

    def __init__(self) -> None:
        self.saved = 0.0
        self._length = 1

    def allowed(self, generated: int) -> int:
        """Tokens to draft next, when so many were ``generated``; 0 where a wrong draft would cost too much."""
        affordable = (self.saved + ALLOWED_LOSS * generated) / STEP_COST
        return max(0, min(self._length, int(affordable)))

    def note(self, drafted: int, accepted: int) -> None:
        """Of so many drafted tokens the first ``accepted`` were right."""
        self.saved += accepted - STEP_COST * drafted
        self._length = min(MAX_DRAFT, 2 * self._length) if accepted == drafted else max(1, self._length // 2)


class Speculation:
    """Drafts for one answer."""

    def __init__(self) -> None:
        self._lookup = PromptLookup()
        self._policy = DraftPolicy()

    def draft(self, prompt: Sequence[int], generated: Sequence[int], limit: int) -> list[int]:
        """What may follow ``prompt`` and ``generated``, which only ever grow, at most ``limit`` tokens."""
        allowed = min(limit, self._policy.allowed(len(generated)))
        if allowed < 1:
            return []
        known = len(self._lookup)
        if known < len(prompt):
            self._lookup.extend(prompt[known:])
            known = len(prompt)
        self._lookup.extend(generated[known - len(prompt) :])
        return self._lookup.draft(allowed)

    def note(self, drafted: int, accepted: int) -> None:
        """See :meth:`DraftPolicy.note`."""
        self._policy.note(drafted, accepted)
