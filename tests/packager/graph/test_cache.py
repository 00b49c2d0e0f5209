"""A graph that was built stays until its bundle is finished, and only for exactly the same build."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from contract.errors import BuildRefused
from contract.onnx.graph import INT8
from contract.onnx.wire import read_graph_file
from packager.build.plan import BuildPlan
from packager.graph.cache import build_or_resume, drop_graph, graph_key
from packager.sources.checkpoint import inspect_checkpoint
from tests.packager.families import FAMILY_CONFIGS, make_random

PLAN = BuildPlan("source", "tiny", "1.0.0", precision="fp32")


def test_a_second_try_goes_on_where_the_first_broke_off(tmp_path: Path) -> None:
    make_random(tmp_path / "source", FAMILY_CONFIGS["qwen-2"]())
    checkpoint = inspect_checkpoint(tmp_path / "source")
    found = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        report, [entry] = build_or_resume(
            checkpoint, "digest", PLAN, tmp_path / name, cache=tmp_path, log=tmp_path / f"{name}.log",
            on_progress=lambda done, total: None,
        )  # fmt: skip
        found.append((report, sorted(path.name for path in (tmp_path / name).iterdir())))
    assert found[0] == found[1]
    assert "model.onnx" in found[0][1]
    assert (tmp_path / "first.log").is_file()
    assert not (tmp_path / "second.log").exists()
    drop_graph(entry)
    assert list((tmp_path / "graphs").iterdir()) == []
    assert (tmp_path / "second" / "model.onnx").is_file()


def test_whatever_decides_the_bytes_is_another_graph() -> None:
    keys = {graph_key(PLAN, "digest"), graph_key(PLAN, "other")}
    for changes in ({"precision": "int4"}, {"ep": "cuda"}, {"block_size": 64}, {"quantizer": "k-quant"}):
        keys.add(graph_key(msgspec.structs.replace(PLAN, **changes), "digest"))
    assert len(keys) == 6
    assert graph_key(msgspec.structs.replace(PLAN, name="other", version="2.0.0"), "digest") in keys


def test_a_build_that_fails_keeps_nothing(tmp_path: Path) -> None:
    make_random(tmp_path / "source", FAMILY_CONFIGS["qwen-2"]())
    checkpoint = inspect_checkpoint(tmp_path / "source")
    (tmp_path / "source" / "tokenizer.json").write_text("{}")
    with pytest.raises(BuildRefused, match="the model builder failed"):
        build_or_resume(
            checkpoint, "digest", PLAN, tmp_path / "out", cache=tmp_path, log=tmp_path / "log",
            on_progress=lambda done, total: None,
        )  # fmt: skip
    assert list((tmp_path / "graphs").iterdir()) == []


@pytest.mark.parametrize("family", ["gemma-3", "mistral"])
def test_an_int8_cache_of_a_model_with_windows_is_as_long_as_the_context(tmp_path: Path, family: str) -> None:
    """The runtime runs none that is as long as a window, nor measures on one: its capacity would be too small."""
    make_random(tmp_path / "source", FAMILY_CONFIGS[family]())
    checkpoint = inspect_checkpoint(tmp_path / "source")
    plan = msgspec.structs.replace(PLAN, precision="int4", quantizer="rtn", kv="int8")
    (tmp_path / "out").mkdir()
    build_or_resume(
        checkpoint, "digest", plan, tmp_path / "out", cache=tmp_path, log=tmp_path / "log",
        on_progress=lambda done, total: None,
    )  # fmt: skip
    graph = read_graph_file(tmp_path / "out" / "model.onnx").graph
    attentions = [node for node in graph.nodes if node.op_type == "GroupQueryAttention"]
    assert max(node.integer("local_window_size", -1) for node in attentions) > 0, "it looks no further back"
    assert [node.integer("sliding_window_cache") for node in attentions] == [0] * len(attentions)
    caches = [value for value in graph.inputs if value.name.startswith("past_key_values")]
    assert {value.elem_type for value in caches} == {INT8}
