"""Scales of an INT8 cache: those of the runtime's own calibration, without keeping what it keeps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from contract.errors import BuildRefused
from packager.build import kv_cache, kv_cache_process
from packager.build.jobs import ScalesJob
from packager.build.kv_cache import PERCENTILE, SCHEME, measure_scales
from packager.build.kv_cache_process import Largest
from packager.build.model_builder import build_graph
from packager.build.plan import BuildPlan
from packager.sources.checkpoint import inspect_checkpoint
from tests.random_checkpoint import make_random_checkpoint, small_config


@pytest.mark.parametrize("percent", [PERCENTILE, 99.0, 97.3, 100.0, 50.0])
@pytest.mark.parametrize("count", [24, 1000, 12288])
def test_a_percentile_is_found_without_keeping_the_rows(percent: float, count: int) -> None:
    rows = np.random.default_rng(1).standard_normal((count, 7), dtype=np.float32)
    found = Largest(7, count, percent)
    for part in np.array_split(rows, 5):
        found.add(part)
    whole = np.percentile(np.abs(rows.astype(np.float16).astype(np.float32)), percent, axis=0).astype(np.float32)
    assert found.percentile().tolist() == whole.tolist()
    assert found.most.tolist() == np.abs(rows).max(axis=0).tolist()


def test_what_is_not_finite_is_not_lost_among_the_largest() -> None:
    found = Largest(2, 12288, PERCENTILE)
    found.add(np.array([[1.0, np.nan]], np.float32))
    found.add(np.ones((3, 2), np.float32))
    assert np.isfinite(found.most).tolist() == [True, False]


def test_scales_are_those_of_the_runtimes_own_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxruntime_genai.models.quantization.kv_cache_calibration import calibrate_kv_scales

    checkpoint = inspect_checkpoint(make_random_checkpoint(tmp_path / "source", small_config("phi-3.5-mini")))
    build_graph(checkpoint, BuildPlan("source", "x", "1.0.0", kv="float"), tmp_path / "plain", tmp_path / "log")
    jobs: list[ScalesJob] = []
    monkeypatch.setattr(kv_cache, "run_child", lambda task, job, log, **how: jobs.append(job))

    def told(done: float, total: float) -> None:
        """Nothing reports here: the child was not started."""

    measure_scales(tmp_path / "plain", checkpoint, None, tmp_path / "ours.json", tmp_path / "log", on_progress=told)
    [job] = jobs
    steps: list[tuple[float, float]] = []
    kv_cache_process.measure(job, type("Told", (), {"progress": lambda self, *how_far: steps.append(how_far)})())
    calibrate_kv_scales(
        model_path=job.model,
        tokenizer_path=job.tokenizer,
        out_json=str(tmp_path / "own.json"),
        quant_type=SCHEME,
        percentile=PERCENTILE,
        target_seq=job.length,
        num_seqs=job.sequences,
    )
    assert json.loads((tmp_path / "ours.json").read_text()) == json.loads((tmp_path / "own.json").read_text())
    assert steps[-1] == (24, 24)
    with pytest.raises(BuildRefused, match="some layers keep something else"):
        kv_cache_process.measure(replace(job, layers=3), None)  # type: ignore[arg-type]
