"""Qwen2.5-VL: features, embeddings, logits and pixels held against transformers, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.engine.image_decode import decode_image
from contract.errors import BuildRefused
from packager.build.pipeline import dry_run
from packager.build.plan import BuildPlan
from packager.vision.family import EncoderType, GraphTypes
from packager.vision.phi3v import DEVIATION
from packager.vision.qwen25vl_family import Qwen25Vision
from tests.packager.families import cosine
from tests.packager.vision.built import Runtime, change_weights, drop, kinds, noise, resize, save_png
from tests.packager.vision.qwen25vl_checkpoint import make_qwen25vl
from tests.packager.vision.test_gemma3 import change_document, session
from tests.packager.vision.test_phi3v import change_config, change_processor
from tests.seeing import png

PLACE = "<|vision_start|><|image_pad|><|vision_end|>"
LEVEL = 1 / 255 / min(DEVIATION)
"""One step of a pixel of eight bits, once it is normalised."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    directory = tmp_path_factory.mktemp("qwen25vl") / "checkpoint"
    return directory, make_qwen25vl(directory)


@pytest.fixture(scope="module")
def checkpoint(made: tuple[Path, Any]) -> Path:
    return made[0]


@pytest.fixture(scope="module")
def source(made: tuple[Path, Any]) -> Any:
    return made[1]


@pytest.fixture(scope="module")
def folder(qwen25vl_folder: Path) -> Path:
    """Of the same seed."""
    return qwen25vl_folder


@pytest.fixture(scope="module")
def runtime(folder: Path) -> Runtime:
    return Runtime(folder)


def look(runtime: Runtime, *pictures: bytes) -> Any:
    """What the runtime makes of pictures as a device hands them over."""
    prompt = "".join(f"Picture {PLACE}: " for _ in pictures)
    return runtime.look(f"{prompt}what is it?", *(decode_image(picture)[0] for picture in pictures))


def own_patches(tensors: Any) -> tuple[Any, Any]:
    """The grids, and the patches without those that fill up pictures that have fewer than others."""
    grids, patches = tensors["image_grid_thw"].as_numpy(), tensors["pixel_values"].as_numpy()
    each = len(patches) // len(grids)
    rows = [patches[number * each :][: int(grid.prod())] for number, grid in enumerate(grids)]
    return grids, np.concatenate(rows)


def read(source: Any, tensors: Any) -> tuple[Any, dict[str, Any]]:
    """Tokens, and with what transformers reads them."""
    import torch

    ids = torch.from_numpy(tensors["input_ids"].as_numpy().astype(np.int64))
    if "pixel_values" not in tensors:
        return ids, {}
    grids, patches = (torch.from_numpy(each) for each in own_patches(tensors))
    return ids, {
        "pixel_values": patches,
        "image_grid_thw": grids,
        "mm_token_type_ids": (ids == source.config.image_token_id).int(),
    }


@pytest.mark.parametrize(
    "grids",
    [
        [[1, 4, 4]], [[1, 20, 12]], [[1, 2, 34]], [[1, 34, 2]], [[1, 16, 16], [1, 16, 16]],
        [[1, 20, 12], [1, 6, 10], [1, 2, 2]],
    ],
    ids=["small", "landscape", "very-wide", "very-high", "two-alike", "several"],
)  # fmt: skip
def test_features_are_those_of_transformers(grids: list[list[int]], folder: Path, source: Any) -> None:
    """Windows that are whole, cut off, and not there; pictures filled up to the largest."""
    import torch

    counts = [int(np.prod(grid)) for grid in grids]
    random = np.random.default_rng(5)
    pictures = [random.standard_normal((count, 1176)).astype(np.float32) for count in counts]
    filled = np.full((len(grids), max(counts), 1176), 7, np.float32)
    for row, picture in zip(filled, pictures, strict=True):
        row[: len(picture)] = picture
    with torch.no_grad():
        patches = torch.from_numpy(np.concatenate(pictures))
        wanted = source.model.visual(patches, grid_thw=torch.tensor(grids)).pooler_output.numpy()
    given = {"pixel_values": filled.reshape(-1, 1176), "image_grid_thw": np.array(grids)}
    found = session(folder / "vision.onnx").run(None, given)[0]
    assert np.abs(found - wanted).max() <= 1e-4
    assert wanted.std() > 0.5


@pytest.mark.parametrize(("kind", "least"), [("fp16", 0.99999), ("int8", 0.999)])
def test_weights_of_fewer_bits_make_nearly_the_same_features(
    kind: EncoderType, least: float, folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    family = Qwen25Vision()
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
    ids = np.array([[7, token, token, 9, token, 11]])
    features = np.random.default_rng(3).standard_normal((3, 64)).astype(np.float32)
    with torch.no_grad():
        words = source.get_input_embeddings()(torch.from_numpy(ids))
        mask = (torch.from_numpy(ids) == token)[..., None].expand_as(words)
        wanted = words.masked_scatter(mask, torch.from_numpy(features)).numpy()
    found = embedding.run(None, {"input_ids": ids, "image_features": features})[0]
    assert np.array_equal(found, wanted)
    drawn = embedding.run(None, {"input_ids": ids[:, :2], "image_features": features[:0]})[0]
    assert np.array_equal(drawn[0, 0], wanted[0, 0])
    assert np.isfinite(drawn).all()


def test_logits_are_those_of_transformers(runtime: Runtime, source: Any) -> None:
    import torch

    pictures = {name: sent for name, (sent, _) in kinds().items()}
    several = [pictures["portrait"], pictures["very wide"], pictures["grey"]]
    alike = [pictures["landscape"]] * 2
    cases = {"none": [], "several": several, "alike": alike, **{name: [sent] for name, sent in pictures.items()}}
    for name, sent in cases.items():
        tensors = look(runtime, *sent)
        ids, given = read(source, tensors)
        with torch.no_grad():
            wanted = source(input_ids=ids, **given).logits[0].numpy()
        found = runtime.logits(tensors)
        assert np.abs(found - wanted[-len(found) :]).max() <= 1e-3, name
        assert wanted.std() > 0.1


def test_the_end_of_a_turn_moves_nothing(runtime: Runtime, source: Any) -> None:
    """The runtime leaves padding out when it numbers places, and that was the end of a turn."""
    import torch

    picture = decode_image(save_png(noise(90, 150, 6)))[0]
    tensors = runtime.look(f"<|im_start|>user\n{PLACE}<|im_end|>\n<|im_start|>assistant\nIt is", picture)
    ids, given = read(source, tensors)
    assert (ids == source.config.text_config.eos_token_id).sum() == 1
    with torch.no_grad():
        wanted = source(input_ids=ids, **given).logits[0].numpy()
    found = runtime.logits(tensors)
    assert np.abs(found - wanted[-len(found) :]).max() <= 1e-3


def test_what_follows_is_what_transformers_goes_on_with(runtime: Runtime, source: Any) -> None:
    """Where words behind pictures stand, which is not how many tokens were before."""
    import torch

    tensors = look(runtime, png(200, 30, 30), save_png(noise(60, 190, 4)))
    ids, given = read(source, tensors)
    with torch.no_grad():
        wanted = source.generate(input_ids=ids, **given, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    generator = runtime.start(tensors)
    for token in wanted[0, ids.shape[1] :].tolist():
        logits = np.asarray(generator.get_output("logits"))[0, -1]
        assert logits.max() - logits[token] <= 1e-4
        generator.append_tokens(np.array([token], np.int32))


def test_words_that_are_read_later_see_what_came_before(runtime: Runtime, source: Any) -> None:
    """A second piece of the prompt: it goes on where the picture ended, not where its tokens did."""
    import torch

    tensors = look(runtime, save_png(noise(90, 150, 6)))
    ids, given = read(source, tensors)
    later = np.random.default_rng(2).integers(3, 380, 90, dtype=np.int32)
    generator = runtime.start(tensors, most=96)
    generator.append_tokens(later)
    found = np.asarray(generator.get_output("logits"))[0]
    more = torch.from_numpy(later.astype(np.int64))[None]
    given["mm_token_type_ids"] = torch.nn.functional.pad(given["mm_token_type_ids"], (0, len(later)))
    with torch.no_grad():
        wanted = source(input_ids=torch.cat([ids, more], 1), **given).logits[0].numpy()
    assert np.abs(found - wanted[-len(found) :]).max() <= 1e-3


def test_pixels_are_those_of_the_familys_processor(runtime: Runtime, checkpoint: Path) -> None:
    """But for one step of eight bits in a picture that gains in width and loses in height (docs/VISION.md)."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil.from_pretrained(checkpoint)
    for name, (sent, shown) in kinds().items():
        wanted = processor(shown, return_tensors="np")
        grids, patches = own_patches(look(runtime, sent))
        assert np.array_equal(grids, wanted["image_grid_thw"]), name
        high, wide = (14 * int(side) for side in grids[0, 1:])
        most = 1.01 * LEVEL if high < shown.height and wide > shown.width else 1e-6
        assert np.abs(patches - wanted["pixel_values"]).max() <= most, name


def test_a_build_prepares_its_own_pictures_as_the_runtime_does(runtime: Runtime, checkpoint: Path) -> None:
    family = Qwen25Vision()
    side = family.side(checkpoint)
    picture = noise(side, side, 9)
    prepared = family.prepare(checkpoint, np.asarray(picture))
    tensors = runtime.look(PLACE, save_png(picture))
    assert prepared.ids == tensors["input_ids"].as_numpy()[0].tolist()
    assert np.array_equal(prepared.inputs["image_grid_thw"], tensors["image_grid_thw"].as_numpy())
    assert np.abs(prepared.inputs["pixel_values"] - tensors["pixel_values"].as_numpy()).max() <= 1e-5


def test_sizes_at_the_edge_of_a_token_differ_from_python(runtime: Runtime, checkpoint: Path) -> None:
    """The runtime rounds halves up where Python rounds to even, and drops parts of a pixel of what it enlarges."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    for height, width, wanted, built in ((70, 140, (56, 140), (84, 140)), (40, 40, (56, 56), (56, 56))):
        assert smart_resize(height, width, 28, 3136, 200 * 784) == wanted
        grid = look(runtime, save_png(noise(height, width)))["image_grid_thw"].as_numpy()[0]
        assert tuple(14 * grid[1:]) == built


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "no encoder": (
        change_weights(lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("visual")]),
        r"missing in the files: .*visual\.",
    ),
    "a weight is missing": (drop("visual.blocks.1.mlp.up_proj.bias"), r"1 missing .*blocks\.1\.mlp\.up_proj\.bias"),
    "no projection": (drop("visual.merger.mlp.2.weight"), r"1 missing .*merger\.mlp\.2\.weight"),
    "another size": (
        resize("visual.merger.ln_q.weight", 32), r"ln_q\.weight is \[32\] in the files and \[64\] in the model",
    ),
    "a weight too many": (resize("visual.blocks.3.norm1.weight", 64), "1 that the model has no place for"),
    "another activation": (change_config("vision_config", "hidden_act", "gelu"), "vision_config.hidden_act 'gelu'"),
    "another merge": (change_config("vision_config", "spatial_merge_size", 4), "vision_config.spatial_merge_size 4"),
    "another width": (change_config("vision_config", "hidden_size", 128), r"\[64\] in the files and \[128\]"),
    "no number": (change_config("vision_config", "depth", "deep"), r"vision_config that cannot be read: .*depth"),
    "heads that do not share": (change_config("vision_config", "num_heads", 5), "which 5 attention heads"),
    "no window": (change_config("vision_config", "window_size", 14), "windows of 14 pixels"),
    "another text model": (
        change_config("vision_config", "out_hidden_size", 128), "out_hidden_size 128, and the text model's hidden_size",
    ),
    "another token": (change_document("image_token_id", 5), "as token 395, and in config.json 5"),
    "no token": (change_document("vision_start_token_id", None), "vision_start_token_id None"),
    "no vision_config": (change_document("vision_config", None), "no 'vision_config'"),
    "a processor for other patches": (change_processor("patch_size", 16), "patch_size 16, and the weights are for 14"),
    "a processor that merges otherwise": (change_processor("merge_size", 1), "merge_size 1"),
    "no room": (change_processor("max_pixels", 100), "between which no picture fits"),
    "another filter": (change_processor("resample", 2), "resample 2"),
    "no colours": (change_processor("image_mean", "clip"), "image_mean 'clip'"),
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


def test_names_of_newer_versions_are_read_as_well(checkpoint: Path, tmp_path: Path) -> None:
    from packager.sources.headers import read_headers

    shutil.copytree(checkpoint, tmp_path / "checkpoint")
    change_weights(
        lambda tensors: [
            tensors.update({f"model.{name}": tensors.pop(name)}) for name in list(tensors) if name.startswith("visual.")
        ]
    )(tmp_path / "checkpoint")
    document = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    document["text_config"] = {"hidden_size": document.pop("hidden_size")}
    (tmp_path / "checkpoint" / "config.json").write_text(json.dumps(document))
    Qwen25Vision().check(tmp_path / "checkpoint", read_headers(tmp_path / "checkpoint").tensors)
