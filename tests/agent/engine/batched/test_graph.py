"""Which decoders of models that see are driven directly: those that need what is known of their family."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from agent.engine.batched.graph import read_decoder
from agent.engine.config import read_config
from agent.engine.runtime_errors import Declined


def test_a_plain_decoder_of_embeddings_is_taken(seeing_bundle: Path) -> None:
    decoder = read_decoder(seeing_bundle, read_config(seeing_bundle))
    assert decoder.embedded
    assert decoder.input_ids == "inputs_embeds"


def shows_whole_pictures(graph: onnx.GraphProto) -> None:
    """Gemma 3's works out from the tokens' numbers which of them see each other."""
    graph.input.append(helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"]))


def numbers_places_in_three_ways(graph: onnx.GraphProto) -> None:
    """Qwen2.5-VL's."""
    kept = [value for value in graph.input if value.name != "position_ids"]
    del graph.input[:]
    places = helper.make_tensor_value_info("position_ids", TensorProto.INT64, [3, "batch", "tokens"])
    graph.input.extend([*kept, places])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (shows_whole_pictures, "not those of a plain decoder (input_ids)"),
        (numbers_places_in_three_ways, "a token has 3 positions in it"),
    ],
)
def test_one_that_looks_at_pictures_itself_is_left_to_the_runtime(
    seeing_bundle: Path, tmp_path: Path, change: Callable[[onnx.GraphProto], None], says: str
) -> None:
    bundle = shutil.copytree(seeing_bundle, tmp_path / "bundle")
    facts = read_config(bundle)
    model = onnx.load(bundle / facts.filename, load_external_data=False)
    change(model.graph)
    (bundle / facts.filename).write_bytes(model.SerializeToString())
    with pytest.raises(Declined) as declined:
        read_decoder(bundle, facts)
    assert says in str(declined.value)
