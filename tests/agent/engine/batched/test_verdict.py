"""For which pools a verdict that is kept holds, and that one can be measured where a process may allocate little."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from agent.engine.batched.graph import Decoder
from agent.engine.batched.opening import open_model
from agent.engine.batched.verdict import FILE, LEAST_REACH, trial_size
from agent.engine.load_options import ModelFiles, Resources
from contract.bundle.device_plan import MAX_SLOTS

PHI = Decoder(
    path=Path("model.onnx"),
    input_ids="input_ids",
    attention_mask="attention_mask",
    position_ids=None,
    logits="logits",
    past=(),
    present=(),
    kv_heads=32,
    head_size=96,
    kv_type=np.int8,
    kv_bytes_per_token=196_608,
    vocab_size=32064,
    context_length=131_072,
    window=262_144,
    rope_switch=4096,
)


def test_a_window_beyond_the_context_asks_for_no_pool_of_its_own() -> None:
    """Phi-3.5-mini's, of 262,144 tokens: 206 GB were asked for, which no worker with a limit got."""
    slots, length = trial_size(PHI, sys.maxsize)
    assert (slots, length) == (MAX_SLOTS, 4096 + 96)
    assert trial_size(replace(PHI, window=0), sys.maxsize) == (slots, length)
    assert trial_size(replace(PHI, window=30_000), sys.maxsize) == (MAX_SLOTS, 30_096)
    assert trial_size(replace(PHI, window=0, rope_switch=0), sys.maxsize) == (MAX_SLOTS, LEAST_REACH + 96)


@pytest.mark.parametrize(("gigabytes", "slots"), [(0, 2), (1.7, 2), (2.5, 3), (6.5, 7), (100, 8)])
def test_it_has_the_slots_that_a_process_may_allocate(gigabytes: float, slots: int) -> None:
    assert trial_size(PHI, int(gigabytes * 10**9))[0] == slots


def test_what_was_measured_on_fewer_slots_counts_for_no_more(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert subprocess.run(
        [sys.executable, "-m", "agent.worker.prepacking", str(tiny_bundle), str(tmp_path), "--verdict-only"], check=True
    )
    measured: list[Any] = []
    monkeypatch.setattr("agent.engine.batched.opening.measure", lambda *given: measured.append(given) or kept)
    kept = open_model(ModelFiles(tiny_bundle, tmp_path), Resources(1)).verdict
    assert (measured, kept.slots) == ([], MAX_SLOTS)
    few = (tmp_path / FILE).read_text().replace(f'"slots":{MAX_SLOTS}', '"slots":2')
    (tmp_path / FILE).write_text(few)
    open_model(ModelFiles(tiny_bundle, tmp_path), Resources(1))
    assert len(measured) == 1
