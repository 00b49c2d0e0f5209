"""How long a request of the ``genai`` engine may become in the memory that is there."""

from __future__ import annotations

from collections.abc import Callable

from agent.engine.interface import Generation
from agent.engine.memory import usable_bytes
from contract.bundle.footprint import FLOAT_BYTES
from contract.bundle.genai_config import GenaiFacts
from contract.errors import RequestInvalid

KV_GRANULE = 64
"""Generators are sized in multiples of this many tokens."""


class KvBudget:
    """``budget`` bytes are for keys and values, of which a token takes ``token_bytes``; ``shows_all_logits`` tries
    whether the graph computes the logits of every token of a prompt.
    """

    def __init__(self, config: GenaiFacts, token_bytes: int, budget: int, shows_all_logits: Callable[[], bool]) -> None:
        self._context = config.context_length
        self._least = config.least_cache
        self._vocab_size = config.vocab_size
        self._shows_all_logits = shows_all_logits
        self.token_bytes = token_bytes
        self.budget = budget

    @property
    def holds_one(self) -> bool:
        """Whether the shortest request has room."""
        return self.budget >= self.token_bytes * max(KV_GRANULE, self._least)

    def length(self, generation: Generation, prompt: int, wanted: int) -> int:
        """Tokens to allocate: what is wanted, or without a wish for a length what there is memory for.

        Raises:
            RequestInvalid: more than there is memory for.
        """
        length = rounded(wanted, self._context, self._least)
        room = self.budget // (self.token_bytes * generation.num_beams)
        if length <= room:
            return length
        if generation.max_tokens is None and max(prompt + 1, self._least) <= room:
            return room
        field = "max_tokens" if prompt < room else "prompt" if generation.messages is None else "messages"
        raise RequestInvalid(f"it needs {length} tokens of context and there is memory for {room} here", field=field)

    def check_whole(self, tokens: int, field: str) -> None:
        """Whether a prompt of so many tokens can be read in one piece, without slices.

        Raises:
            RequestInvalid: the logits of all of them, which most graphs compute, are more than there is memory for.
        """
        needed = tokens * self._vocab_size * FLOAT_BYTES
        room = usable_bytes()
        if needed > room and self._shows_all_logits():
            text = f"{tokens} tokens in one piece need {needed >> 20} MiB, and there are {room >> 20} here: shorten it"
            raise RequestInvalid(text, field=field)


def rounded(tokens: int, context_length: int, least: int = 0) -> int:
    """A Generator's size: a multiple of the granule, at least what its layers keep, at most the context."""
    return min(max(-(-tokens // KV_GRANULE) * KV_GRANULE, least), context_length)
