"""Phi-3.5-vision: features, embeddings and refusals, held against the family's own code and transformers' encoder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.errors import BuildRefused
from contract.onnx.wire import read_graph_file
from packager.build.pipeline import dry_run
from packager.build.plan import BuildPlan
from packager.sources.headers import read_headers
from packager.vision.embedding import write_embedding
from packager.vision.family import EncoderType
from packager.vision.jobs import LEAST_COSINE
from packager.vision.phi3v import ENCODER, PREFIX, picture_tokens, read_vision_shape
from packager.vision.phi3v_encoder import write_encoder
from packager.vision.phi3v_family import Phi3Vision
from packager.vision.pictures import SCENES, draw
from packager.vision.stored import StoredWeights
from tests.packager.families import cosine
from tests.packager.vision.phi3v_checkpoint import make_phi3v, reference_features

GOLDEN = Path(__file__).parent / "golden" / "phi3v_features.npz"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phi3v(tmp_path_factory.mktemp("phi3v") / "checkpoint")


@pytest.fixture(scope="module")
def encoder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    import onnxruntime

    path = tmp_path_factory.mktemp("encoder") / "vision.onnx"
    shape = read_vision_shape(checkpoint, read_headers(checkpoint).tensors)
    write_encoder(path, StoredWeights(checkpoint), shape, lambda done, total: None)
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def features(encoder: Any, pixels: Any, sizes: Any) -> Any:
    return encoder.run(None, {"pixel_values": pixels, "image_sizes": sizes})[0]


@pytest.mark.parametrize(
    "sizes",
    [[[336, 336]], [[336, 672], [672, 336]], [[336, 1680]], [[1680, 336]], [[672, 1008], [336, 336], [1008, 672]]],
    ids=["one", "landscape-and-portrait", "very-wide", "very-high", "several"],
)
def test_features_are_those_of_transformers(sizes: list[list[int]], checkpoint: Path, encoder: Any) -> None:
    pixels = np.random.default_rng(5).standard_normal((len(sizes), 7, 3, 336, 336)).astype(np.float32)
    given = np.array(sizes, np.int64)
    found, wanted = features(encoder, pixels, given), reference_features(checkpoint, pixels, given)
    assert found.shape == (sum(picture_tokens(*size) for size in sizes), 64)
    assert np.abs(found - wanted).max() <= 1e-3
    assert wanted.std() > 0.5


def test_features_are_those_of_the_familys_own_code(encoder: Any) -> None:
    golden = np.load(GOLDEN)
    pixels = np.random.default_rng(11).standard_normal((3, 17, 3, 336, 336)).astype(np.float32)
    assert pixels.astype(np.float64).sum() == pytest.approx(float(golden["pixel_sum"]))
    found = features(encoder, pixels, golden["image_sizes"])
    assert len(found) == golden["tokens"]
    assert np.abs(found[golden["rows"]] - golden["features"]).max() <= 1e-3


@pytest.mark.parametrize(
    ("kind", "operator", "least"), [("int8", "MatMulNBits", LEAST_COSINE), ("fp16", "Cast", 0.999999)]
)
def test_smaller_weights_keep_the_features(
    kind: EncoderType, operator: str, least: float, checkpoint: Path, tmp_path: Path, encoder: Any
) -> None:
    import onnxruntime

    path = tmp_path / "vision.onnx"
    shape = read_vision_shape(checkpoint, read_headers(checkpoint).tensors)
    write_encoder(path, StoredWeights(checkpoint), shape, lambda done, total: None, kind)
    small = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for name in SCENES:
        given = Phi3Vision().prepare(checkpoint, draw(name, 672))
        found, wanted = (session.run(None, given.inputs)[0] for session in (small, encoder))
        assert len(found) == given.features
        assert least <= cosine(found, wanted) < 1 - 1e-9, name
    nodes = [node.op_type for node in read_graph_file(path).walk_nodes()]
    assert nodes.count(operator) == 6 * shape.used_layers + 2


@pytest.mark.parametrize(("kind", "most"), [("float", 0.0), ("int8", 2e-3), ("int4", 0.05)])
def test_embeddings_are_the_words_and_the_pictures(kind: str, most: float, checkpoint: Path, tmp_path: Path) -> None:
    import onnxruntime
    from safetensors.numpy import load_file

    write_embedding(tmp_path / "embedding.onnx", StoredWeights(checkpoint), kind)
    session = onnxruntime.InferenceSession(str(tmp_path / "embedding.onnx"), providers=["CPUExecutionProvider"])
    table = load_file(checkpoint / "model.safetensors")["model.embed_tokens.weight"]
    seen = np.arange(3 * 64, dtype=np.float32).reshape(3, 64)
    ids = np.array([[5, -1, 0, -2, -2, 447]])
    found = session.run(None, {"input_ids": ids, "image_features": seen})[0]
    assert np.abs(found[0, [0, 2, 5]] - table[[5, 0, 447]]).max() <= most
    assert np.array_equal(found[0, [1, 3, 4]], seen)
    text = session.run(None, {"input_ids": ids[:, :1], "image_features": seen[:0]})[0]
    assert np.array_equal(text[0, 0], found[0, 0])


def change_config(name: str, key: str, value: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        file = directory / "config.json"
        document = json.loads(file.read_text())
        document[name] = {**document[name], key: value}
        file.write_text(json.dumps(document))

    return change


def change_processor(key: str, value: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        file = directory / "preprocessor_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))

    return change


def write_processor(text: str) -> Callable[[Path], None]:
    return lambda directory: (directory / "preprocessor_config.json").write_text(text) and None


def change_weights(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def rewrite(directory: Path) -> None:
        from safetensors.numpy import load_file, save_file

        file = directory / "model.safetensors"
        tensors = dict(load_file(file))
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    return rewrite


def drop(name: str) -> Callable[[Path], None]:
    return change_weights(lambda tensors: tensors.pop(name))


def resize(name: str, *shape: int) -> Callable[[Path], None]:
    return change_weights(lambda tensors: tensors.update({name: np.zeros(shape, np.float32)}))


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "a separator is missing": (drop(f"{PREFIX}glb_GN"), r"1 missing in the files: model\.vision_embed_tokens\.glb_GN"),
    "a layer is missing a weight": (
        drop(f"{ENCODER}encoder.layers.1.mlp.fc2.bias"), r"1 missing .*layers\.1\.mlp\.fc2\.bias",
    ),
    "no weight of the encoder": (
        change_weights(lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(PREFIX)]),
        "missing in the files: .*glb_GN",
    ),
    "another size": (
        resize(f"{PREFIX}img_projection.0.weight", 64, 128),
        r"img_projection\.0\.weight is \[64, 128\] in the files and \[64, 256\] in the model",
    ),
    "another resolution": (
        resize(f"{ENCODER}embeddings.position_embedding.weight", 257, 64),
        r"position_embedding\.weight is \[257, 64\] in the files and \[577, 64\] in the model",
    ),
    "a weight too many": (resize(f"{PREFIX}img_projection.4.weight", 64, 64), "1 that the model has no place for"),
    "another order": (
        change_config("embd_layer", "hd_transform_order", "glb_sub"), "embd_layer.hd_transform_order 'glb_sub'",
    ),
    "another encoder": (change_config("img_processor", "name", "siglip"), "img_processor.name 'siglip'"),
    "another layer": (change_config("img_processor", "layer_idx", -1), "img_processor.layer_idx -1"),
    "another width": (
        change_config("img_processor", "image_dim_out", 128), r"is \[64\] in the files and \[128\] in the model",
    ),
    "no width": (change_config("img_processor", "image_dim_out", "wide"), "image_dim_out 'wide'"),
    "other colours": (change_processor("image_mean", [0.5, 0.5, 0.5]), r"image_mean \[0\.5, 0\.5, 0\.5\]"),
    "other tokens": (change_processor("num_img_tokens", 256), "num_img_tokens 256, and the weights make 144"),
    "other tokens, as a word": (change_processor("num_img_tokens", "144"), "num_img_tokens '144'"),
    "another deviation": (change_processor("image_std", [0.5, 0.5, 0.5]), r"image_std \[0\.5, 0\.5, 0\.5\]"),
    "four colours": (change_processor("image_mean", [0.48145466, 0.4578275, 0.40821073, 0.5]), "image_mean"),
    "no colours": (change_processor("image_mean", None), "image_mean None"),
    "pixels as they are": (change_processor("do_normalize", False), "do_normalize False"),
    "another processor": (
        change_processor("image_processor_type", "CLIPImageProcessor"), "image_processor_type 'CLIPImageProcessor'",
    ),
    "crops of another size": (change_processor("crop_size", {"height": 224, "width": 224}), "crop_size .*336 pixels"),
    "pictures of another size": (change_processor("size", 448), "size 448, and the encoder's weights are for 336"),
    "crops that are no number": (change_processor("num_crops", True), "num_crops True"),
    "no crops": (change_processor("num_crops", 0), "num_crops 0"),
    "a processor that is cut off": (write_processor('{"image_mean": [0.48'), "preprocessor_config.json is not JSON"),
    "a processor that is a list": (write_processor("[]"), "preprocessor_config.json is not a JSON object"),
    "a processor said twice": (write_processor('{"num_crops": 4, "num_crops": 16}'), "preprocessor_config.json"),
    "a pointer in its place": (
        write_processor("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
        "preprocessor_config.json",
    ),
    "crops beyond the runtime's": (change_processor("num_crops", 40), "num_crops 40"),
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
