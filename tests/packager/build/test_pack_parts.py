"""Finished folders of several graphs: a model that also sees, and one that only hears."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from contract.bundle.manifest import Manifest
from contract.errors import BuildRefused, BundleRefused
from packager.build.pack import pack_bundle
from packager.build.plan import BuildPlan
from packager.vision.pictures import canary_picture
from tests.seeing import save_graph, value
from tests.tiny import make_tokenizer

WIDTH = 16


@pytest.fixture(scope="module")
def hearing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder and a decoder as Whisper has them, with no sense in their weights."""
    from onnx import helper

    folder = tmp_path_factory.mktemp("hearing") / "model"
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    words = len(tokenizer)
    save_graph(
        folder / "encoder.onnx",
        [
            helper.make_node("Transpose", ["audio_features"], ["frames"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["frames", "mix"], ["encoder_hidden_states"]),
        ],
        [value("audio_features", "FLOAT", ["batch", 80, "frames"])],
        [value("encoder_hidden_states", "FLOAT", ["batch", "frames", WIDTH])],
        {"mix": np.ones((80, WIDTH), np.float32)},
    )
    cache = ("past_key_values.0.{}", "present.0.{}")
    shape = ["batch", 1, "past", WIDTH]
    past, present = ([value(name.format(kind), "FLOAT", shape) for kind in ("key", "value")] for name in cache)
    save_graph(
        folder / "decoder.onnx",
        [
            helper.make_node("Gather", ["table", "input_ids"], ["word"]),
            helper.make_node("ReduceMean", ["encoder_hidden_states"], ["heard"], axes=[1]),
            helper.make_node("Add", ["word", "heard"], ["both"]),
            helper.make_node("MatMul", ["both", "head"], ["logits"]),
            *(helper.make_node("Identity", [cache[0].format(k)], [cache[1].format(k)]) for k in ("key", "value")),
        ],
        [
            value("input_ids", "INT64", ["batch", "tokens"]),
            value("encoder_hidden_states", "FLOAT", ["batch", "frames", WIDTH]),
            *past,
        ],
        [value("logits", "FLOAT", ["batch", "tokens", words]), *present],
        {"table": np.ones((words, WIDTH), np.float32), "head": np.ones((WIDTH, words), np.float32)},
    )
    sizes = dict.fromkeys(("num_attention_heads", "num_hidden_layers", "num_key_value_heads"), 1)
    sizes |= dict.fromkeys(("hidden_size", "head_size"), WIDTH)
    model = {
        "type": "whisper", "vocab_size": words, "context_length": 64, "eos_token_id": 2, "decoder_start_token_id": 1,
        "encoder": {
            "filename": "encoder.onnx", **sizes,
            "inputs": {"audio_features": "audio_features"},
            "outputs": {"encoder_hidden_states": "encoder_hidden_states"},
        },
        "decoder": {
            "filename": "decoder.onnx", **sizes,
            "inputs": {
                "input_ids": "input_ids", "encoder_hidden_states": "encoder_hidden_states",
                "past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value",
            },
            "outputs": {
                "logits": "logits", "present_key_names": "present.%d.key", "present_value_names": "present.%d.value",
            },
        },
    }  # fmt: skip
    (folder / "genai_config.json").write_text(json.dumps({"model": model, "search": {"max_length": 64}}))
    return folder


def pack(folder: Path, tmp_path: Path) -> Manifest:
    return pack_bundle(BuildPlan(str(folder), "parts", "1.0.0"), tmp_path / "out", cache=tmp_path / "cache").manifest


def test_a_model_that_sees_is_run_with_text_and_a_picture_and_says_so(seeing_folder: Path, tmp_path: Path) -> None:
    manifest = pack(seeing_folder, tmp_path)
    assert {"text", "vision"} <= set(manifest.model.capabilities)
    roles = {entry.path: entry.role for entry in manifest.files}
    assert roles["vision.onnx"] == roles["embedding.onnx"] == roles["model.onnx"] == "model"
    assert manifest.canary[0].expected_text == "The capital of France is Paris."
    assert manifest.picture_canary is not None
    assert manifest.picture_canary.picture == canary_picture()
    said = "run with text, and with a picture"
    assert manifest.quality["check"] == said
    assert json.loads((tmp_path / "out" / "evidence" / "quality.json").read_text())["check"] == said
    assert said in (tmp_path / "out" / "evidence" / "report.html").read_text()


def test_a_model_that_fails_on_a_picture_is_refused_in_a_sentence(seeing_folder: Path, tmp_path: Path) -> None:
    from onnx import helper

    folder = Path(shutil.copytree(seeing_folder, tmp_path / "folder"))
    features = value("image_features", "FLOAT", ["pieces", 128])
    inputs = [value("pixel_values", "FLOAT", ["n", "crops", 3, "y", "x"]), value("image_sizes", "INT64", ["n", 2])]
    nodes = [helper.make_node("Identity", ["none"], ["image_features"])]
    save_graph(folder / "vision.onnx", nodes, inputs, [features], {"none": np.zeros((7, 128), np.float32)})
    with pytest.raises(BuildRefused, match="the built model cannot read a picture: ") as refused:
        pack(folder, tmp_path)
    assert "\n" not in refused.value.message


def test_a_model_that_only_hears_is_loaded_and_says_so(hearing: Path, tmp_path: Path) -> None:
    manifest = pack(hearing, tmp_path)
    assert manifest.model.capabilities == ["speech"]
    assert manifest.canary == []
    assert manifest.budget.load_seconds > 0
    assert manifest.quality["check"] == "every graph was loaded; none was run, since the model reads sound"


def test_every_graph_is_checked_and_not_the_decoders_alone(hearing: Path, tmp_path: Path) -> None:
    from onnx import helper

    encoder = hearing / "encoder.onnx"
    kept = encoder.read_bytes()
    save_graph(
        encoder,
        [helper.make_node("Anything", ["audio_features"], ["encoder_hidden_states"], domain="somebody.else")],
        [value("audio_features", "FLOAT", ["batch", 80, "frames"])],
        [value("encoder_hidden_states", "FLOAT", ["batch", "frames", WIDTH])],
        {},
    )
    try:
        with pytest.raises(BundleRefused, match=r"somebody\.else"):
            pack(hearing, tmp_path)
    finally:
        encoder.write_bytes(kept)
    assert not (tmp_path / "out").exists()
