"""Every family in the layout of its published repository: what is opened and built is the source."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.bundle.manifest import MANIFEST_FILE
from contract.errors import BuildRefused
from packager.build.pack import pack_bundle
from packager.build.plan import BuildPlan
from packager.evaluate.check_process import Runtime, _respelled
from packager.evaluate.conformance import compare
from packager.evaluate.ends import find_turn_ends
from packager.evaluate.jobs import Reference, ReferenceJob
from packager.evaluate.reference_process import look
from packager.graph.facts import read_back
from packager.graph.rope_check import compare_rope
from packager.sources.checkpoint import inspect_checkpoint, read_json
from packager.sources.weight_check import check_weights
from packager.subprocess_job import Reporter
from tests.packager.families import build_here, difference, source_logits
from tests.packager.published import NO_LIMIT, PUBLISHED, write_layout


def reference_of(directory: Path) -> Reference:
    return look(ReferenceJob(str(directory)), Reporter(os.open(os.devnull, os.O_WRONLY)))


def turn_ends(source: Path) -> list[int]:
    """What ends an answer by generation_config.json, and what the template writes behind one."""
    from transformers import AutoTokenizer

    file = source / "generation_config.json"
    named = json.loads(file.read_text()).get("eos_token_id", []) if file.is_file() else []
    found = find_turn_ends(AutoTokenizer.from_pretrained(source))
    assert found or not inspect_checkpoint(source).chat_template, "every template here ends a turn"
    return [*(named if isinstance(named, list) else [named]), *found]


def run_folder(folder: Path, ids: Any) -> Any:
    """Logits at every position, as the check reads them: by slices, in a cache no longer than it must be."""
    runtime = Runtime(folder, 1)
    return np.concatenate([rows for _, rows in runtime.walk([*map(int, ids), 0], 1, 64)])


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_is_opened_and_built_as_the_source(name: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    layout = PUBLISHED[name]
    source = write_layout(tmp_path / "source", layout)
    checkpoint = inspect_checkpoint(source)
    reference = reference_of(source)
    check_weights(checkpoint, reference)

    report = build_here(source, tmp_path / "fp32", "fp32")
    config, graph = read_back(tmp_path / "fp32")
    plan = BuildPlan("source", "tiny", "1.0.0", precision="fp32")
    assert compare(plan, report.config, config, graph) == []
    assert reference.rope is not None
    assert compare_rope(reference.rope, config, tmp_path / "fp32") == []
    runtime = Runtime(tmp_path / "fp32", 1)
    assert _respelled(runtime, reference.spellings) == []
    assert bool(reference.templates.renderings) == bool(checkpoint.chat_template)
    assert runtime.rerendered(reference.templates.renderings) == []
    assert set(config.eos_token_ids) >= set(turn_ends(source))
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    spread = float(source_logits(model, np.arange(3, 40, dtype=np.int32)).std())
    for length in layout.lengths:
        ids = np.random.default_rng(length).integers(6, config.vocab_size - 80, length, dtype=np.int32)
        furthest, _ = difference(run_folder(tmp_path / "fp32", ids), source_logits(model, ids))
        assert furthest <= 1e-3 * spread, f"{length} tokens: {furthest} of {spread}"


class TestTokensWithoutRows:
    @pytest.mark.parametrize(
        ("name", "text"), [("gemma-3-1b", "<image_soft_token>"), ("llama-2-with-padding", "[PAD]")]
    )
    def test_the_bundle_does_without_them(self, name: str, text: str, tmp_path: Path) -> None:
        import onnxruntime_genai as og

        source = write_layout(tmp_path / "source", PUBLISHED[name])
        assert inspect_checkpoint(source).rowless == (text,)
        build_here(source, tmp_path / "out", "fp32")
        rows = json.loads((source / "config.json").read_text())["vocab_size"]
        written = json.loads((tmp_path / "out" / "genai_config.json").read_text())["model"]
        assert written["pad_token_id"] < rows == written["vocab_size"]
        tokenizer = og.Tokenizer(og.Config(str(tmp_path / "out")))
        assert max(int(token) for token in tokenizer.encode(f"see {text} here")) < rows
        for file in (tmp_path / "out").glob("*.json"):
            assert text not in file.read_text()

    @pytest.fixture
    def padded(self, tmp_path: Path) -> Path:
        return write_layout(tmp_path / "source", PUBLISHED["llama-2-with-padding"])

    def test_not_if_the_template_writes_them(self, padded: Path) -> None:
        (padded / "chat_template.jinja").write_text("{{ '[PAD]' + messages[0]['content'] }}")
        with pytest.raises(BuildRefused, match="and the chat template uses it"):
            inspect_checkpoint(padded)

    @pytest.mark.parametrize("name", ["bos_token", "eos_token", "unk_token"])
    def test_not_if_they_are_spoken(self, padded: Path, name: str) -> None:
        file = padded / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), name: "[PAD]"}))
        with pytest.raises(BuildRefused, match=f"and {name} uses it"):
            inspect_checkpoint(padded)

    def test_not_if_they_are_words(self, padded: Path) -> None:
        file = padded / "config.json"
        config = json.loads(file.read_text())
        file.write_text(json.dumps({**config, "vocab_size": config["vocab_size"] - 1}))
        with pytest.raises(BuildRefused, match="it belongs to another model"):
            inspect_checkpoint(padded)


class TestJson:
    def test_it_is_read_as_transformers_reads_it(self, tmp_path: Path) -> None:
        (tmp_path / "x.json").write_text(f'{{"a": {NO_LIMIT}, "b": 2, "c": Infinity}}')
        assert read_json(tmp_path / "x.json") == {"a": NO_LIMIT, "b": 2, "c": float("inf")}

    @pytest.mark.parametrize("text", ["[" * 100_000, f'{{"a": {"9" * 5000}}}', "{"])
    def test_it_is_bounded(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(BuildRefused, match="is not JSON"):
            read_json(tmp_path / "x.json")

    def test_a_byte_order_mark_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "x.json").write_text("\ufeff{}")
        with pytest.raises(BuildRefused, match="begins with a byte order mark; save it as UTF-8 without one"):
            read_json(tmp_path / "x.json")

    def test_a_folder_with_such_a_tokenizer_is_packed(self, tiny_bundle: Path, tmp_path: Path) -> None:
        folder = tmp_path / "folder"
        shutil.copytree(tiny_bundle, folder, ignore=shutil.ignore_patterns(MANIFEST_FILE, "evidence", "LICENSE"))
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": NO_LIMIT}))
        plan = BuildPlan(str(folder), "packed", "1.0.0")
        assert pack_bundle(plan, tmp_path / "out", cache=tmp_path / "cache").manifest.model.context_length == 512
