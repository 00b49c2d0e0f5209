"""Rounding on a calibration text: the grid, the compensation, the packing, and that it all survives the builder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from contract.errors import BuildRefused, UsageError
from packager.build import build_bundle
from packager.calibration.calibrate import calibrate_checkpoint
from packager.calibration.compensation import round_matrix
from packager.calibration.export import gptq_tensors, pack_words
from packager.calibration.grid import BLOCK, choose_grid
from packager.calibration.layers import Rounded
from packager.calibration.samples import LENGTH, tokens_of_text
from packager.plan import BuildPlan, check_plan
from packager.sources.checkpoint import digest_directory, inspect_checkpoint
from tests.packager.test_build import manifest_of


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
    with pytest.raises(UsageError, match="--quantizer gptq"):
        check_plan(BuildPlan("source", "name", "1.0.0", calibration="text.txt"))


def test_a_calibrated_build_is_nearer_to_its_source_and_the_same_every_time(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    plain = manifest_of(tiny_bundle)
    plan = BuildPlan(str(tiny_checkpoint), "tiny", "1.0.0", quantizer="gptq")
    built = build_bundle(plan, tmp_path / "out", cache=tmp_path / "one").manifest
    assert built.model.quantizer == "gptq"
    assert built.quality["kl"] < 0.6 * plain.quality["kl"]
    sizes = [sum(entry.size for entry in made.files if entry.role == "model") for made in (built, plain)]
    assert sizes[0] < 1.04 * sizes[1]  # the graph file itself weighs in a model this small
    checkpoint = inspect_checkpoint(tiny_checkpoint)
    again, key = calibrate_checkpoint(checkpoint, None, tmp_path / "two", tmp_path / "log", lambda done, total: None)
    first = tmp_path / "one" / "calibrated" / key[:32]
    assert digest_directory(first) == digest_directory(again.path)
