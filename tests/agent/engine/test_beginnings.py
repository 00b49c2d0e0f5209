"""What stands before a prompt: the beginning that the source's tokenizer puts there, once, and not in conversations."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.engine.interface import Generation
from agent.engine.tokenizing import Tokenizing
from contract.bundle.tokens import begin, compose, composes
from tests.packager.families import build_here
from tests.packager.published import PUBLISHED, write_layout


def tokenizing(folder: Path) -> Tokenizing:
    import onnxruntime_genai

    return Tokenizing(onnxruntime_genai.Tokenizer(onnxruntime_genai.Config(str(folder))), folder)


@pytest.mark.parametrize("name", ["llama-3.2", "gemma-3-270m", "llama-2", "qwen2.5"])
def test_tokens_are_those_of_the_source(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    source = write_layout(tmp_path / "source", PUBLISHED[name])
    build_here(source, tmp_path / "out", "fp32")
    ours, theirs = tokenizing(tmp_path / "out"), AutoTokenizer.from_pretrained(source)
    for text in ("Hello there", "e\u0301t\u00e9", " x\n"):
        prompt = Generation(request=1, client="c", prompt=text)
        assert ours.encode_generation(prompt) == theirs(text)["input_ids"]
        if theirs.bos_token is not None and theirs("")["input_ids"]:
            written = Generation(request=1, client="c", prompt=theirs.bos_token + text)
            assert ours.encode_generation(written)[:2] != [theirs.bos_token_id] * 2
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    rendered = theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    asked = Generation(request=2, client="c", messages=turns)
    assert ours.encode_generation(asked) == theirs(rendered, add_special_tokens=False)["input_ids"]


def test_a_beginning_is_written_once() -> None:
    assert begin([5, 6], [1]) == [1, 5, 6]
    assert begin([1, 5], [1]) == [1, 5]
    assert begin([5], []) == [5]
    assert compose("e\u0301") == "\u00e9"
    assert composes({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]}})
    assert not composes({"normalizer": None})
    assert not composes([])
