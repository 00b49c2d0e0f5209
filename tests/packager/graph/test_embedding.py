"""An embedding of its own is quantised too: what is stored, what is proved, and what both engines make of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from contract.errors import UsageError
from packager.build.plan import BuildPlan, check_plan
from packager.evaluate.conformance import compare
from packager.graph.embedding import choose_block, quantise_rows
from packager.graph.facts import read_back
from tests.packager.families import FAMILY_CONFIGS, build_here, difference, make_random, runtime, sample_ids


@pytest.mark.parametrize(("bits", "lost"), [(8, 1 / 256), (4, 1 / 16)])
def test_rows_come_back_within_half_a_level(bits: int, lost: float) -> None:
    rows = np.random.default_rng(0).standard_normal((7, 96)).astype(np.float32)
    rows[2, :32] = 0
    levels, scales = quantise_rows(rows, bits, 32)
    assert (levels.nbytes, scales.shape) == (rows.size * bits // 8, (7, 3))
    plain = levels if bits == 8 else np.stack([levels & 15, levels >> 4], -1).reshape(7, 96)
    again = (plain.astype(np.float32) - 2 ** (bits - 1)).reshape(7, 3, 32) * scales[..., None]
    furthest = np.abs(rows).reshape(7, 3, 32).max(-1, keepdims=True)
    assert (np.abs(again - rows.reshape(7, 3, 32)) <= 2 * lost * furthest + 1e-7).all()
    assert not again[2, 0].any()


def test_blocks_are_as_long_as_rows_allow() -> None:
    assert [choose_block(8, width) for width in (3072, 896, 576, 100)] == [128, 128, 64, None]
    assert [choose_block(4, width) for width in (3072, 48, 100)] == [32, 16, None]


@pytest.mark.parametrize("precision", ["int4", "int8"])
@pytest.mark.parametrize("kind", ["float", "int8", "int4"])
def test_it_is_what_was_asked_for_and_computes_the_same(
    kind: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_random(tmp_path / "source", FAMILY_CONFIGS["qwen-2"]())
    plan = BuildPlan("source", "tiny", "1.0.0", precision=precision, embedding=kind)
    options = ("block_size=32", "accuracy_level=4")
    built = {}
    for name in {"float", kind}:
        monkeypatch.setattr(BuildPlan, "own_embedding", name)
        report = build_here(tmp_path / "source", tmp_path / name, precision, options=options)
        built[name] = runtime(tmp_path / name)(sample_ids(30))
    monkeypatch.undo()
    config, graph = read_back(tmp_path / kind)
    assert graph.embedding == {"float": "fp32"}.get(kind, kind)
    assert compare(plan, report.config, config, graph) == []
    assert graph.parameters == read_back(tmp_path / "float")[1].parameters
    other = BuildPlan("source", "tiny", "1.0.0", precision=precision, embedding="int4" if kind == "int8" else "int8")
    assert "the embedding is" in "; ".join(compare(other, report.config, config, graph))
    _, cosine = difference(built[kind], built["float"])
    assert cosine > {"float": 0.9999, "int8": 0.999, "int4": 0.95}[kind]


def test_nobody_else_is_offered() -> None:
    with pytest.raises(UsageError, match="'int3' is not a known embedding"):
        check_plan(BuildPlan("source", "tiny", "1.0.0", embedding="int3"))
    for plan in (BuildPlan("s", "n", "1.0.0", precision="fp32"), BuildPlan("s", "n", "1.0.0", ep="cuda")):
        assert plan.own_embedding == "float"
