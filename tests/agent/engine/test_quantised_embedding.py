"""Bundles whose embedding is quantised apart from the lm_head: both engines, and the weights prepacked."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.engine.engine_selection import open_engine
from agent.worker.prepacking import prepack
from contract.onnx.rules import check_graph
from contract.onnx.wire import read_graph_file
from packager.build.plan import BuildPlan
from tests.agent.engine.batched.test_batched_families import asked, tokens_of
from tests.agent.engine.driving import answer
from tests.packager.families import FAMILY_CONFIGS, build_here, make_random


@pytest.fixture(scope="module", params=["int8", "int4"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp(request.param)
    make_random(place / "source", FAMILY_CONFIGS["qwen-2"]())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BuildPlan, "own_embedding", request.param)
        build_here(place / "source", place / "graph", "int4", options=("block_size=32", "accuracy_level=4"))
    return place / "graph"


def test_both_engines_take_it_and_agree(folder: Path, tmp_path: Path) -> None:
    model = read_graph_file(folder / "model.onnx")
    check_graph(model, "model.onnx", {path.name: path.stat().st_size for path in folder.iterdir()})
    assert [node.op_type for node in model.graph.nodes if "input_ids" in node.inputs] == ["GatherBlockQuantized"]
    derived = tmp_path / "derived"
    derived.mkdir()
    prepack(folder / "model.onnx", derived)
    found = {}
    for name, place in (("genai", None), ("batched", None), ("batched", derived)):
        engine = open_engine(folder, engine=name, threads=1, derived_dir=place, reproducible=True)
        found[name, place] = tokens_of(answer(engine, asked(1, 0, 60, 24)))
        engine.release()
    first, *others = found.values()
    assert len(first) == 24
    assert others[0] == others[1]
    # The engines read a prompt in pieces of different length, which rounds differently in INT8.
    assert first[:4] == others[0][:4]
