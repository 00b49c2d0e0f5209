"""A Phi-3.5-vision built whole: its bundle, its logits about pictures, its pixels, and a device's engine on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from agent.engine.engine_selection import open_engine
from agent.engine.image_decode import decode_image
from agent.engine.interface import Engine, Generation
from contract.bundle.canary import PICTURE
from contract.bundle.manifest import Manifest, encode_manifest, parse_manifest
from contract.errors import BundleRefused
from contract.reasons import Reason
from packager.build.cache import list_cache
from packager.build.pipeline import build_bundle
from packager.build.plan import BuildPlan
from packager.build.progress import SilentProgress
from packager.evaluate.verify import verify_bundle
from packager.sources.opening import SourceOptions, convert_directory, open_source
from packager.subprocess_job import Task, run_child
from packager.vision import looking
from packager.vision.jobs import COMPARE
from packager.vision.phi3v import CROP, DEVIATION, MEAN, picture_tokens
from packager.vision.pictures import canary_picture
from tests.agent.engine.driving import run
from tests.packager.vision.built import kinds, noise, save_png
from tests.packager.vision.phi3v_checkpoint import make_phi3v, reference_features
from tests.seeing import png

ROOT = Path(__file__).resolve().parents[3]

LEVEL = 1 / 255 / min(DEVIATION)
"""One step of a pixel of eight bits, once it is normalised."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phi3v(tmp_path_factory.mktemp("phi3v") / "checkpoint")


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("built")
    plan = BuildPlan(str(checkpoint), "phi-3.5-vision", "1.0.0", precision="fp32")
    return build_bundle(plan, root / "bundle", cache=root / "cache").directory


@pytest.fixture(scope="module")
def loaded(bundle: Path) -> tuple[Any, Any]:
    import onnxruntime_genai as og

    model = og.Model(str(bundle))
    return model, model.create_multimodal_processor()


def look(loaded: tuple[Any, Any], *pictures: bytes) -> Any:
    """The runtime's own processor on pictures as a device hands them over."""
    import onnxruntime_genai as og

    drawn = [decode_image(picture)[0] for picture in pictures]
    prompt = "".join(f"Picture <|image_{number}|>: " for number in range(1, len(drawn) + 1))
    return loaded[1](f"{prompt}what is it?", images=og.Images.open_bytes(*drawn))


def test_the_bundle_says_what_it_is(bundle: Path, checkpoint: Path) -> None:
    from safetensors.numpy import load_file

    manifest: Manifest = parse_manifest((bundle / "manifest.json").read_bytes())
    assert (manifest.model.architecture, manifest.model.family) == ("Phi3VForCausalLM", "phi3v")
    assert manifest.model.capabilities == ["text", "vision", "chat"]
    assert manifest.model.parameters == sum(each.size for each in load_file(checkpoint / "model.safetensors").values())
    seen = manifest.quality["vision"]
    assert [picture["name"] for picture in seen["features"]] == ["shapes", "stripes", "noise"]
    for picture in seen["features"]:
        assert picture["furthest"] <= 1e-3 * picture["spread"]
    assert (seen["encoder"], seen["cosine"] > 0.999999) == ("float", True)
    assert manifest.quality["pictures"]["kl"] < 1e-3
    assert manifest.quality["pictures"]["tokens"] > 24
    parts = {"model.onnx": 0, "vision.onnx": 0, "embedding.onnx": 0}
    for entry in manifest.files:
        for name in parts:
            parts[name] += entry.size if entry.path.startswith(name) else 0
    assert seen["bytes"] == parts
    assert min(parts.values()) > 0


def test_logits_about_pictures_are_those_of_transformers(
    loaded: tuple[Any, Any], checkpoint: Path, tmp_path: Path
) -> None:
    import onnxruntime_genai as og
    import torch
    from transformers import AutoModelForCausalLM

    text = convert_directory(checkpoint, "0" * 64, tmp_path, tmp_path / "log", SourceOptions(text_only=True))
    model = AutoModelForCausalLM.from_pretrained(text.path, dtype=torch.float32).eval()
    for pictures in ([save_png(noise(200, 200))], [save_png(noise(20, 640, 1)), save_png(noise(400, 90, 2))]):
        tensors = look(loaded, *pictures)
        ids = tensors["input_ids"].as_numpy()[0].astype(np.int64)
        pixels, sizes = tensors["pixel_values"].as_numpy(), tensors["image_sizes"].as_numpy()
        assert (ids < 0).sum() == sum(picture_tokens(*size) for size in sizes.tolist())
        words = model.get_input_embeddings()(torch.from_numpy(ids.clip(0)))
        words[torch.from_numpy(ids < 0)] = torch.from_numpy(reference_features(checkpoint, pixels, sizes))
        with torch.no_grad():
            wanted = model(inputs_embeds=words[None]).logits[0].numpy()
        params = og.GeneratorParams(loaded[0])
        params.set_search_options(max_length=len(ids) + 4, do_sample=False)
        generator = og.Generator(loaded[0], params)
        generator.set_inputs(tensors)
        found = np.asarray(generator.get_output("logits"))[0]
        assert np.abs(found - wanted[-len(found) :]).max() <= 1e-3
        assert wanted.std() > 0.1


def test_no_picture_becomes_more_tokens_than_is_documented(loaded: tuple[Any, Any]) -> None:
    """The longest that a device takes, at the most crops that the runtime makes."""
    counts = {size: (look(loaded, save_png(noise(*size)))["input_ids"].as_numpy() < 0).sum()
              for size in ((32, 1), (1, 32), (160, 10), (300, 20))}  # fmt: skip
    shapes = [(rows, columns) for rows in range(1, 17) for columns in range(1, 17) if rows * columns <= 16]
    most = max(picture_tokens(rows * CROP, columns * CROP) for rows, columns in shapes)
    assert counts[32, 1] == counts[160, 10] == most
    assert max(counts.values()) == most
    assert f"{most:,} at the most (16 times as high as wide or more)" in (ROOT / "docs" / "VISION.md").read_text()


def published_pixels(picture: Any) -> tuple[Any, Any]:
    """What the family's own processor makes of an upright RGB picture: its crops, and the whole before it is shrunk."""
    from PIL import Image

    turned = picture.width < picture.height
    wide = picture.transpose(Image.Transpose.TRANSPOSE) if turned else picture
    ratio, scale = wide.width / wide.height, 1
    while scale * np.ceil(scale / ratio) <= 16:
        scale += 1
    width = (scale - 1) * 336
    drawn = wide.resize((width, int(width / ratio)), Image.Resampling.BILINEAR)
    height = int(np.ceil(drawn.height / 336) * 336)
    plane = Image.new("RGB", (width, height), "white")
    plane.paste(drawn, (0, (height - drawn.height) // 2))
    upright = plane.transpose(Image.Transpose.TRANSPOSE) if turned else plane
    values = (np.asarray(upright, np.float32) / 255 - np.float32(MEAN)) / np.float32(DEVIATION)
    whole = values.transpose(2, 0, 1)
    rows, columns = whole.shape[1] // 336, whole.shape[2] // 336
    crops = whole.reshape(3, rows, 336, columns, 336).transpose(1, 3, 0, 2, 4).reshape(-1, 3, 336, 336)
    return crops, whole


def shrink(whole: Any, *, antialias: bool) -> Any:
    import torch

    made = torch.nn.functional.interpolate(
        torch.from_numpy(whole)[None], (336, 336), mode="bicubic", antialias=antialias
    )
    return made[0].numpy()


def test_pixels_are_those_of_the_familys_processor(loaded: tuple[Any, Any]) -> None:
    """But for the picture as a whole, which the runtime smooths before it shrinks it (docs/VISION.md)."""
    for name, (sent, shown) in kinds().items():
        crops, whole = published_pixels(shown)
        tensors = look(loaded, sent)
        [pixels], [size] = tensors["pixel_values"].as_numpy(), tensors["image_sizes"].as_numpy()
        assert tuple(size) == whole.shape[1:], name
        found = pixels[1 : 1 + len(crops)]
        high = whole.shape[1] > whole.shape[2]  # which the family's processor turns, so that it rounds in another order
        assert np.abs(found - crops).max() <= (1.01 * LEVEL if high else 1e-5), name
        assert not pixels[1 + len(crops) :].any(), name
        assert np.abs(pixels[0] - shrink(whole, antialias=True)).max() <= (1.01 * LEVEL if high else 1e-4), name
        assert np.abs(pixels[0] - shrink(whole, antialias=False)).max() > 1e-3, name


@pytest.fixture(scope="module")
def engine(bundle: Path) -> Iterator[Engine]:
    opened = open_engine(bundle, threads=2)
    yield opened
    opened.release()


def test_a_device_answers_about_what_it_sees(engine: Engine) -> None:
    assert "vision" in engine.facts.capabilities
    said = {}
    for name, pictures in {
        "red": [png(255, 0, 0)],
        "blue": [png(0, 0, 255)],
        "both": [png(255, 0, 0), png(0, 0, 255)],
    }.items():
        content: list[str | None] = [*([None] * len(pictures)), "What is on the shelf?"]
        asked = Generation(
            1, "anna", messages=[{"role": "user", "content": content}], pictures=pictures, max_tokens=3, min_tokens=3,
            logprobs=True,
        )  # fmt: skip
        outcome = run(engine, asked)[1]
        assert outcome.finish is not None, outcome.reject
        assert outcome.finish.prompt_tokens > 2509 * len(pictures)
        said[name] = tuple(entry["logprob"] for event in outcome.tokens for entry in event.logprobs or ())
    assert len(set(said.values())) == 3, said


def test_a_device_scores_the_canary_about_a_picture_as_the_build_did(engine: Engine, bundle: Path) -> None:
    canary = parse_manifest((bundle / "manifest.json").read_bytes()).picture_canary
    assert canary is not None
    assert (canary.picture, canary.prompt.count(PICTURE)) == (canary_picture(), 1)
    found = engine.score(canary.prompt, canary.expected_text, picture=canary.picture)
    assert found.finite
    assert abs(found.mean_nll - canary.mean_nll) < 1e-3
    for picture in (png(0, 0, 0), None):
        other = engine.score(canary.prompt, canary.expected_text, picture=picture)
        assert abs(other.mean_nll - canary.mean_nll) > canary.tolerance


def test_check_shows_the_picture_again(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    checked = verify_bundle(copy, tmp_path / "log", SilentProgress()).checked
    assert checked.seen is not None
    stored = parse_manifest((copy / "manifest.json").read_bytes())
    assert stored.picture_canary is not None
    misled = replace(stored.picture_canary, mean_nll=stored.picture_canary.mean_nll + 0.5)
    (copy / "manifest.json").write_bytes(encode_manifest(replace(stored, picture_canary=misled)))
    with pytest.raises(BundleRefused, match="the canary about a picture scores") as refused:
        verify_bundle(copy, tmp_path / "log", SilentProgress())
    assert refused.value.reason == Reason.CANARY_DRIFT


def test_the_source_is_asked_about_pictures_once_however_often_its_graph_is_built(
    checkpoint: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, log = bundle.parent / "cache", tmp_path / "log"
    [kept] = [entry for entry in list_cache(cache) if entry.kind == "picture-views"]
    ran: list[str] = []

    def run(task: Task[Any, Any], *rest: Any, **named: Any) -> Any:
        ran.append(task.module)
        return run_child(task, *rest, **named)

    monkeypatch.setattr(looking, "run_child", run)
    source = open_source(str(checkpoint), cache, log, lambda *_: None)
    assert source.vision is not None
    seeing = looking.SeeingSource(source.vision, source.checkpoint, source.digest)
    answers = looking.ask_about_pictures(seeing, bundle, cache=cache, log=log)
    assert ran == [COMPARE.module]
    assert [case.picture for case in answers.cases] == [picture for picture, _ in looking.CASES]
    assert [entry.name for entry in list_cache(cache) if entry.kind == "picture-views"] == [kept.name]


def test_text_alone_is_still_to_be_had(checkpoint: Path, tmp_path: Path) -> None:
    text = convert_directory(checkpoint, "0" * 64, tmp_path, tmp_path / "log", SourceOptions(text_only=True))
    config = json.loads((text.path / "config.json").read_text())
    assert (config["model_type"], config["rope_scaling"]["type"]) == ("phi3", "longrope")
    assert "_attn_implementation" not in config
