"""The tokens that end a turn, from the chat template itself: whatever it writes behind what an assistant said."""

from __future__ import annotations

from typing import Any

SAID = "spoken words"


def find_turn_ends(tokenizer: Any) -> list[int]:
    """Ids of the special token that the template of a transformers ``tokenizer`` puts behind an answer, if it does."""
    if not getattr(tokenizer, "chat_template", None):
        return []
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": SAID}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # a template may raise whatever it likes; the check of templates says what
        return []
    _, found, rest = text.rpartition(SAID)
    rest = rest.lstrip()
    if not found or not rest:
        return []
    special = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    behind = [text for text in special if rest.startswith(text)]
    return [int(special[max(behind, key=len)])] if behind else []
