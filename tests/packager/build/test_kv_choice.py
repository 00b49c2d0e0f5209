"""Which type a key-value cache gets: by what it takes, and by what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from contract.errors import BuildRefused
from packager.build import kv_choice
from packager.build.kv_choice import MAX_MORE_KL, choose_kv, is_large, settle_kv
from packager.build.pipeline import build_bundle
from packager.build.plan import BuildPlan, kv_type
from packager.evaluate.assessment import Assessment
from packager.sources.checkpoint import Checkpoint, inspect_checkpoint
from packager.sources.shape import read_shape
from tests.random_checkpoint import config_of, make_random_checkpoint, small_config


def checkpoint(tmp_path: Path, **config: Any) -> Checkpoint:
    """A small one whose configuration says more than its weights do."""
    found = inspect_checkpoint(make_random_checkpoint(tmp_path / "source", small_config("phi-3.5-mini")))
    return msgspec.structs.replace(found, config={**found.config, **config})


def heads(name: str) -> dict[str, Any]:
    whole = config_of(name)
    return {
        key: whole.get(key)
        for key in ("num_attention_heads", "num_key_value_heads", "num_hidden_layers", "hidden_size", "head_dim")
    }


@pytest.mark.parametrize(
    ("name", "large"), [("phi-3.5-mini", True), ("llama-3.2-1b", False), ("mistral-7b", False), ("qwen-0.5b", False)]
)
def test_a_cache_is_measured_where_heads_share_nothing_and_it_is_large(tmp_path: Path, name: str, large: bool) -> None:
    found = checkpoint(tmp_path, **heads(name))
    shape = read_shape(found)
    assert is_large(found, shape) is large
    plan = BuildPlan("source", "x", "1.0.0")
    assert settle_kv(plan, found, shape).kv == ("auto" if large else "float")
    for asked in ("float", "int8"):
        assert settle_kv(msgspec.structs.replace(plan, kv=asked), found, shape).kv == asked
    for other in ({"ep": "cuda"}, {"precision": "fp32"}):
        assert settle_kv(msgspec.structs.replace(plan, **other), found, shape).kv == "float"


def test_what_is_small_stays_as_it_is(tmp_path: Path) -> None:
    found = checkpoint(tmp_path)
    assert not is_large(found, read_shape(found))
    assert kv_type(settle_kv(BuildPlan("source", "x", "1.0.0"), found, read_shape(found))) == "fp32"


def assessment(**summary: Any) -> Assessment:
    return Assessment(checked=None, summary=summary, details={})  # type: ignore[arg-type]


def test_int8_is_taken_within_the_bound_and_only_if_it_was_measured() -> None:
    plain = assessment(kl=0.15)
    near = choose_kv(plain, assessment(kl=0.15 + MAX_MORE_KL / 2))
    assert (near.kind, near.kl_float, near.bound) == ("int8", 0.15, MAX_MORE_KL)
    assert near.why == "an INT8 cache adds 0.0100 nats a token to 0.1500, and 0.02 are allowed"
    assert choose_kv(plain, assessment(kl=0.15 + 2 * MAX_MORE_KL)).kind == "float"
    assert choose_kv(plain, assessment(kl=float("nan"))).kind == "float"
    assert choose_kv(assessment(), assessment()).kind == "float"
    refused = choose_kv(plain, BuildRefused("it is beyond the limits"))
    assert (refused.kind, refused.why) == ("float", "with an INT8 cache it is refused: it is beyond the limits")


@pytest.mark.parametrize("bound", [1000.0, -1000.0])
def test_both_are_built_and_the_one_that_holds_is_the_bundle(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: float
) -> None:
    monkeypatch.setattr(kv_choice, "is_large", lambda checkpoint, shape: True)
    monkeypatch.setattr(kv_choice, "MAX_MORE_KL", bound)
    plan = BuildPlan(str(tiny_checkpoint), "tiny", "1.0.0", quantizer="rtn")
    built = build_bundle(plan, tmp_path / "out", cache=tmp_path / "cache")
    quality = built.manifest.quality
    assert quality["kv"] == ("int8" if bound > 0 else "fp32")
    assert quality["kv_choice"]["kind"] == ("int8" if bound > 0 else "float")
    assert quality["kv_choice"]["kl_int8"] is not None
    assert quality["kl"] == quality["kv_choice"]["kl_int8" if bound > 0 else "kl_float"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert list((tmp_path / "cache" / "graphs").glob("[!.]*")) == []
