"""The memory that a build promises, beside what builds of real shapes took."""

from __future__ import annotations

import pytest

from packager.build.estimate import estimate_build
from packager.build.plan import BuildPlan
from packager.sources.shape import ModelShape

GIB = 2**30
LAYER, TABLE = 113_252_352, 98_500_608


def phi(layers: int) -> ModelShape:
    """Phi-3.5-mini with so many of its 32 layers, as its headers tell."""
    return ModelShape(
        parameters=layers * LAYER + 2 * TABLE,
        layer=LAYER,
        matrix=TABLE,
        table=TABLE,
        vocabulary=32064,
        hidden=3072,
        kv_token_bytes=layers * 24576,
        rope_bytes=(131072 + 4096) * 96 * 4,
        switches_at=4096,
        layer_kv_bytes=24576,
        family="phi3",
    )


@pytest.mark.parametrize(("layers", "measured", "most"), [(8, 2.04, 1.6), (32, 4.95, 1.2)])
def test_phi_is_promised_what_it_takes(layers: int, measured: float, most: float) -> None:
    plan = BuildPlan("source", "phi", "1.0.0", quantizer="rtn", kv="int8")
    promised = estimate_build(plan, phi(layers)).memory_bytes / GIB
    assert measured <= promised <= most * measured
