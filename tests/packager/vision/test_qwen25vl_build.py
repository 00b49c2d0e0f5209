"""Qwen2.5-VL built from a local checkpoint, and a device's engine that answers about pictures with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.engine.engine_selection import open_engine
from agent.engine.interface import Engine
from contract.bundle.manifest import parse_manifest
from packager.build.pipeline import build_bundle
from packager.build.plan import BuildPlan
from tests.packager.vision.asking import ask_about_colours
from tests.packager.vision.qwen25vl_checkpoint import make_qwen25vl


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The bundle, and transformers' own model of what it was built from."""
    root = tmp_path_factory.mktemp("qwen25vl")
    source = make_qwen25vl(root / "checkpoint")
    plan = BuildPlan(str(root / "checkpoint"), "seeing", "1.0.0", precision="fp32")
    return build_bundle(plan, root / "bundle", cache=root / "cache").directory, source


@pytest.fixture(scope="module")
def engine(made: tuple[Path, Any]) -> Iterator[Engine]:
    opened = open_engine(made[0], threads=2)
    yield opened
    opened.release()


def test_the_bundle_says_what_it_is(made: tuple[Path, Any]) -> None:
    bundle, source = made
    manifest = parse_manifest((bundle / "manifest.json").read_bytes())
    assert (manifest.model.architecture, manifest.model.family) == ("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl")
    assert manifest.model.capabilities == ["text", "vision", "chat"]
    assert manifest.model.parameters == sum(each.numel() for each in source.parameters())
    assert json.loads((bundle / "genai_config.json").read_text())["model"]["type"] == "qwen2_5_vl"
    assert manifest.quality["vision"]["cosine"] > 0.999
    assert manifest.quality["pictures"]["kl"] < 1e-3
    assert manifest.quality["pictures"]["tokens"] > 0


def test_a_device_answers_about_what_it_sees(engine: Engine) -> None:
    ask_about_colours(engine, least_tokens=4)
