"""The tokens that end a turn: by generation_config.json, by config.json, and by what the chat template itself writes
behind what an assistant said.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from packager.sources.checkpoint import read_json

REPLY, QUESTION = "spoken words", "another question"
FILES = ("generation_config.json", "config.json")
TEMPLATE = "chat template"


def find_ends(checkpoint: Path, tokenizer: Any) -> dict[int, list[str]]:
    """Every token that ends a turn of the model in ``checkpoint``, and what says so."""
    found: dict[int, list[str]] = {}
    for name in FILES:
        file = checkpoint / name
        named = read_json(file).get("eos_token_id") if file.is_file() else None
        for token in named if isinstance(named, list) else [] if named is None else [named]:
            found.setdefault(int(token), []).append(name)
    for token in find_turn_ends(tokenizer):
        found.setdefault(token, []).append(TEMPLATE)
    return found


def find_turn_ends(tokenizer: Any) -> list[int]:
    """Ids of the tokens that the template of a transformers ``tokenizer`` puts behind an answer: at the end of a
    conversation, and where it goes on.
    """
    if not getattr(tokenizer, "chat_template", None):
        return []
    added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    found: list[int] = []
    for after in ([], [{"role": "user", "content": QUESTION}]):
        turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": REPLY}, *after]
        _, before, rest = _render(tokenizer, turns).rpartition(REPLY)
        rest = rest.lstrip()
        behind = [text for text in added if before and rest.startswith(text)]
        if behind:
            found.append(int(added[max(behind, key=len)]))
    return list(dict.fromkeys(found))


def _render(tokenizer: Any, turns: list[dict[str, str]]) -> str:
    """``turns`` in the template, which may take texts or lists of parts; empty if it takes neither."""
    parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    for conversation in (turns, parts):
        # A template may raise whatever it likes; the check of templates says what.
        with contextlib.suppress(Exception):
            text = str(tokenizer.apply_chat_template(conversation, tokenize=False))
            if REPLY in text:
                return text
    return ""
