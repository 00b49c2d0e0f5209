"""Each known fault of the builder still shows without its workaround; when it does not, the workaround can go."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from packager.build.plan import BuildPlan
from packager.build.workarounds import WORKAROUNDS
from packager.evaluate.conformance import compare
from packager.graph.facts import read_back
from tests.packager.families import (
    CONTEXT,
    FAMILY_CONFIGS,
    build_here,
    difference,
    make_random,
    runtime,
    sample_ids,
    source_logits,
)

NEEDED_BY = {
    "longrope-type": ["phi-3.5-mini", "phi-4-mini"],
    "gemma3-nested-rope": ["gemma-3"],
    "rope-tables": ["gemma-3-scaled", "llama-linear"],
    "norm-epsilon": ["phi-2", "nemotron"],
    "gemma-rounding": ["gemma", "gemma-2", "gemma-3"],
    "still-layers": ["smollm-3"],
    "window-beyond-context": ["gemma-3-wide"],
    "dropped-window": ["mistral", "phi-3"],
    "stray-commit": ["qwen-2"],
    "all-weights-at-once": ["qwen-2"],
}
SMALL = 5e-4
"""Rounding on the way to a graph; what a whole mistake makes is a thousand times as much."""

PAIRS = [(name, family) for name, families in NEEDED_BY.items() for family in families]


def quantised_graph_bytes(checkpoint: Path, out: Path, skip: str = "") -> int:
    """How large the graph is in memory that the builder has ready when it begins to quantise."""
    from onnxruntime_genai.models.builders import base

    sizes: list[int] = []
    plain = base.MatMulNBitsQuantizer

    def look(*more: Any, model: Any, **named: Any) -> Any:
        sizes.append(model.ByteSize())
        return plain(*more, model=model, **named)

    with pytest.MonkeyPatch.context() as patch:
        for module in {base, sys.modules[builder_model().__module__]}:
            patch.setattr(module, "MatMulNBitsQuantizer", look)
        build_here(checkpoint, out, "int4", options=("block_size=32",), skip=skip)
    return max(sizes)


def builder_model() -> Any:
    """The class that is patched: its module exists twice in a process, under two names."""
    from onnxruntime_genai.models import builder

    return builder.Model


def test_every_workaround_is_shown_to_be_needed() -> None:
    assert sorted(NEEDED_BY) == sorted(workaround.name for workaround in WORKAROUNDS)


@pytest.mark.parametrize(("name", "family"), PAIRS)
def test_the_symptom_still_shows(name: str, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_random(tmp_path / "source", FAMILY_CONFIGS[family]())
    out = tmp_path / "out"
    if name == "longrope-type":
        with pytest.raises(KeyError, match="type"):
            build_here(tmp_path / "source", out, "fp32", skip=name)
        return
    if name == "gemma3-nested-rope":
        with pytest.raises(KeyError, match="rope_type"):
            build_here(tmp_path / "source", out, "fp32", skip=name)
        return
    if name == "still-layers":
        with pytest.raises(KeyError, match="position_ids"):
            build_here(tmp_path / "source", out, "fp32", skip=name)
        return
    if name == "stray-commit":
        git = tmp_path / "bin" / "git"
        git.parent.mkdir()
        git.write_text("#!/bin/sh\necho 5742a15742a15742a15742a15742a15742a15742\n")
        git.chmod(0o755)
        monkeypatch.setenv("PATH", str(git.parent), prepend=":")
        build_here(tmp_path / "source", out, "fp32", skip=name)
        build_here(tmp_path / "source", tmp_path / "mended", "fp32")
        assert b"+5742a15" in (out / "model.onnx").read_bytes()
        assert b"+5742a15" not in (tmp_path / "mended" / "model.onnx").read_bytes()
        return
    if name == "all-weights-at-once":
        # The products' weights; the table of the embedding is quantised apart, where it is not shared.
        products = [weight for key, weight in source.named_parameters() if weight.ndim == 2 and "embed" not in key]
        whole = sum(weight.numel() for weight in products) * 4
        assert quantised_graph_bytes(tmp_path / "source", out, skip=name) > whole
        assert quantised_graph_bytes(tmp_path / "source", tmp_path / "mended") < whole / 10
        return
    report = build_here(tmp_path / "source", out, "fp32", skip=name)
    ids = sample_ids(CONTEXT - 20)
    if name == "window-beyond-context":
        with pytest.raises(RuntimeError, match="must be at least local_window_size"):
            runtime(out)(ids)
        return
    if name == "dropped-window":
        plan = BuildPlan("source", "tiny", "1.0.0", precision="fp32")
        assert "attends over everything" in compare(plan, report.config, *read_back(out))[0]
        with pytest.raises(RuntimeError, match="sequence_length"):
            runtime(out)(ids)
        return
    furthest, _ = difference(runtime(out)(ids), source_logits(source, ids))
    assert furthest > (SMALL if name in ("norm-epsilon", "gemma-rounding") else 0.1)
    build_here(tmp_path / "source", tmp_path / "mended", "fp32")
    furthest, _ = difference(runtime(tmp_path / "mended")(ids), source_logits(source, ids))
    assert furthest < SMALL / 10
