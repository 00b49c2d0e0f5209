"""The bytes of tokens, joined, are the text: of byte-level vocabularies and of those with ``▁`` and ``<0x..>``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.engine.tokenizing import Tokenizing
from agent.engine.vocabulary import Vocabulary
from tests.agent.engine.test_tokenizing import tokenizing  # noqa: F401 # a fixture

TEXTS = ["plain words, and more", "a 🙂 b", "👩‍👩‍👧 ½ é 漢字", '"quotes" \\ and\nlines\t', "  spaces"]


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_of_the_tokens_of_a_text_are_the_text(tokenizing: Tokenizing, text: str) -> None:  # noqa: F811
    tokens = tokenizing.encode(text, "prompt")
    found = [tokenizing.bytes_of(token) for token in tokens]
    assert b"".join(bytes(each) for each in found if each is not None) == text.encode()
    assert None not in found


def test_an_emoji_is_several_tokens_with_bytes(tokenizing: Tokenizing) -> None:  # noqa: F811
    tokens = tokenizing.encode("🙂", "prompt")
    assert len(tokens) > 1
    assert [tokenizing.decode([token]) for token in tokens] != ["🙂"]


def test_a_vocabulary_of_sentencepiece(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    model = {"type": "BPE", "vocab": {"<unk>": 0, "▁Hello": 1, "<0xF0>": 2, '"}': 3, "ä\\": 4}, "merges": []}
    file.write_text(json.dumps({"added_tokens": [{"id": 0, "content": "<unk>"}], "model": model}))
    found = [Vocabulary(file).bytes_of(token) for token in range(-1, 7)]
    assert found == [None, b"<unk>", b" Hello", b"\xf0", b'"}', "ä\\".encode(), None, None]


def test_a_vocabulary_in_a_list(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    vocab: Any = [["<unk>", 0.0], ["▁the", -3.5], ["]", -1e-05]]
    file.write_text(json.dumps({"model": {"type": "Unigram", "vocab": vocab}}, ensure_ascii=False, indent=1))
    assert [Vocabulary(file).bytes_of(token) for token in range(4)] == [b"<unk>", b" the", b"]", None]


@pytest.mark.parametrize(
    "data", [None, b"", b"junk", b'{"added_tokens":[{"id":"x"}]}', b'{"model":{"vocab":{"a":-1,"b":2}}}', b"\xff" * 99]
)
def test_a_file_of_another_kind_knows_no_token(tmp_path: Path, data: bytes | None) -> None:
    file = tmp_path / "tokenizer.json"
    if data is not None:
        file.write_bytes(data)
    assert Vocabulary(file).bytes_of(0) is None
