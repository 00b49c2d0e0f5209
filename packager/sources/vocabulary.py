"""Tokens without a row in the model: which may be left out of a bundle, and leaving them out.

Published tokenizers have some: gemma-3-1b-it has the place of a picture at the number of its rows, fine-tunes have a
``[PAD]`` there that nobody uses. A model fails on such a token, so none may be reached: not by the chat template, not
as a special token, and not by text, in which the tokenizer looks for all that are added. So the bundle's own tokenizer
does without them, and their text is text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from contract.errors import BuildRefused

TOKENIZER_FILE = "tokenizer.json"
SPOKEN = ("bos_token", "eos_token", "unk_token", "cls_token", "sep_token")
"""Special tokens that may be part of a sequence; a padding token never is, with one sequence at a time."""

SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def find_rowless(document: dict[str, Any], rows: int, settings: dict[str, Any], template: str) -> tuple[str, ...]:
    """Texts of the added tokens of a ``tokenizer.json`` that have no row, once it is sure that nothing needs them.

    ``settings`` is tokenizer_config.json.

    Raises:
        BuildRefused: text, the template or a special token reach one.
    """
    vocabulary = document.get("model", {}).get("vocab", {})
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else range(len(vocabulary))
    added = [token for token in document.get("added_tokens", []) if isinstance(token.get("id"), int)]
    loose = {token["content"]: token["id"] for token in added if token["id"] >= rows}
    known = set(loose) if isinstance(vocabulary, dict) else set()
    highest = max((number for number in ids if isinstance(number, int)), default=-1)
    if highest >= rows and not all(text in known for text in _texts_beyond(vocabulary, rows)):
        raise BuildRefused(
            f"the tokenizer has a token {highest}, the model only {rows}: it belongs to another model; "
            "put the right tokenizer.json beside config.json"
        )
    spoken = {_text(settings.get(name)): name for name in SPOKEN}
    processor = json.dumps(document.get("post_processor"))
    for text, number in loose.items():
        by = "the chat template" if text in template else spoken.get(text)
        by = by or ("the post-processor" if json.dumps(text) in processor else None)
        if by is not None:
            raise BuildRefused(
                f"the tokenizer has a token {number} ({text!r}), the model only {rows}, and {by} uses it: it "
                "belongs to another model; put the right tokenizer.json beside config.json"
            )
    return tuple(loose)


def _texts_beyond(vocabulary: Any, rows: int) -> list[str]:
    if isinstance(vocabulary, dict):
        return [text for text, number in vocabulary.items() if number >= rows]
    return [entry[0] for entry in vocabulary[rows:]]


def _text(token: Any) -> str | None:
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def leave_out(folder: Path, texts: tuple[str, ...]) -> None:
    """Take the tokens ``texts`` out of all tokenizer files in ``folder``."""
    dropped = set(texts)
    if not dropped:
        return
    file = folder / TOKENIZER_FILE
    document = json.loads(file.read_text("utf-8"))
    document["added_tokens"] = [token for token in document["added_tokens"] if token["content"] not in dropped]
    vocabulary = document["model"].get("vocab")
    if isinstance(vocabulary, dict):
        document["model"]["vocab"] = {text: number for text, number in vocabulary.items() if text not in dropped}
    file.write_text(json.dumps(document, ensure_ascii=False), "utf-8")
    for name in SETTINGS:
        if (folder / name).is_file():
            settings = json.loads((folder / name).read_text("utf-8"))
            (folder / name).write_text(json.dumps(_without(settings, dropped), ensure_ascii=False, indent=2), "utf-8")


def _without(settings: dict[str, Any], dropped: set[str]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in settings.items():
        if key in dropped or (key.endswith("_token") and _text(value) in dropped):
            continue
        if key == "added_tokens_decoder" or (isinstance(value, dict) and key.endswith("special_tokens")):
            kept[key] = {name: token for name, token in value.items() if _text(token) not in dropped}
        else:
            kept[key] = [entry for entry in value if _text(entry) not in dropped] if isinstance(value, list) else value
    return kept
