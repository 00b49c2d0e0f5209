"""Which genai_config.json may be in a bundle."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.bundle.genai_config import read_genai_config
from contract.errors import BundleRefused
from contract.reasons import Reason

GOOD: dict[str, Any] = {
    "model": {
        "bos_token_id": 1,
        "context_length": 512,
        "decoder": {
            "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
            "filename": "model.onnx",
            "head_size": 32,
            "hidden_size": 128,
            "inputs": {"input_ids": "input_ids", "past_key_names": "past_key_values.%d.key"},
            "outputs": {"logits": "logits"},
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
        },
        "eos_token_id": [2, 3],
        "type": "llama",
        "vocab_size": 400,
    },
    "search": {"do_sample": False, "max_length": 512, "top_p": 1.0},
}
FILES = ["model.onnx", "genai_config.json"]


def changed(path: str, value: Any) -> bytes:
    document = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    if path.startswith("model.decoder.session_options."):
        parents, last = ["model", "decoder", "session_options"], path.removeprefix("model.decoder.session_options.")
    table = document
    for key in parents:
        table = table.setdefault(key, {})
    if value is None:
        del table[last]
    else:
        table[last] = value
    return json.dumps(document).encode()


def test_the_builders_own_file_passes_and_gives_its_facts(tiny_bundle: Path) -> None:
    files = [path.name for path in tiny_bundle.iterdir()]
    facts = read_genai_config((tiny_bundle / "genai_config.json").read_bytes(), files)
    assert (facts.layers, facts.attention_heads, facts.kv_heads, facts.head_size) == (2, 4, 2, 32)
    assert facts.context_length == 512
    assert facts.eos_token_ids == (2,)
    assert facts.filename == "model.onnx"
    assert facts.provider == "cpu"


def test_one_end_token_or_several() -> None:
    assert read_genai_config(json.dumps(GOOD).encode(), FILES).eos_token_ids == (2, 3)
    assert read_genai_config(changed("model.eos_token_id", 7), FILES).eos_token_ids == (7,)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.decoder.session_options.custom_ops_library", "evil.so"),
        ("model.decoder.session_options.session.save_model_format", "ORT"),
        ("model.decoder.session_options.optimized_model_filepath", "/tmp/x"),
        ("model.decoder.session_options.enable_profiling", "/tmp/trace"),
        ("model.decoder.session_options.provider_options", [{"qnn": {"backend_path": "evil.so"}}]),
        ("model.decoder.session_options.provider_options", [{"cuda": {"library": "evil.so"}}]),
        ("model.decoder.filename", "../model.onnx"),
        ("model.decoder.filename", "/model.onnx"),
        ("model.decoder.filename", "absent.onnx"),
        ("model.decoder.filename", "genai_config.json"),
        ("model.decoder.filename", None),
        ("model.tokenizer_dir", "/etc"),
        ("model.decoder.pipeline", []),
        ("model.decoder.inputs.past_key_names", "past.%s.key"),
        ("model.decoder.inputs.past_key_names", "past.%d.%n"),
        ("model.decoder.inputs.nonsense", "x"),
        ("model.decoder.head_size", 0),
        ("model.decoder.head_size", True),
        ("model.decoder.num_hidden_layers", 10**9),
        ("model.context_length", None),
        ("model.vocab_size", 2.5),
        ("model.eos_token_id", 400),
        ("model.eos_token_id", -1),
        ("search.top_p", "1"),
        ("search.do_sample", 1),
        ("engine", {}),
        ("model.vision", {"filename": "vision.onnx"}),
    ],
)
def test_what_is_not_on_the_list_is_refused(path: str, value: Any) -> None:
    with pytest.raises(BundleRefused) as caught:
        read_genai_config(changed(path, value), FILES)
    assert caught.value.reason is Reason.CONFIG_NOT_ALLOWED
    assert caught.value.field is not None


def test_another_provider_is_named() -> None:
    data = changed("model.decoder.session_options.provider_options", [{"cuda": {"enable_cuda_graph": "0"}}])
    assert read_genai_config(data, FILES).provider == "cuda"


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_a_refusal(data: bytes) -> None:
    with pytest.raises(BundleRefused):
        read_genai_config(data, FILES)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
PATHS = [
    "model", "search", "model.decoder", "model.eos_token_id", "model.vocab_size", "model.decoder.inputs",
    "model.decoder.session_options", "model.decoder.session_options.provider_options", "model.decoder.filename",
    "model.decoder.num_key_value_heads", "model.decoder.sliding_window", "model.type",
]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(PATHS), JSON.filter(lambda value: value is not None))
def test_any_value_in_any_place_is_read_or_refused(path: str, value: Any) -> None:
    with contextlib.suppress(BundleRefused):
        read_genai_config(changed(path, value), FILES)
