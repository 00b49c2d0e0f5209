"""``make size`` with a small shape: the same code from random weights to the table."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from benchmarks.size import build, main, promised_by
from tests.random_checkpoint import config_of, make_random_checkpoint


@pytest.mark.timeout(600)
def test_the_table_names_every_process_and_what_was_promised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # As the Makefile calls it: a directory relative to where it is called.
    relative = os.path.relpath(tmp_path)
    assert main(["qwen-0.5b", "--small", "--directory", relative, "--", "--quantizer", "rtn"]) == 0
    said = capsys.readouterr().out
    for process in (
        "build.model_builder_process",
        "evaluate.source_process",
        "evaluate.check_process",
        "evaluate.logits_process",
    ):
        assert f"| packager.{process} | " in said
    assert "| **together** (promised 0." in said
    assert "embedding int8, lm_head int4" in said
    assert "tokens/s on" in said
    device = said[said.index("on a device of 4 GiB without swap") :]
    for process in ("agent.cli", "agent.worker.main", "agent.install.process.installer"):
        assert f"| {process} | " in device
    assert re.search(r"disk 0\.\d+ GB with one version", device)
    assert re.search(r"swapped in \d+ s \(overlap, .* answers, 0 lost", device)
    assert [path.name for path in tmp_path.iterdir()] == ["small-qwen-0.5b"]  # made once, and nothing else left


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_model_that_sees_is_built_as_it_comes_deployed_and_asked_about_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["phi-3.5-vision", "--small", "--directory", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for process in ("quantize.process", "vision.process", "vision.proof_process", "vision.compare_process"):
        assert f"| packager.{process} | " in said
    assert re.search(r"the encoder takes \d+\.\d s for a picture of 757 features", said)
    device = said[said.index("on a device of 8 GiB without swap") :]
    assert re.search(r"answers, 0 lost", device)
    assert re.search(
        r"a picture of 672 x 672 pixels and a question, 25\d\d tokens: \d+\.\d s to the first token", device
    )


WIDER = {
    "vocab_size": 512, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 8192,
}  # fmt: skip
"""Of ten million parameters: small beside libraries in memory, large beside tokenizer and configuration on the disk."""


@pytest.mark.long
@pytest.mark.timeout(900)
def test_what_a_build_takes_is_what_it_said(tmp_path: Path) -> None:
    """Of Phi's kind, calibrated, with an INT8 cache: bytes of memory and of disk, each within 30 %."""
    source = make_random_checkpoint(tmp_path / "source", config_of("phi-3.5-mini", **WIDER))
    (tmp_path / "work").mkdir()
    found = build(source, tmp_path / "work", ["--quantizer", "gptq-fast", "--kv", "int8"], None)
    memory, disk, _ = promised_by(found.output)
    assert 1 / 1.3 < found.disk / disk < 1.3
    assert 1 / 1.3 < found.together / memory < 1.3, found.peaks
