"""What a model writes for its own calibration: in the precision that the processor is quick in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from packager.quantize.half_precision import has_products
from tests.packager.families import FAMILY_CONFIGS, make_random


class Words:
    """As much of a tokenizer as is asked of one without a chat template."""

    chat_template = None
    bos_token_id = 1

    def __len__(self) -> int:
        return 60


class Talks(Words):
    """One with a template of more tokens than other sequences begin with."""

    chat_template = "as below"

    def apply_chat_template(self, turns: list[dict[str, str]], **_: Any) -> str:
        return "a user says " + turns[0]["content"]

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [1, *range(40, 40 + len(text.split()))]}


@contextlib.contextmanager
def types_of(model: Any) -> Iterator[set[Any]]:
    """Types of the weights that layers compute with."""
    seen: set[Any] = set()
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda module, _: seen.add(next(module.parameters()).dtype))
    yield seen


@pytest.mark.parametrize("instructions", [True, False])
def test_a_processor_without_half_precision_computes_wide_batches_in_fp32(
    instructions: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from packager.quantize import samples

    monkeypatch.setattr(samples, "has_products", lambda dtype: dtype == "bfloat16" and instructions)
    monkeypatch.setattr(samples, "LENGTH", 4)
    half = make_random(tmp_path, FAMILY_CONFIGS["qwen-2"]()).to(torch.bfloat16)
    with types_of(half) as seen, torch.no_grad():
        written = samples.sample_self(half, Words(), 64)
    assert written.shape == (samples.SEQUENCES, 4)
    assert seen == {torch.bfloat16 if instructions else torch.float32}
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_few_sequences_at_once_are_not_worth_converting_layers_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from packager.quantize import samples

    monkeypatch.setattr(samples, "has_products", lambda dtype: False)
    monkeypatch.setattr(samples, "LENGTH", 4)
    half = make_random(tmp_path, FAMILY_CONFIGS["qwen-2"]()).to(torch.bfloat16)
    # As many as memory has room for: keys and values of 4 tokens in fp32.
    monkeypatch.setattr(samples, "CACHE_BYTES", 4 * samples._cached_bytes(half) * (samples.WIDE - 1))
    with types_of(half) as seen, torch.no_grad():
        samples.sample_self(half, Words(), 64)
    assert seen == {torch.bfloat16}


def test_conversations_are_written_together_with_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from packager.quantize import samples

    monkeypatch.setattr(samples, "SEQUENCES", 8)
    model = make_random(tmp_path, FAMILY_CONFIGS["qwen-2"]())
    widths: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda *given: widths.append(tuple(given[2]["input_ids"].shape)), with_kwargs=True)
    with torch.no_grad():
        written = samples.sample_self(model, Talks(), 64)
    assert widths == [(8, 2), *[(8, 1)] * 61]
    assert written[6:, :4].tolist() == [[1, 40, 41, 42]] * 2, "their openings are as the template has them"
    assert (written[:6, 0] == 1).all()
    assert len({tuple(row) for row in written[:, 4:].tolist()}) == 8
    assert ((written >= 0) & (written < model.config.vocab_size)).all()


@pytest.mark.parametrize(
    ("cpuinfo", "bfloat16", "float16"),
    [
        ("flags\t\t: fpu avx2 fma f16c", False, False),
        ("flags\t\t: fpu avx512_bf16 avx512_fp16 amx_bf16", True, True),
        ("flags\t\t: fpu avx512_bf16_of_another_kind", False, False),
        ("Features\t: fp asimd asimdhp asimddp", False, True),
        ("Features\t: fp asimd bf16 i8mm", True, False),
        ("", False, False),
    ],
)
def test_what_a_processor_says_it_multiplies(cpuinfo: str, bfloat16: bool, float16: bool) -> None:
    assert (has_products("bfloat16", cpuinfo), has_products("float16", cpuinfo)) == (bfloat16, float16)
