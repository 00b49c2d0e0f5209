"""``make bench MODEL=…`` with a small shape: the same code from random weights to the goals."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.bandwidth import read_bandwidth
from benchmarks.bench import main
from benchmarks.goals import EIGHT, FIRST, GOALS, ONE, SHARE, judged
from benchmarks.shapes import OFFERED, read_bytes_of_a_token, write_gguf
from tests.random_checkpoint import make_random_checkpoint, small_config


@pytest.mark.timeout(900)
def test_a_shape_is_made_measured_and_held_against_its_goals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # llama.cpp comes from the package index, which tests do without.
    line = ["--model", "llama-3.2-1b", "--small", "--rounds", "1", "--peers", "oga generator", "--only", "decode"]
    assert main([*line, "--out", str(tmp_path)]) == 0
    place = tmp_path / "small-llama-3.2-1b"
    assert {path.name for path in place.iterdir()} == {"bundle", "q4_0.gguf", "bench.json", "bench.svg", "peers.log"}
    found = json.loads((place / "bench.json").read_text())
    ours = found["median"]["batched"]
    assert ours[ONE] > 0
    assert ours[EIGHT] > 0
    assert ours[SHARE] > 0
    assert found["model"] == "llama-3.2-1b"
    said = capsys.readouterr().out
    assert found["processor"] in said
    assert f"| {ONE}: at least 1.3 times llama.cpp's | – | not measured |" in said
    # Two narrow layers and the lm_head, 4 bits and an fp32 scale for 32 weights, and nothing of the embedding.
    config = small_config("llama-3.2-1b")
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    weights = 2 * (3 * hidden * inner + hidden * (2 * hidden + 2 * 64)) + config["vocab_size"] * hidden
    assert read_bytes_of_a_token(place / "bundle") == weights * 5 // 8


@pytest.mark.parametrize("shape", OFFERED)
def test_llama_cpps_file_holds_the_weights_of_the_checkpoint(shape: str, tmp_path: Path) -> None:
    config = small_config(shape)
    checkpoint = make_random_checkpoint(tmp_path / "checkpoint", config)
    write_gguf(checkpoint, tmp_path / "file.gguf")
    held = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "file.gguf").tensors}
    source = load_file(checkpoint / "model.safetensors")
    factors = {name for name in held if name.startswith("rope_factors")}
    assert len(held) - len(factors) == len(source)
    assert bool(factors) == (shape == "phi-3.5-mini")
    for ours, theirs in (
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.norm.weight", "output_norm.weight"),
    ):
        there = gguf.quants.dequantize(held[theirs].data, held[theirs].tensor_type)
        wanted = source[ours].to(torch.float32).numpy()
        assert there.shape == wanted.shape
        assert np.abs(there - wanted).max() <= np.abs(wanted).max() / 8  # a step of four bits
    kinds = {tensor.tensor_type.name for tensor in held.values() if len(tensor.shape) > 1}
    assert kinds == {"Q4_0"}


def test_what_falls_short_is_called_missed() -> None:
    ours, theirs = {ONE: 20.0, EIGHT: 40.0, FIRST: 600.0, SHARE: 60.4}, {ONE: 15.0, EIGHT: 20.0, FIRST: 1000.0}
    rows = judged("llama-3.2-1b", ours, theirs)
    assert rows[2] == f"| {ONE}: at least 1.3 times llama.cpp's | 1.33× | reached |"
    assert rows[3].endswith("| 2.00× | **missed** |")
    assert rows[4].endswith("| 0.60× | reached |")
    assert rows[5].endswith("| 60 % | **missed** |")
    assert judged("llama-3.2-1b", {**ours, FIRST: 701.0}, theirs)[4].endswith("**missed** |")


def test_what_was_not_measured_is_not_reached() -> None:
    for shape in [*GOALS, "smollm2-135m"]:
        assert all(row.endswith("| – | not measured |") for row in judged(shape, {}, {})[2:])


def test_reading_memory_takes_time() -> None:
    assert 1e6 < read_bandwidth(2, 2**22, tries=1) < 1e13
