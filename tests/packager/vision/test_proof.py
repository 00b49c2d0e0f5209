"""Which type the encoder's weights get: the smallest that keeps the features of pictures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from packager.build.plan import BuildPlan
from packager.sources.vision_part import VisionPart
from packager.vision.jobs import LEAST_COSINE, SeenFeatures, VisionProof
from packager.vision.phi3v import PREFIX
from packager.vision.proof import build_vision, encoder_types
from packager.vision.proof_process import cosine
from tests.packager.vision.phi3v_checkpoint import make_phi3v


@pytest.mark.parametrize(
    ("precision", "ep", "types"),
    [
        ("fp32", "cpu", ["float"]),
        ("int8", "cpu", ["int8", "fp16", "float"]),
        ("int4", "cpu", ["int8", "fp16", "float"]),
        ("int4", "cuda", ["float"]),
    ],
)
def test_quantised_bundles_for_processors_try_small_types_first(precision: str, ep: str, types: list[str]) -> None:
    assert encoder_types(BuildPlan("source", "seeing", "1.0.0", precision=precision, ep=ep)) == types


def test_int8_weights_that_lose_the_features_are_not_taken(tmp_path: Path) -> None:
    """A weight that meets nothing but zeros, so large that nothing is left of its neighbours in a block."""
    from safetensors.numpy import load_file, save_file

    checkpoint = make_phi3v(tmp_path / "checkpoint")
    tensors = load_file(checkpoint / "model.safetensors")
    inner, outer = f"{PREFIX}img_projection.0", f"{PREFIX}img_projection.2"
    tensors[f"{inner}.weight"][5] = tensors[f"{inner}.bias"][5] = 0
    tensors[f"{outer}.weight"][:, 5] = 2000
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "genai_config.json").write_text('{"model": {}}')
    part = VisionPart(checkpoint, "Phi3VForCausalLM", 0)
    proof = build_vision(part, BuildPlan(str(checkpoint), "seeing", "1.0.0"), tmp_path, tmp_path / "log")
    assert proof.encoder == "fp16"
    assert proof.cosine > 0.9999
    assert proof.rejected.keys() == {"int8"}
    assert proof.rejected["int8"] < LEAST_COSINE
    assert "fp16" in str(proof)


def test_the_cosine_of_millions_of_features_with_themselves_is_one() -> None:
    features = np.random.default_rng(0).standard_normal((757, 3072)).astype(np.float32)
    assert cosine(features, features) == pytest.approx(1, abs=1e-12)
    assert cosine(features, -features) == pytest.approx(-1, abs=1e-12)
    assert not cosine(features, np.full_like(features, np.nan)) <= 1


@pytest.mark.parametrize("where", [0, 1])
def test_features_that_are_no_numbers_are_never_near_enough(where: int) -> None:
    cosines = [1.0, 1.0]
    cosines[where] = math.nan
    proof = VisionProof("fp16", [SeenFeatures("shapes", 757, 0.0, 1.0, cosine) for cosine in cosines])
    assert not proof.cosine >= LEAST_COSINE
    furthest = [SeenFeatures("shapes", 757, np.nan if n == where else 0.0, 1.0, 1.0) for n in range(2)]
    assert not VisionProof("float", furthest).furthest <= 1e-3
