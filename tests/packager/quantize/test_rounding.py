"""Rounding on a calibration text: the grid, the compensation, the packing, and that it all survives the builder."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import cast

import pytest
import torch

from contract.errors import BuildRefused, UsageError
from packager.build.pipeline import build_bundle
from packager.build.plan import BuildPlan, check_plan
from packager.quantize import auto_round, samples, tuning
from packager.quantize.calibrate import require_library
from packager.quantize.checkpoints import CalibrationCheckpoints
from packager.quantize.export import gptq_tensors, pack_words
from packager.quantize.gptq import round_matrix
from packager.quantize.grid import BLOCK, choose_grid
from packager.quantize.jobs import CalibrationJob
from packager.quantize.layers import Rounded
from packager.quantize.process import calibrate
from packager.quantize.samples import LENGTH, tokens_of_text
from packager.sources.checkpoint import Quantization, digest_directory, inspect_checkpoint
from packager.subprocess_job import Reporter
from tests.packager.build.test_build import manifest_of
from tests.packager.families import FAMILY_CONFIGS, make_random


def matrix(rows: int, columns: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def inputs(columns: int) -> torch.Tensor:
    """Inputs that depend on each other, as real ones do."""
    mix = matrix(columns, columns, 2) / columns**0.5 + 0.5 * torch.eye(columns)
    return matrix(400, columns, 3) @ mix * torch.logspace(-1, 1, columns)


def output_error(weight: torch.Tensor, rounded: torch.Tensor, given: torch.Tensor) -> float:
    return float((given @ (weight - rounded).t()).pow(2).mean())


@pytest.mark.parametrize("symmetric", [True, False])
def test_outputs_change_less_than_with_the_grid_alone(symmetric: bool) -> None:
    weight, given = matrix(48, 128), inputs(128)
    moments = given.t() @ given
    levels, grid = round_matrix(weight, moments.clone(), symmetric=symmetric)
    plain = choose_grid(weight, torch.ones(128), symmetric=symmetric)
    nearest = (torch.round(weight / plain.spread(plain.scale)) + plain.spread(plain.zero)).clamp(plain.low, plain.high)
    before = output_error(weight, Rounded(nearest, plain).weight(), given)
    assert output_error(weight, Rounded(levels, grid).weight(), given) < 0.5 * before


def test_a_symmetric_grid_is_found_again_by_largest_magnitudes() -> None:
    weight, given = matrix(40, 96), inputs(96)
    once = Rounded(*round_matrix(weight, given.t() @ given, symmetric=True)).weight()
    blocks = once.reshape(40, -1, BLOCK)
    scale = torch.gather(blocks, -1, blocks.abs().argmax(-1, keepdim=True)) / -8
    again = (torch.round(blocks / scale).clamp(-8, 7) * scale).reshape(40, 96)
    assert torch.allclose(once, again, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_and_inputs_that_are_never_there_do_no_harm(symmetric: bool) -> None:
    weight, given = matrix(8, 64), inputs(64)
    weight[:, :BLOCK] = 0
    given[:, 40:] = 0
    rounded = Rounded(*round_matrix(weight, given.t() @ given, symmetric=symmetric)).weight()
    assert torch.isfinite(rounded).all()
    assert (rounded - weight).abs().max() < 1


def test_packed_words_hold_the_lowest_bits_first() -> None:
    levels = torch.arange(16).view(16, 1)
    words = pack_words(levels).to(torch.int64) & 0xFFFFFFFF
    assert [hex(int(word)) for word in words.flatten()] == ["0x76543210", "0xfedcba98"]


def test_tensors_have_the_layout_that_readers_expect() -> None:
    weight, given = matrix(16, 64), inputs(64)
    rounded = Rounded(*round_matrix(weight, given.t() @ given, symmetric=False))
    tensors = gptq_tensors("layer", rounded)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "layer.qweight": (8, 16), "layer.qzeros": (2, 2), "layer.scales": (2, 16), "layer.g_idx": (64,),
    }  # fmt: skip


class TestText:
    class Tokenizer:
        """One token a character."""

        def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": [ord(character) for character in text]}

    def test_short_texts_are_refused_with_the_number(self) -> None:
        with pytest.raises(BuildRefused, match="has 100 tokens"):
            tokens_of_text(self.Tokenizer(), "x" * 100)

    def test_long_texts_are_read_from_start_to_end(self) -> None:
        ids = tokens_of_text(self.Tokenizer(), "a" + "x" * 50_000 + "z")
        assert ids.shape[1] == LENGTH
        assert (int(ids[0, 0]), int(ids[-1, -1])) == (ord("a"), ord("z"))


def test_calibration_without_its_quantizer_is_refused() -> None:
    with pytest.raises(UsageError, match="--quantizer gptq-fast, gptq or auto-round and --kv int8"):
        check_plan(BuildPlan("source", "name", "1.0.0", quantizer="rtn", calibration="text.txt"))
    plan = BuildPlan("source", "name", "1.0.0", quantizer="rtn", calibration="text.txt", kv="int8")
    assert check_plan(plan).kv == "int8"


def test_what_was_kept_of_a_matrix_is_the_same_matrix() -> None:
    weight, given = matrix(16, 64), inputs(64)
    for symmetric in (True, False):
        once = Rounded(*round_matrix(weight.clone(), given.t() @ given, symmetric=symmetric))
        again = Rounded.from_kept(once.kept())
        assert torch.equal(again.weight(), once.weight())
        assert torch.equal(again.levels, once.levels)


def test_an_interrupted_calibration_goes_on_and_ends_in_the_same_bytes(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of the layers, of the tuning, and never: in this process, where loading costs nothing."""
    for module, name, value in ((samples, "SEQUENCES", 8), (samples, "LENGTH", 32), (tuning, "STEPS", 6)):
        monkeypatch.setattr(module, name, value)

    def run(name: str, stop_at: float) -> Path:
        class Stopping:
            def progress(self, done: float, total: float) -> None:
                if stop_at < done < total:
                    raise KeyboardInterrupt

        out = tmp_path / f"{name}-out"
        out.mkdir(exist_ok=True)
        work = CalibrationJob(str(tiny_checkpoint), "gptq", str(out), str(tmp_path / name), text=None)
        calibrate(work, cast(Reporter, Stopping()))
        return out

    for stop_at in (21.0, 90.0):
        with pytest.raises(KeyboardInterrupt):
            run("broken", stop_at)
    kept = {path.stem for path in (tmp_path / "broken").iterdir()}
    assert {"samples", "hidden", "layer-0", "layer-1", "head", "tuning"} <= kept
    assert digest_directory(run("broken", 100.0)) == digest_directory(run("whole", 100.0))


def test_auto_round_decides_the_layers(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file

    for module, name, value in (
        (samples, "SEQUENCES", 8), (samples, "LENGTH", 32), (tuning, "STEPS", 1), (auto_round, "STEPS", 3),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    (tmp_path / "out").mkdir()
    out, stages = str(tmp_path / "out"), str(tmp_path / "stages")
    job = CalibrationJob(str(tiny_checkpoint), "auto-round", out, stages, text=None)
    calibrate(job, Reporter(os.open(os.devnull, os.O_WRONLY)))
    assert inspect_checkpoint(tmp_path / "out").quantization == Quantization("gptq", 4, 32)
    kept = CalibrationCheckpoints(tmp_path / "stages").load("learned")
    source = load_file(tiny_checkpoint / "model.safetensors")
    assert len(kept) == 2 * 7
    for name, one in kept.items():
        rounded = Rounded.from_kept(one)
        step = rounded.grid.spread(rounded.grid.scale)
        assert ((rounded.weight() - source[f"{name}.weight"].float()).abs() <= 1.1 * step).float().mean() > 0.99


@pytest.mark.parametrize("family", ["phi-2", "phi-3.5-mini", "gemma-2", "gemma-3", "smollm-3"])
def test_families_of_every_build_are_calibrated(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With windows, biases, capped logits, tied and untied tables; a capped or shifted product is not tuned."""
    for module, name, value in ((samples, "SEQUENCES", 4), (samples, "LENGTH", 48), (tuning, "STEPS", 2)):
        monkeypatch.setattr(module, name, value)
    make_random(tmp_path / "source", FAMILY_CONFIGS[family]())
    (tmp_path / "out").mkdir()
    job = CalibrationJob(str(tmp_path / "source"), "gptq", str(tmp_path / "out"), str(tmp_path / "stages"), text=None)
    done = calibrate(job, Reporter(os.open(os.devnull, os.O_WRONLY)))
    assert done.tuned is (family not in ("gemma-2", "phi-2"))
    assert inspect_checkpoint(tmp_path / "out").quantization == Quantization("gptq", 4, 32)


def test_a_quantizer_whose_library_is_missing_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BuildRefused, match=r"edge-bundle\[calibration\]"):
        build_bundle(BuildPlan("nowhere", "tiny", "1.0.0", quantizer="auto-round"), tmp_path / "out", cache=tmp_path)
    require_library("gptq")


def test_a_calibrated_build_is_nearer_to_its_source(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    plain = manifest_of(tiny_bundle)
    plan = BuildPlan(str(tiny_checkpoint), "tiny", "1.0.0", quantizer="gptq")
    built = build_bundle(plan, tmp_path / "out", cache=tmp_path / "one").manifest
    assert built.model.quantizer == "gptq"
    assert built.quality["kl"] < 0.6 * plain.quality["kl"]
    sizes = [sum(entry.size for entry in made.files if entry.role == "model") for made in (built, plain)]
    assert sizes[0] < 1.04 * sizes[1]  # the graph file itself weighs in a model this small
