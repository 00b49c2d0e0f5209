"""onnxruntime-genai's own picture processor of a model, without the model: its weights are loaded elsewhere already.

The runtime makes a processor from a loaded model alone. So it is given a model whose graphs are empty but for the
inputs that the processor asks the types of.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from contract import strict_json
from contract.bundle.genai_config import MAX_CONFIG_BYTES, GenaiFacts
from contract.onnx.graph import FLOAT, Value
from contract.onnx.wire import read_graph_file

LENGTH_DELIMITED = 2
IR_VERSION, OPSET = 8, 17


def open_processor(og: Any, bundle_dir: Path, facts: GenaiFacts) -> Any:
    """The ``MultiModalProcessor`` of the model that ``facts`` describe; may raise whatever the runtime raises."""
    # The configuration keeps an address and not the bytes: they are held here until the model has read them.
    empty = {name: empty_graph(read_graph_file(bundle_dir / name).graph.inputs) for name in facts.graphs}
    config = og.Config(str(bundle_dir))
    for name, data in empty.items():
        config.add_model_data(name, data)
    return og.Model(config).create_multimodal_processor()


def resize_attributes(bundle_dir: Path, facts: GenaiFacts) -> dict[str, Any]:
    """By which attributes that processor makes pictures of another size; none where its configuration says nothing.

    Raises:
        BundleRefused: it cannot be read.
    """
    if facts.vision is None or facts.vision.config_filename is None:
        return {}
    data = (bundle_dir / facts.vision.config_filename).read_bytes()
    found = strict_json.loads(data, max_bytes=MAX_CONFIG_BYTES, what=facts.vision.config_filename)
    try:
        steps = [each["operation"] for each in found["processor"]["transforms"]]
        return next((dict(step.get("attrs", {})) for step in steps if step.get("type") == "Resize"), {})
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def empty_graph(inputs: Iterable[Value]) -> bytes:
    """A ModelProto that takes ``inputs`` and computes nothing of them (numbers of fields: onnx.proto)."""
    graph = _field(1, _text(1, "x") + _text(2, "y") + _text(4, "Identity")) + _text(2, "empty")
    for name, kind in (*((each.name, each.elem_type) for each in inputs), ("x", FLOAT)):
        graph += _field(11, _value(name, kind))
    graph += _field(12, _value("y", FLOAT))
    return _number(1, IR_VERSION) + _field(7, graph) + _field(8, _text(1, "") + _number(2, OPSET))


def _value(name: str, kind: int) -> bytes:
    shape = _field(2, _field(1, _text(2, f"{name}_length")))
    return _text(1, name) + _field(2, _field(1, _number(1, kind) + shape))


def _field(number: int, body: bytes) -> bytes:
    return _varint(number << 3 | LENGTH_DELIMITED) + _varint(len(body)) + body


def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode())


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*found, value))
