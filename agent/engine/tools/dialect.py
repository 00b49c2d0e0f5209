"""How one model calls functions and thinks aloud: its forms, and which tokens of its vocabulary they are made of."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Mapping, Sequence

from agent.engine.interface import Generation, Tools
from agent.engine.tools.answer_reader import AnswerReader
from agent.engine.tools.call_grammar import call_grammar, thought_grammar
from agent.engine.tools.forms import MARKERS, find_form, find_thoughts

ENDING = 8
"""Tokens at the end of a prompt in which a thought may begin."""

ID_BYTES = 12


class Dialect:
    """``template`` is the text of the model's chat templates, ``added`` its added tokens by their texts.

    ``decode`` gives the text of one token.
    """

    def __init__(self, template: str, added: Mapping[str, int], decode: Callable[[int], str]) -> None:
        self.form = find_form(template)
        self._thoughts = find_thoughts(template)
        thoughts = () if self._thoughts is None else (self._thoughts.begin, self._thoughts.end)
        self._tokens = {text: added[text] for text in (*MARKERS, *thoughts) if text in added}
        self._texts = {token: text for text, token in self._tokens.items()}
        self._decode = decode

    def text_of(self, token: int, decoded: str) -> str:
        """The text of ``token``, which is ``decoded`` but for marks that decoders leave out."""
        mark = self._texts.get(token)
        return decoded if mark is None or mark in decoded else decoded + mark

    def grammar(self, generation: Generation, prompt: Sequence[int]) -> str | None:
        """What holds an answer to calls of ``generation``'s tools; None where it has none."""
        if generation.tools is None:
            return None
        opened = self._opens_thought(generation, prompt)
        return call_grammar(generation.tools, self.form, self._thoughts, opened=opened, tokens=self._tokens)

    def thought_before_format(self, generation: Generation, prompt: Sequence[int]) -> str:
        """Rules for the rest of a thought that the prompt has begun: a format holds for what comes after it."""
        if self._thoughts is None or not self._opens_thought(generation, prompt):
            return ""
        return thought_grammar(self._thoughts, self._tokens)

    @property
    def before_format(self) -> tuple[bytes, ...]:
        """Behind what the JSON of a format begins where a thought comes before it."""
        return () if self._thoughts is None else (self._thoughts.end.encode(),)

    def before_arguments(self, tools: Tools) -> tuple[bytes, ...]:
        """Behind what the arguments of a call begin."""
        return tuple((each["function"]["name"] + self.form.after_name).encode() for each in tools.definitions)

    def reader(self, generation: Generation, prompt: Sequence[int], choice: int = 0) -> AnswerReader | None:
        """What takes the answer ``choice`` to ``prompt`` apart; None where it is one text, as after a plain prompt."""
        tools = generation.tools
        form = None if tools is None or tools.choice == "none" else self.form
        if generation.messages is None or (form is None and self._thoughts is None):
            return None
        key = hashlib.blake2b(
            array("q", prompt).tobytes() + repr((generation.seed, choice)).encode(), digest_size=ID_BYTES
        ).digest()
        return AnswerReader(
            self._thoughts,
            form,
            opened=self._opens_thought(generation, prompt),
            names=[] if tools is None else [each["function"]["name"] for each in tools.definitions],
            required=tools is not None and tools.choice == "required",
            new_id=lambda index: call_id(key, index),
        )

    def _opens_thought(self, generation: Generation, prompt: Sequence[int]) -> bool:
        if self._thoughts is None or generation.messages is None:
            return False
        tokens = [token for token in prompt[-ENDING:] if token >= 0]
        ending = "".join(self._texts.get(token) or self._decode(token) for token in tokens)
        return ending.rstrip().endswith(self._thoughts.begin)


def call_id(key: bytes, index: int) -> str:
    """An id that differs from answer to answer of a conversation, and is the same for the same answer."""
    return "call_" + hashlib.blake2b(key + index.to_bytes(4, "big"), digest_size=ID_BYTES).hexdigest()
