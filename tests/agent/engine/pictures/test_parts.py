"""What pictures cost by their headers, the cache of their features, and a processor without a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from agent.engine.config import read_config
from agent.engine.pictures.features import Encoded, FeatureCache, PictureKey
from agent.engine.pictures.plan import PlannedFor, check_plan
from agent.engine.pictures.processor import empty_graph, open_processor
from contract.bundle.device_plan import Box, least_ram, plan_device
from contract.bundle.footprint import measure_footprint
from contract.bundle.picture_families import PHI3V_PATCHES, Size, phi3v_cost
from contract.errors import RequestInvalid
from contract.onnx.graph import FLOAT, INT64, Value
from contract.onnx.wire import read_graph, read_graph_file
from tests.seeing import PICTURE_TOKENS, png

SIZES = [(32, 32), (64, 20), (20, 64), (500, 30), (1, 32), (32, 1), (700, 300), (3, 4), (640, 480), (1000, 999), (9, 5)]


def test_tokens_by_the_header_are_those_that_the_processor_makes(seeing_bundle: Path) -> None:
    """With a processor that no weights were loaded for."""
    import onnxruntime_genai as og

    processor = open_processor(og, seeing_bundle, read_config(seeing_bundle))
    for width, height in SIZES:
        tensors = processor("<|image_1|>", images=og.Images.open_bytes(png(1, 2, 3, width=width, height=height)))
        tokens = tensors["input_ids"].as_numpy()
        assert phi3v_cost(Size(width, height)).tokens == (tokens < 0).sum(), (width, height)
        [rows, columns] = tensors["image_sizes"].as_numpy()[0] // 336
        assert phi3v_cost(Size(width, height)).patches == (rows * columns + 1) * PHI3V_PATCHES, (width, height)


def test_a_processor_is_made_where_freed_memory_is_used_again_at_once(seeing_bundle: Path) -> None:
    """The runtime reads the empty graphs only when it makes the model, from where they lay when it was told of them."""
    import onnxruntime_genai as og

    class Reusing:
        Config = og.Config

        @staticmethod
        def Model(config: og.Config) -> og.Model:
            reused = [b"\xff" * size for size in range(16, 4096, 16) for _ in range(20)]
            model = og.Model(config)
            assert reused
            return model

    processor = open_processor(Reusing, seeing_bundle, read_config(seeing_bundle))
    tensors = processor("<|image_1|>", images=og.Images.open_bytes(png(1, 2, 3)))
    assert (tensors["input_ids"].as_numpy() < 0).sum() == PICTURE_TOKENS


def test_an_empty_graph_says_what_it_takes() -> None:
    found = read_graph(empty_graph([Value("pixel_values", FLOAT, (1,)), Value("image_sizes", INT64, (1, 2))]))
    assert {value.name: value.elem_type for value in found.graph.inputs} == {
        "pixel_values": FLOAT, "image_sizes": INT64, "x": FLOAT
    }  # fmt: skip


def plan(*sizes: Size, context: int = 8192, room: int = 1 << 30, held: int = 0) -> int | None:
    """Of CLIP ViT-L's width."""
    return check_plan(PlannedFor(phi3v_cost, context, 3072, 14336 * 4), sizes, room, held=held)


def test_what_does_not_fit_is_refused_with_its_figures() -> None:
    square, low = Size(100, 100), Size(100, 100, low=True)
    assert plan(square, low) == 2509 + 313
    with pytest.raises(RequestInvalid, match="the picture comes to 2509 tokens and the context has 2000: ask with"):
        plan(square, context=2000)
    with pytest.raises(RequestInvalid, match="2 pictures come to 2822 tokens and the context has 2600: send fewer"):
        plan(square, low, context=2600)
    with pytest.raises(RequestInvalid, match=r"picture 2: .* takes 591\.\d MiB, and there are 500\.0 MiB here"):
        plan(low, square, room=500 << 20)
    assert plan(square, low, room=100 << 20, held=1) == 2509 + 313
    assert check_plan(PlannedFor(None, 1, 1, 1), [square] * 99, 0) is None


def test_what_looking_takes_is_left_free_by_the_plan_for_a_device(seeing_bundle: Path) -> None:
    facts = read_config(seeing_bundle)
    footprint = measure_footprint(facts, lambda name: read_graph_file(seeing_bundle / name))
    assert footprint.scratch == 2 * 577 * 14 * 128, "3.5 floats for each of 128 outputs, at two crops of 577 patches"
    found, without = (
        plan_device(each, 1 << 20, Box(1 << 30, 2)) for each in (footprint, structs.replace(footprint, scratch=0))
    )
    assert without.room - found.room == footprint.scratch
    assert least_ram(structs.replace(footprint, scratch=60 << 20)) - least_ram(without.footprint) == 60 << 20
    assert ("pictures", "2.0 MiB", "while one is looked at as a whole") in found.rows
    assert "pictures" not in [name for name, _, _ in without.rows]


def rows(number: int, count: int = 4) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.full((count, 2), number, np.float32) + np.arange(count, dtype=np.float32)[:, None] / 8


def test_features_are_found_by_client_picture_and_detail() -> None:
    cache = FeatureCache(1 << 10)
    key = PictureKey("anna", b"digest", low=False)
    kept = cache.keep(key, Encoded([5, -1, -1, -1, -1, 6], rows(3)))
    assert [token for token in kept.tokens if token >= 0] == [5, 6]
    assert cache.find(key) is kept
    for other in (key._replace(client="ben"), key._replace(digest=b"other"), key._replace(low=True)):
        assert cache.find(other) is None
        assert set(cache.keep(other, Encoded([-1] * 4, rows(4))).tokens).isdisjoint(kept.tokens)
    places = np.array([kept.tokens[3], kept.tokens[1]])
    assert cache.rows(places, 2).tolist() == [[3.25, 3.25], [3.0, 3.0]]


def test_what_is_made_again_of_a_picture_takes_the_place_of_what_was_there() -> None:
    """A canary is shown whenever it is asked for, and counted once."""
    cache = FeatureCache(2 * rows(1).nbytes)
    key = PictureKey("", b"canary", low=True)
    for number in range(5):
        made = cache.keep(key, Encoded([-1] * 4, rows(number)))
        assert cache.find(key) is made
        assert cache.used == made.rows.nbytes


def test_the_oldest_go_first_and_what_is_held_stays_known() -> None:
    cache = FeatureCache(2 * rows(1).nbytes)
    keys = [PictureKey("anna", bytes([number]), low=False) for number in range(3)]
    held = cache.keep(keys[0], Encoded([-1] * 4, rows(0)))
    cache.keep(keys[1], Encoded([-1] * 4, rows(1)))
    assert cache.find(keys[0]) is held
    cache.keep(keys[2], Encoded([-1] * 4, rows(2)))
    assert cache.used <= cache.budget
    assert cache.find(keys[1]) is None, "it was used before the first one was"
    cache.keep(PictureKey("anna", b"large", low=False), Encoded([-1] * 4, rows(9, 100)[:4].repeat(50, axis=0)))
    assert cache.find(PictureKey("anna", b"large", low=False)) is None, "larger than all may be"
    cache.clear()
    assert cache.find(keys[0]) is held
    assert cache.rows(np.array(held.tokens[:1]), 2).tolist() == [[0.0, 0.0]]
    del held
    assert cache.find(keys[0]) is None
