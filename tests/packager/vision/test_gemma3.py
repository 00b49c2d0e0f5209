"""Gemma 3 built whole: features, embeddings, logits and pixels held against transformers, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.engine.image_decode import decode_image
from contract.errors import BuildRefused, UsageError
from packager.build.pipeline import dry_run
from packager.build.plan import BuildPlan
from packager.graph.facts import read_back
from packager.sources.headers import read_headers
from packager.vision.family import EncoderType, GraphTypes
from packager.vision.gemma3_family import Gemma3Vision
from packager.vision.picture_mask import show_pictures_whole
from tests.packager.families import cosine
from tests.packager.vision.built import Runtime, change_weights, drop, kinds, noise, resize, save_png
from tests.packager.vision.gemma3_checkpoint import SIDE, make_gemma3
from tests.packager.vision.test_phi3v import change_config, change_processor
from tests.seeing import png

BEGIN = "<start_of_image>"
LEVEL = 1 / 255 / 0.5
"""One step of a pixel of eight bits, once it is normalised."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    directory = tmp_path_factory.mktemp("gemma3") / "checkpoint"
    return directory, make_gemma3(directory)


@pytest.fixture(scope="module")
def checkpoint(made: tuple[Path, Any]) -> Path:
    return made[0]


@pytest.fixture(scope="module")
def source(made: tuple[Path, Any]) -> Any:
    return made[1]


@pytest.fixture(scope="module")
def folder(gemma3_folder: Path) -> Path:
    """Of the same seed."""
    return gemma3_folder


@pytest.fixture(scope="module")
def runtime(folder: Path) -> Runtime:
    return Runtime(folder)


def session(file: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def look(runtime: Runtime, *pictures: bytes) -> Any:
    """What the runtime makes of pictures as a device hands them over."""
    prompt = "".join(f"Picture {BEGIN}: " for _ in pictures)
    return runtime.look(f"{prompt}what is it?", *(decode_image(picture)[0] for picture in pictures))


def read(source: Any, tensors: Any) -> tuple[Any, dict[str, Any]]:
    """Tokens, and with what transformers reads them."""
    import torch

    ids = torch.from_numpy(tensors["input_ids"].as_numpy().astype(np.int64))
    if "pixel_values" not in tensors:
        return ids, {}
    pixels = torch.from_numpy(tensors["pixel_values"].as_numpy())
    return ids, {"pixel_values": pixels, "token_type_ids": (ids == source.config.image_token_id).long()}


def test_features_are_those_of_transformers(folder: Path, source: Any) -> None:
    import torch

    pixels = np.random.default_rng(5).standard_normal((3, 3, SIDE, SIDE)).astype(np.float32)
    encoder = session(folder / "vision.onnx")
    with torch.no_grad():
        wanted = source.model.get_image_features(torch.from_numpy(pixels)).pooler_output.numpy()
    found = encoder.run(None, {"pixel_values": pixels})[0]
    assert np.abs(found - wanted).max() <= 1e-4
    assert np.array_equal(encoder.run(None, {"pixel_values": pixels[1:2]})[0], found[1:2])
    assert wanted.std() > 0.5


@pytest.mark.parametrize(("kind", "least"), [("fp16", 0.99999), ("int8", 0.999)])
def test_weights_of_fewer_bits_make_nearly_the_same_features(
    kind: EncoderType, least: float, folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    family = Gemma3Vision()
    side = family.side(checkpoint)
    inputs = family.prepare(checkpoint, np.asarray(noise(side, side, 2))).inputs
    shutil.copyfile(folder / "model.onnx", tmp_path / "model.onnx")
    shutil.copyfile(folder / "genai_config.json", tmp_path / "genai_config.json")
    family.write(checkpoint, tmp_path, GraphTypes(kind, "int8"), lambda done, total: None)
    wanted = session(folder / "vision.onnx").run(None, inputs)[0]
    found = session(tmp_path / "vision.onnx").run(None, inputs)[0]
    assert least < cosine(found, wanted) <= 1 + 1e-9
    sizes = [(where / "vision.onnx.data").stat().st_size for where in (tmp_path, folder)]
    assert sizes[0] < 0.9 * sizes[1]


def test_merged_embeddings_are_those_of_transformers(folder: Path, source: Any) -> None:
    import torch

    token = source.config.image_token_id
    embedding = session(folder / "embedding.onnx")
    ids = np.full((1, 520), 7, np.int64)
    ids[0, 3:259] = ids[0, 261:517] = token
    features = np.random.default_rng(3).standard_normal((2, 256, 64)).astype(np.float32)
    with torch.no_grad():
        words = source.get_input_embeddings()(torch.from_numpy(ids))
        mask = (torch.from_numpy(ids) == token)[..., None].expand_as(words)
        wanted = words.masked_scatter(mask, torch.from_numpy(features)).numpy()
    found = embedding.run(None, {"input_ids": ids, "image_features": features})[0]
    assert np.abs(found - wanted).max() <= 1e-5
    # As it is after the prompt, and where there was no picture: none of another rank, and a token that may be drawn.
    none = np.zeros((0, 64), np.float32)
    alone = embedding.run(None, {"input_ids": ids[:, 2:4], "image_features": none})[0]
    assert np.abs(alone[0, 0] - wanted[0, 2]).max() <= 1e-5
    assert np.isfinite(alone).all()


def test_logits_are_those_of_transformers_which_shows_a_picture_to_all_of_its_tokens(
    runtime: Runtime, source: Any
) -> None:
    import torch

    pictures = {name: sent for name, (sent, _) in kinds().items()}
    several = [pictures["portrait"], pictures["very wide"], pictures["grey"]]
    for name, sent in {"none": [], "several": several, **{name: [sent] for name, sent in pictures.items()}}.items():
        tensors = look(runtime, *sent)
        ids, given = read(source, tensors)
        assert (ids == source.config.image_token_id).sum() == 256 * len(sent)
        with torch.no_grad():
            wanted = source(input_ids=ids, **given).logits[0].numpy()
        found = runtime.logits(tensors)
        assert np.abs(found - wanted[-len(found) :]).max() <= 1e-3, name
        assert wanted.std() > 0.1
    with torch.no_grad():
        backwards = source(input_ids=ids, pixel_values=given["pixel_values"]).logits[0].numpy()
    assert np.abs(backwards - wanted).max() > 0.1, "a mask that looks back only would not have been noticed"


def test_what_follows_is_what_transformers_goes_on_with(runtime: Runtime, source: Any) -> None:
    import torch

    tensors = look(runtime, png(200, 30, 30), save_png(noise(60, 90, 4)))
    ids, given = read(source, tensors)
    with torch.no_grad():
        wanted = source.generate(input_ids=ids, **given, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    generator = runtime.start(tensors)
    for token in wanted[0, ids.shape[1] :].tolist():
        logits = np.asarray(generator.get_output("logits"))[0, -1]
        assert logits.max() - logits[token] <= 1e-4
        generator.append_tokens(np.array([token], np.int32))


def test_words_that_are_read_later_see_what_came_before(runtime: Runtime, source: Any) -> None:
    """A second piece of the prompt, beyond the window of what it began with."""
    import torch

    tensors = look(runtime, save_png(noise(90, 150, 6)))
    ids, given = read(source, tensors)
    later = np.random.default_rng(2).integers(3, 380, 90, dtype=np.int32)
    generator = runtime.start(tensors, most=96)
    generator.append_tokens(later)
    found = np.asarray(generator.get_output("logits"))[0]
    more = torch.from_numpy(later.astype(np.int64))[None]
    given["token_type_ids"] = torch.nn.functional.pad(given["token_type_ids"], (0, len(later)))
    with torch.no_grad():
        wanted = source(input_ids=torch.cat([ids, more], 1), **given).logits[0].numpy()
    assert np.abs(found - wanted[-len(found) :]).max() <= 1e-3


def test_pixels_are_those_of_the_familys_processor(runtime: Runtime, checkpoint: Path) -> None:
    """But for one step of eight bits in a picture that gains in width and loses in height (docs/VISION.md)."""
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    processor = Gemma3ImageProcessorPil.from_pretrained(checkpoint)
    for name, (sent, shown) in kinds().items():
        wanted = np.asarray(processor(shown, return_tensors="np")["pixel_values"])
        found = look(runtime, sent)["pixel_values"].as_numpy()
        assert found.shape == wanted.shape == (1, 3, SIDE, SIDE), name
        most = 1.01 * LEVEL if shown.height > SIDE and shown.width < SIDE else 1e-6
        assert np.abs(found - wanted).max() <= most, name


def test_windows_are_read_from_the_mask(folder: Path, tmp_path: Path) -> None:
    _, facts = read_back(folder)
    assert facts.windows == (300, -1, 300)
    changed = tmp_path / "model.onnx"
    shutil.copyfile(folder / "model.onnx", changed)
    show_pictures_whole(changed, 5)
    assert changed.read_bytes() == (folder / "model.onnx").read_bytes()


def change_document(key: str, value: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        file = directory / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))

    return change


TOWER = "vision_tower.vision_model."
BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "no encoder": (
        change_weights(lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("vision")]),
        r"missing in the files: .*vision_tower\.vision_model\.",
    ),
    "a weight is missing": (drop(f"{TOWER}encoder.layers.1.mlp.fc2.bias"), r"1 missing .*layers\.1\.mlp\.fc2\.bias"),
    "no projection": (drop("multi_modal_projector.mm_input_projection_weight"), "1 missing .*mm_input_projection_w"),
    "another size": (
        resize("multi_modal_projector.mm_soft_emb_norm.weight", 32),
        r"mm_soft_emb_norm\.weight is \[32\] in the files and \[64\] in the model",
    ),
    "another resolution": (
        resize(f"{TOWER}embeddings.position_embedding.weight", 256, 64), r"\[256, 64\] in the files and \[1024, 64\]",
    ),
    "a weight too many": (resize(f"{TOWER}encoder.layers.2.mlp.fc1.bias", 96), "1 that the model has no place for"),
    "another encoder": (change_config("vision_config", "model_type", "clip"), "vision_config.model_type 'clip'"),
    "another activation": (change_config("vision_config", "hidden_act", "silu"), "vision_config.hidden_act 'silu'"),
    "another width": (change_config("vision_config", "hidden_size", 128), r"\[64\] in the files and \[128\]"),
    "no number": (change_config("vision_config", "hidden_size", "wide"), r"vision_config that cannot be read: .*"),
    "heads that do not share": (change_config("vision_config", "num_attention_heads", 3), "which 3 attention heads"),
    "other patches": (change_config("vision_config", "patch_size", 15), "448 pixels in patches of 15"),
    "other tokens": (change_document("mm_tokens_per_image", 64), "mm_tokens_per_image 64; the runtime makes 256"),
    "another token": (change_document("image_token_index", 5), "as token 393, and in config.json 5"),
    "no vision_config": (change_document("vision_config", None), "no 'vision_config'"),
    "a processor of another size": (
        change_processor("size", {"height": 896, "width": 896}), "the weights are for 448 x 448 pixels",
    ),
    "pan and scan": (change_processor("do_pan_and_scan", True), "do_pan_and_scan true"),
    "another filter": (change_processor("resample", 0), "resample 0"),
    "no colours": (change_processor("image_mean", [0.5]), r"image_mean \[0\.5\]"),
    "no deviation": (change_processor("image_std", [0.5, 0.5, 0]), r"image_std \[0\.5, 0\.5, 0\]"),
    "another scale": (change_processor("rescale_factor", 1.0), "rescale_factor 1.0"),
    "no resizing": (change_processor("do_resize", False), "do_resize False"),
    "no processor": (
        lambda directory: (directory / "preprocessor_config.json").unlink(), "has no preprocessor_config.json",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_before_weights_are_copied(name: str, checkpoint: Path, tmp_path: Path) -> None:
    change, sentence = BAD[name]
    shutil.copytree(checkpoint, tmp_path / "checkpoint")
    change(tmp_path / "checkpoint")
    plan = BuildPlan(str(tmp_path / "checkpoint"), "seeing", "1.0.0", precision="fp32")
    with pytest.raises(BuildRefused, match=sentence) as refused:
        dry_run(plan, tmp_path / "bundle", cache=tmp_path / "cache")
    assert "\n" not in refused.value.message
    assert not (tmp_path / "cache" / "checkpoints").exists()


def test_other_hardware_than_cpus_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    plan = BuildPlan(str(checkpoint), "seeing", "1.0.0", ep="cuda")
    with pytest.raises(UsageError, match="built for CPUs only, not for cuda"):
        dry_run(plan, tmp_path / "bundle", cache=tmp_path / "cache")
    assert not (tmp_path / "cache" / "checkpoints").exists()


def test_what_newer_versions_of_transformers_save_is_read_as_well(checkpoint: Path, tmp_path: Path) -> None:
    """Other names of weights, and the processor's words within another file."""
    shutil.copytree(checkpoint, tmp_path / "checkpoint")
    old = tmp_path / "checkpoint" / "preprocessor_config.json"
    newer = tmp_path / "checkpoint" / "processor_config.json"
    newer.write_text(json.dumps({"image_processor": json.loads(old.read_text()), "image_seq_length": 256}))
    old.unlink()
    change_weights(
        lambda tensors: [
            tensors.update({name.replace("vision_model.", ""): tensors.pop(name)})
            for name in list(tensors)
            if name.startswith(TOWER)
        ]
    )(tmp_path / "checkpoint")
    family = Gemma3Vision()
    family.check(tmp_path / "checkpoint", read_headers(tmp_path / "checkpoint").tensors)
    change = json.loads(newer.read_text())
    change["image_processor"]["size"] = {"height": 224, "width": 224}
    newer.write_text(json.dumps(change))
    with pytest.raises(BuildRefused, match=r"processor_config\.json has size .*448 x 448"):
        family.check(tmp_path / "checkpoint", read_headers(tmp_path / "checkpoint").tensors)
