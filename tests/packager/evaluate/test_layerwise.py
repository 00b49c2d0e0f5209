"""A model in half precision, run layer by layer in fp32, gives what it gives when it is converted as a whole."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from packager.evaluate.layerwise import in_fp32
from tests.packager.families import FAMILY_CONFIGS, make_random, sample_ids


@pytest.mark.parametrize("family", ["phi-3.5-mini", "phi-4-mini", "qwen-2", "granite", "nemotron", "lfm2"])
def test_the_numbers_are_those_of_the_whole_model(family: str, tmp_path: Path) -> None:
    import torch

    half = make_random(tmp_path, FAMILY_CONFIGS[family]()).to(torch.bfloat16)
    whole = copy.deepcopy(half).float()
    ids = torch.tensor(sample_ids(40)[None].astype("int64"))
    seen: list[int] = []
    with torch.no_grad():
        with in_fp32(half, lambda: seen.append(largest_in_fp32(half))):
            made = half(ids, use_cache=False).logits
        wanted = whole(ids, use_cache=False).logits
    assert made.dtype is torch.float32
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4)
    assert seen == [0] * half.config.num_hidden_layers
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_only_one_layer_is_converted_at_a_time(tmp_path: Path) -> None:
    import torch

    half = make_random(tmp_path, FAMILY_CONFIGS["qwen-2"]()).to(torch.bfloat16)
    whole = sum(parameter.numel() for parameter in half.parameters())
    seen: list[int] = []
    for module in half.modules():
        module.register_forward_pre_hook(lambda *_: seen.append(largest_in_fp32(half)))
    with torch.no_grad(), in_fp32(half):
        half(torch.tensor([[1, 2, 3]]), use_cache=False)
    assert 0 < max(seen) < whole / 2


def test_layers_are_converted_into_the_same_memory(tmp_path: Path) -> None:
    import torch

    half = make_random(tmp_path, FAMILY_CONFIGS["qwen-2"]()).to(torch.bfloat16)
    places: list[int] = []
    for layer in half.model.layers:
        layer.mlp.register_forward_pre_hook(lambda module, _: places.append(next(module.parameters()).data_ptr()))
    with torch.no_grad(), in_fp32(half):
        for _ in range(2):
            half(torch.tensor([[1, 2, 3]]), use_cache=False)
    assert len(places) == 2 * half.config.num_hidden_layers
    assert len(set(places)) == 1


def test_a_run_that_fails_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    import torch

    half = make_random(tmp_path, FAMILY_CONFIGS["qwen-2"]()).to(torch.bfloat16)
    ids = torch.tensor([[1, 2, 3]])

    def fail(*_: Any) -> None:
        raise ValueError("in the middle of a layer")

    with torch.no_grad(), in_fp32(half):
        wanted = half(ids, use_cache=False).logits
        broken = half.model.layers[0].mlp.register_forward_pre_hook(fail)
        with pytest.raises(ValueError, match="in the middle"):
            half(ids, use_cache=False)
        assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
        broken.remove()
        torch.testing.assert_close(half(ids, use_cache=False).logits, wanted, rtol=0, atol=0)


def largest_in_fp32(model: Any) -> int:
    """Parameters of ``model`` that are in fp32 now."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.element_size() == 4)
