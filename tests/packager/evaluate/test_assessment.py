"""Source and bundle asked the same things: the tiny model, its bundle, and damaged or pruned ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest

from contract.errors import BuildRefused
from contract.onnx.wire import read_graph_file
from packager.build.jobs import BUILDER, BuilderJob
from packager.build.plan import BuildPlan, builder_options
from packager.build.progress import SilentProgress
from packager.evaluate.assessment import EvaluationSpec, evaluate, prepare_evaluation, source_logits
from packager.evaluate.check import check_model
from packager.evaluate.gates import QualityPlan
from packager.evaluate.jobs import SourceView
from packager.evaluate.source import view_source
from packager.evaluate.text import reference_text
from packager.sources.checkpoint import Checkpoint, inspect_checkpoint
from packager.subprocess_job import run_child

QUIET = SilentProgress()


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return inspect_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def exam_with(tmp_path: Path, **changes: object) -> EvaluationSpec:
    cases = [
        {"name": "capital", "prompt": "What is the capital of France?", "contains": ["paris"]},
        {"name": "count", "prompt": "Count from one to five.", "matches": ["one.*five$"]},
        {"name": "hopeless", "prompt": "Say hello.", "refuses": True, "tokens": 12},
    ]
    (tmp_path / "cases.json").write_text(json.dumps(cases), "utf-8")
    plan = QualityPlan(behaviour_file=str(tmp_path / "cases.json"))
    return prepare_evaluation(msgspec.structs.replace(plan, **changes), "int4")


@pytest.fixture(scope="module")
def heard(checkpoint: Checkpoint, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> SourceView:
    view = source_logits(exam_with(tmp_path_factory.mktemp("cases")), checkpoint, cache, cache / "log", QUIET)
    assert view is not None
    return view


def test_both_sides_are_measured_and_the_cases_judged(tiny_bundle: Path, heard: SourceView, tmp_path: Path) -> None:
    found = evaluate(exam_with(tmp_path), heard, tiny_bundle, tmp_path / "log", QUIET)
    assert 0 < found.summary["kl"] < 0.5
    assert 0.5 < found.summary["top1_agreement"] < 1
    assert found.summary["tokenizer_same"] is True
    assert found.summary["behaviour"] == {"cases": 3, "source_passed": 2, "bundle_passed": 2, "lost": []}
    assert len(found.details["kl_by_position"]) == found.checked.perplexity_tokens > 900
    assert found.details["canaries"][0]["source"] == found.details["canaries"][0]["bundle"]


def test_a_limit_fails_the_build_unless_it_is_accepted(tiny_bundle: Path, heard: SourceView, tmp_path: Path) -> None:
    with pytest.raises(BuildRefused, match=r"KL divergence from the source is 0\.\d+, the limit 0\.001"):
        evaluate(exam_with(tmp_path, max_kl=0.001), heard, tiny_bundle, tmp_path / "log", QUIET)
    spec = exam_with(tmp_path, max_kl=0.001, accept="only for a test")
    found = evaluate(spec, heard, tiny_bundle, tmp_path / "log", QUIET)
    assert found.summary["limits"]["accepted"]["reason"] == "only for a test"


def test_a_damaged_copy_is_found_out(tiny_bundle: Path, heard: SourceView, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    data = bytearray((folder / "model.onnx.data").read_bytes())
    [weights] = [
        tensor.external
        for tensor in read_graph_file(folder / "model.onnx").walk_tensors()
        if tensor.name.endswith("layers.1.mlp.down_proj.MatMul.weight_Q4")
    ]
    assert weights is not None
    span = slice(weights.offset, weights.offset + 16_384)
    data[span] = bytes(reversed(data[span]))
    (folder / "model.onnx.data").write_bytes(data)
    with pytest.raises(BuildRefused):
        evaluate(exam_with(tmp_path), heard, folder, tmp_path / "log", QUIET)


def test_a_pruned_head_is_compared_at_the_same_positions(
    checkpoint: Checkpoint, tiny_bundle: Path, heard: SourceView, tmp_path: Path
) -> None:
    (tmp_path / "pruned").mkdir()
    options = [*builder_options(BuildPlan("", "pruned", "1.0.0")), "prune_lm_head=true"]
    out, scratch = str(tmp_path / "pruned"), str(tmp_path / "scratch")
    run_child(BUILDER, BuilderJob(str(checkpoint.path), out, scratch, "int4", "cpu", options), tmp_path / "log")
    pruned = check_model(tmp_path / "pruned", tmp_path / "log", source=heard, questions=("Say hello.",)).compared
    whole = check_model(tiny_bundle, tmp_path / "log", source=heard, questions=("Say hello.",)).compared
    assert pruned is not None
    assert whole is not None
    assert pruned.tokens == whole.tokens
    assert pruned.kl == pytest.approx(whole.kl, rel=0.1)  # other kernels for one row than for many


def test_the_source_is_asked_once(checkpoint: Checkpoint, heard: SourceView, cache: Path, tmp_path: Path) -> None:
    before = heard.rows.stat().st_mtime_ns
    again = source_logits(exam_with(tmp_path), checkpoint, cache, tmp_path / "log", QUIET)
    assert again == heard
    assert heard.rows.stat().st_mtime_ns == before
    assert not (tmp_path / "log").exists()


def test_a_text_that_is_too_short_is_refused(checkpoint: Checkpoint, cache: Path, tmp_path: Path) -> None:
    text = msgspec.structs.replace(reference_text(), text="Too short.", sha256="0")
    with pytest.raises(BuildRefused, match="at least 64 are needed"):
        view_source(checkpoint, text, (), cache, tmp_path / "log")


@pytest.mark.parametrize(("content", "said"), [(None, "cannot be read"), (b"  ", "empty"), (b"\xff\xfe", "not UTF-8")])
def test_files_that_are_no_text_are_refused_before_anything_starts(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / "text").write_bytes(content)
    with pytest.raises(BuildRefused, match=said):
        prepare_evaluation(QualityPlan(eval_file=str(tmp_path / "text")), "int4")
