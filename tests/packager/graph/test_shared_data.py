"""The graph with an INT8 cache beside the one that its scales were measured on: the weights lie on the disk once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from packager.build.kv_cache import SCHEME
from packager.graph.shared_data import DATA_FILE, link_tree
from tests.packager.families import build_here
from tests.random_checkpoint import make_random_checkpoint, small_config

HEADS, HEAD_SIZE, LAYERS = 2, 96, 2


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Phi, with rotary tables in branches of the graph; scales; and its graph with a plain cache."""
    place = tmp_path_factory.mktemp("shared")
    make_random_checkpoint(place / "source", small_config("phi-3.5-mini"))
    scales_of_phi(place)
    build_here(place / "source", place / "plain", "int4", options=OPTIONS)
    return place


def scales_of_phi(place: Path) -> None:
    """Some, for the small Phi."""
    rows = np.full((LAYERS, HEADS * HEAD_SIZE), 0.05).tolist()
    document = {"scales": {"k_scales": rows, "v_scales": rows}, "qmax": 128.0, "layer_ids": list(range(LAYERS))}
    (place / "scales.json").write_text(json.dumps(document))


OPTIONS = ("block_size=32", "accuracy_level=4")


def with_scales(place: Path) -> tuple[str, ...]:
    return (*OPTIONS, f"kv_cache_quant_scheme={SCHEME}", f"kv_cache_scale_file={place / 'scales.json'}")


def initializers(model: Any) -> list[tuple[str, Any]]:
    return [pair for graph in model.graphs() for pair in graph.initializers.items()]


def values_of(model: Any, data: Path) -> dict[str, bytes]:
    """By name, read from ``data`` where they are not in the graph; onnx-ir refuses a file that has links."""
    stored = data.read_bytes()
    return {
        name: stored[value.const_value.offset :][: value.const_value.length]
        if hasattr(value.const_value, "offset")
        else value.const_value.tobytes()
        for name, value in initializers(model)
    }


def test_the_weights_are_the_other_graphs_and_the_answers_stay(place: Path, tmp_path: Path) -> None:
    import onnx_ir as ir

    before = (place / "plain" / DATA_FILE).read_bytes()
    build_here(place / "source", tmp_path / "own", "int4", options=with_scales(place))
    build_here(place / "source", tmp_path / "out", "int4", options=with_scales(place), shared=place / "plain")
    assert (tmp_path / "out" / DATA_FILE).samefile(place / "plain" / DATA_FILE)
    assert (place / "plain" / DATA_FILE).read_bytes() == before
    own, shared = (ir.load(tmp_path / name / "model.onnx") for name in ("own", "out"))
    values = [values_of(model, tmp_path / name / DATA_FILE) for model, name in ((own, "own"), (shared, "out"))]
    assert values[0] == values[1]
    assert [node.op_type for node in own.graph] == [node.op_type for node in shared.graph]
    inline = [name for name, value in initializers(shared) if not hasattr(value.const_value, "offset")]
    assert inline
    assert all("scale" in name for name in inline)


def test_a_graph_without_some_of_the_weights_has_its_own(place: Path, tmp_path: Path) -> None:
    """As the decoder of a model that sees, which reads no table."""
    build_here(
        place / "source", tmp_path / "out", "int4", options=(*with_scales(place), "exclude_embeds=true"),
        shared=place / "plain",
    )  # fmt: skip
    assert (tmp_path / "out" / DATA_FILE).stat().st_nlink == 1
    assert (tmp_path / "out" / DATA_FILE).stat().st_size < (place / "plain" / DATA_FILE).stat().st_size


def test_a_file_system_without_links_gets_copies(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.link", _refuse)
    (tmp_path / "to").mkdir()
    link_tree(place / "plain", tmp_path / "to")
    assert (tmp_path / "to" / DATA_FILE).read_bytes() == (place / "plain" / DATA_FILE).read_bytes()
    assert not (tmp_path / "to" / DATA_FILE).samefile(place / "plain" / DATA_FILE)


def _refuse(source: Path, target: Path) -> None:
    raise OSError(1, "Operation not permitted")
