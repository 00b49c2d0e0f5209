"""Weights quantised piece by piece give the bytes that they give all at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from packager.build.plan import BuildPlan
from packager.quantize import streaming
from tests.packager.families import FAMILY_CONFIGS, build_here, make_random

AT_ONCE = "all-weights-at-once"
KINDS = {
    "rtn": ("int4", "qwen-2", ("block_size=32", "accuracy_level=4")),
    "rtn, tied": ("int4", "phi-4-mini", ("block_size=32", "accuracy_level=4")),
    "rtn, rows that are cut into blocks with a rest": ("int4", "llama-3", ("block_size=64",)),
    "rtn in 8 bits": ("int8", "phi-3", ("block_size=32", "accuracy_level=4")),
    "rtn, the embedding in fp32": ("int4", "qwen-2", ("block_size=32",)),
    "rtn, in half precision for cuda": ("int4", "qwen-2", ("block_size=32",)),
    "k-quant": ("int4", "qwen-2", ("algo_config=k_quant", "block_size=32")),
    "k-quant, a rest": ("int4", "phi-3.5-mini", ("algo_config=k_quant", "block_size=64")),
    "k-quant-mixed, tied": ("int4", "phi-4-mini", ("algo_config=k_quant_mixed", "block_size=32")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_are_the_same(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precision, family, options = KINDS[kind]
    monkeypatch.setattr(streaming, "PIECE_ELEMENTS", 5000)  # several pieces, the last one shorter
    config = FAMILY_CONFIGS[family]()
    if "k-quant" in kind:  # takes even numbers of blocks only
        config.intermediate_size = 250 if "rest" in kind else 256
    if "fp32" in kind:
        monkeypatch.setattr(BuildPlan, "own_embedding", "float")
    make_random(tmp_path / "source", config)
    ep = "cuda" if "cuda" in kind else "cpu"
    report = build_here(tmp_path / "source", tmp_path / "out", precision, ep, options=options)
    assert AT_ONCE in report.workarounds
    build_here(tmp_path / "source", tmp_path / "plain", precision, ep, options=options, skip=AT_ONCE)
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes(), name


def test_nothing_is_left_changed_in_the_quantizers(tmp_path: Path) -> None:
    from onnxruntime.quantization import matmul_nbits_quantizer as first
    from onnxruntime.quantization.neural_compressor import weight_only as second

    before = (dict(vars(first)), dict(vars(second)), dict(vars(first.DefaultWeightOnlyQuantizer)))
    make_random(tmp_path / "source", FAMILY_CONFIGS["qwen-2"]())
    build_here(tmp_path / "source", tmp_path / "out", "int4", options=("block_size=32",))
    assert before == (dict(vars(first)), dict(vars(second)), dict(vars(first.DefaultWeightOnlyQuantizer)))
