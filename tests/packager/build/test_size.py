"""``make size`` with a small shape: the same code from random weights to the table."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from benchmarks.size import main


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


@pytest.mark.timeout(600)
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
