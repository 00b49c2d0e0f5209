"""What onnxruntime-genai's tokenizer leaves to its caller: packager and device make the same tokens of a text."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any


def composes(document: Any) -> bool:
    """Whether the tokenizer of a ``tokenizer.json`` composes characters (NFC, as Qwen's); the runtime's never does."""
    normalizer = document.get("normalizer") if isinstance(document, dict) else None
    if not isinstance(normalizer, dict):
        return False
    steps = [normalizer, *(normalizer.get("normalizers") or [])]
    return any(isinstance(step, dict) and step.get("type") == "NFC" for step in steps)


def compose(text: str) -> str:
    """``text`` in Unicode's composed form."""
    return unicodedata.normalize("NFC", text)


def read_beginning(tokenizer: Any) -> list[int]:
    """The tokens that stand before every text that is not a conversation; ``tokenizer`` is onnxruntime-genai's.

    Its ``encode`` adds none since version 0.8 unless it is told to.
    """
    tokenizer.update_options(add_special_tokens=True)
    found = [int(token) for token in tokenizer.encode("")]
    tokenizer.update_options(add_special_tokens=False)
    return found


def begin(ids: Sequence[int], beginning: Sequence[int]) -> list[int]:
    """``ids`` with their beginning, unless whoever wrote the text wrote it out already."""
    written = list(ids[: len(beginning)]) == list(beginning)
    return list(ids) if written else [*beginning, *ids]
