"""Which graphs may be loaded: operators that the runtime has built in, weights inside the bundle only.

Loading a graph is close to running code: ``location`` may name any file of the host, a domain a custom library, and a
few operators open files by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from contract.bundle.adapter_slots import find_slots
from contract.errors import BundleRefused
from contract.identifiers import check_path
from contract.onnx.graph import OnnxModel, Tensor
from contract.reasons import Reason

ALLOWED_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""What onnxruntime has built in for models as they are exported. Its inner domains (nchwc, nhwc) belong to optimised
graphs, which are derived on the device and never shipped."""

REFUSED_OPERATORS = frozenset({"EPContext", "PythonOp", "PythonOpGrad", "ATen"})
"""Operators of allowed domains that load files or code which the graph names."""


def refuse(what: str) -> BundleRefused:
    return BundleRefused(Reason.GRAPH_INVALID, f"the graph is not allowed: {what}")


def check_graph(model: OnnxModel, graph_path: str, files: Mapping[str, int]) -> None:
    """Check ``model``, stored at ``graph_path`` of a bundle whose ``files`` map paths to sizes.

    Raises:
        BundleRefused: GRAPH_INVALID; UNSAFE_PATH for a location that is no path inside a bundle.
    """
    own = {(function.domain, function.name) for function in model.functions}
    for node in model.walk_nodes():
        if (node.domain, node.op_type) in own:
            continue
        if node.domain not in ALLOWED_DOMAINS:
            raise refuse(f"the operator {node.op_type!r} is of the domain {node.domain!r}, which is not built in")
        if node.op_type in REFUSED_OPERATORS:
            raise refuse(f"the operator {node.op_type!r} loads files or code that the graph names")
    for tensor in model.walk_tensors():
        check_tensor(tensor, graph_path, files)
    find_slots(model)


def external_path(graph_path: str, location: str) -> str:
    """The path in the bundle of external data that ``graph_path`` names as ``location``.

    Raises:
        BundleRefused: UNSAFE_PATH.
    """
    return str(PurePosixPath(graph_path).parent / check_path(location))


def check_tensor(tensor: Tensor, graph_path: str, files: Mapping[str, int]) -> None:
    """Check that the bytes of ``tensor`` are there, inside the bundle.

    Raises:
        BundleRefused: GRAPH_INVALID; UNSAFE_PATH.
    """
    needed = tensor.needed_bytes
    if tensor.inline is not None and needed is not None and tensor.inline[1] - tensor.inline[0] != needed:
        raise refuse(f"the tensor {tensor.name!r} needs {needed} bytes and has {tensor.inline[1] - tensor.inline[0]}")
    external = tensor.external
    if external is None:
        return
    if external.other_keys:
        raise refuse(f"the external data of {tensor.name!r} has the key {external.other_keys[0]!r}")
    path = external_path(graph_path, external.location)
    if path not in files:
        raise refuse(f"the tensor {tensor.name!r} lies in {path!r}, which is not in the bundle")
    if path == graph_path:
        raise refuse(f"the tensor {tensor.name!r} lies in the graph's own file as external data")
    if needed is None:
        raise refuse(f"the tensor {tensor.name!r} of type {tensor.data_type} lies outside of the graph")
    if external.length is not None and external.length != needed:
        raise refuse(f"the tensor {tensor.name!r} needs {needed} bytes and claims {external.length}")
    if external.offset + needed > files[path]:
        raise refuse(f"the tensor {tensor.name!r} ends beyond {path!r}")
