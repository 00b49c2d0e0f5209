"""The tokenizer that transformers makes of a GGUF file, held against the file token by token, and set right where it is
not the file's: control tokens, what stands before a text, and what transformers adds of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from contract.errors import BuildRefused
from packager.sources.vocabulary import TOKENIZER_FILE, leave_out

CONTROL, USER_DEFINED = 3, 4
KEEPS_SPACE = ("<unk>", "<s>", "<|endoftext|>")
"""Control tokens of Phi-3 that leave the white space behind them, which all its others take (as in llama.cpp)."""

SPECIAL = ("bos", "eos", "unknown", "padding")
_SETTING = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def settle_tokenizer(folder: Path, kind: str, fields: Mapping[str, Any]) -> None:
    """Make the tokenizer in ``folder`` that of the file whose fields are ``fields``.

    Raises:
        BuildRefused: a token of the file is another one in the tokenizer.
    """
    tokens: Sequence[str] = fields["tokenizer.ggml.tokens"]
    types: Sequence[int] = fields.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    file = folder / TOKENIZER_FILE
    document = json.loads(file.read_text("utf-8"))
    _name_by_file(document, tokens, types)
    by_id = {number: text for text, number in _vocabulary(document).items()}
    by_id |= {token["id"]: token["content"] for token in document["added_tokens"]}
    wrong = next((number for number, text in enumerate(tokens) if by_id.get(number, text) != text), None)
    if wrong is not None:
        raise BuildRefused(
            f"the tokenizer made of the GGUF file has {by_id[wrong]!r} as token {wrong}, the file has {tokens[wrong]!r}"
        )
    document["added_tokens"] = [token for token in document["added_tokens"] if token["id"] < len(tokens)]
    file.write_text(json.dumps(document, ensure_ascii=False), "utf-8")
    own = set(tokens)
    leave_out(folder, tuple(text for number, text in by_id.items() if number >= len(tokens) and text not in own))
    document = json.loads(file.read_text("utf-8"))
    strips = kind == "phi3" and fields.get("tokenizer.ggml.model") == "llama"
    document["added_tokens"] = _added(document["added_tokens"], tokens, types, strips)
    bos = fields.get("tokenizer.ggml.bos_token_id")
    begins = fields.get("tokenizer.ggml.add_bos_token", fields.get("tokenizer.ggml.model") == "llama")
    document["post_processor"] = _beginning(tokens[bos], bos) if begins and bos is not None else None
    file.write_text(json.dumps(document, ensure_ascii=False), "utf-8")
    _write_settings(folder / "tokenizer_config.json", tokens, fields)


def _vocabulary(document: Mapping[str, Any]) -> dict[str, int]:
    vocabulary = document["model"]["vocab"]
    if isinstance(vocabulary, dict):
        return vocabulary
    return {entry[0]: number for number, entry in enumerate(vocabulary)}


def _name_by_file(document: dict[str, Any], tokens: Sequence[str], types: Sequence[int]) -> None:
    """Give control tokens beyond ASCII (DeepSeek's) their names: transformers takes them for bytes as text has them."""
    for number, text in enumerate(tokens):
        if types[number] not in (CONTROL, USER_DEFINED) or text.isascii():
            continue
        for token in document["added_tokens"]:
            if token["id"] == number:
                token["content"] = text
        vocabulary = document["model"]["vocab"]
        for old in [old for old, known in vocabulary.items() if known == number and old != text]:
            del vocabulary[old]
        # A token that the vocabulary lacks gets whatever number is free, whatever its own is.
        vocabulary[text] = number


def _added(
    made: list[dict[str, Any]], tokens: Sequence[str], types: Sequence[int], strips: bool
) -> list[dict[str, Any]]:
    added = {token["id"]: token for token in made}
    for number, text in enumerate(tokens):
        if types[number] in (CONTROL, USER_DEFINED):
            token = added.setdefault(
                number,
                {"id": number, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
                 "normalized": False, "special": False},
            )  # fmt: skip
            token["special"] = types[number] == CONTROL
            if strips:
                token["rstrip"] = types[number] == CONTROL and text not in KEEPS_SPACE
    return [added[number] for number in sorted(added)]


def _beginning(text: str, number: int) -> dict[str, Any]:
    """The tokenizers library's way to put one token before every text."""
    first = {"SpecialToken": {"id": text, "type_id": 0}}
    one, two = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [first, one],
        "pair": [first, one, first, two],
        "special_tokens": {text: {"id": text, "ids": [number], "tokens": [text]}},
    }


def _write_settings(file: Path, tokens: Sequence[str], fields: Mapping[str, Any]) -> None:
    settings = json.loads(file.read_text("utf-8"))
    # With these, transformers would make tokens and a beginning of its own again.
    for key in ("add_bos_token", "add_eos_token", "mask_token"):
        settings.pop(key, None)
    for name in SPECIAL:
        number = fields.get(f"tokenizer.ggml.{name}_token_id")
        if number is not None and number < len(tokens):
            settings[_SETTING[name]] = tokens[number]
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    file.write_text(json.dumps(settings, ensure_ascii=False, indent=1), "utf-8")
