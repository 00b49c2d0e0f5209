"""A model of a real one's shape for two runtimes: our graph, and llama.cpp's Q4_0 file of the same random weights.

Both are made once and kept in ``DIRECTORY/SHAPE``. Our graph is what ``edge-packager build --quantizer rtn`` makes,
without the checks, which would find nothing in random weights; its keys and values are fp32. In the Q4_0 file every
matrix is Q4_0, the lm_head and the embedding too, as in our graph; what runtimes read for a token is then nearly the
same number of bytes. Tokens that are no ASCII text have a name there that is, so that every token that comes out is a
piece of text at once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from contract.bundle.genai_config import CONFIG_FILE, read_genai_config
from contract.onnx.wire import read_graph_file
from tests.random_checkpoint import SHAPES, config_of, make_random_checkpoint, small_config

ARCHITECTURES = {"llama": "LLAMA", "mistral": "LLAMA", "phi3": "PHI3", "qwen2": "QWEN2"}
"""Names of the ``gguf`` package by ``model_type``."""

OFFERED = sorted(name for name, config in SHAPES.items() if config["model_type"] in ARCHITECTURES)
"""Shapes that both runtimes can be given."""

CONTEXT = 2048
"""Tokens: of a longer context our engine would have fewer than eight slots, each of them longer."""

ROWS = 8192
"""Rows of a matrix that are rounded at a time."""

PRODUCTS = ("MatMulNBits", "MatMul", "Gemm")
ASCII = {chr(byte) for byte in range(33, 127)} | {chr(0x100 + place) for place in range(34)}
"""Letters that stand for the bytes of ASCII in a byte-level vocabulary."""


class MadeShape(NamedTuple):
    """``bundle`` is a finished onnxruntime-genai folder."""

    bundle: Path
    gguf: Path


def made_shape(shape: str, directory: Path, *, small: bool = False) -> MadeShape:
    """The two of ``shape``, made now unless they are there; the checkpoint that they are made of is not kept."""
    place = directory / f"{'small-' if small else ''}{shape}"
    made = MadeShape(place / "bundle", place / "q4_0.gguf")
    if made.bundle.is_dir() and made.gguf.is_file():
        return made
    scratch = place / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    config = small_config(shape) if small else config_of(shape)
    checkpoint = make_random_checkpoint(scratch / "checkpoint", config)
    if not made.gguf.is_file():
        write_gguf(checkpoint, scratch / "q4_0.gguf")
        (scratch / "q4_0.gguf").rename(made.gguf)
    if not made.bundle.is_dir():
        _build(checkpoint, scratch)
        (scratch / "bundle").rename(made.bundle)
    shutil.rmtree(scratch)
    return made


def _build(checkpoint: Path, scratch: Path) -> None:
    from packager.build.jobs import BUILDER, BuilderJob
    from packager.build.plan import BuildPlan, builder_options
    from packager.subprocess_job import run_child

    plan = BuildPlan(str(checkpoint), "bench", "1.0.0", quantizer="rtn")
    (scratch / "bundle").mkdir()
    out, cache = str(scratch / "bundle"), str(scratch / "cache")
    job = BuilderJob(
        plan.source, out, cache, plan.precision, plan.ep, builder_options(plan), embedding=plan.own_embedding
    )
    run_child(BUILDER, job, scratch / "builder.log")
    described = scratch / "bundle" / CONFIG_FILE
    document = json.loads(described.read_text("utf-8"))
    document["model"]["context_length"] = document["search"]["max_length"] = CONTEXT
    described.write_text(json.dumps(document, indent=4), "utf-8")


def read_bytes_of_a_token(bundle: Path) -> int:
    """Bytes of weights that one step has to read: those of all products; of an embedding it reads a row."""
    graph = bundle / read_genai_config((bundle / CONFIG_FILE).read_bytes()).filename
    model = read_graph_file(graph)
    read = {name for node in model.walk_nodes() if node.op_type in PRODUCTS for name in node.inputs}
    return sum(tensor.needed_bytes or 0 for tensor in model.walk_tensors() if tensor.name in read)


def write_gguf(checkpoint: Path, target: Path) -> None:
    """``checkpoint`` (a decoder of :data:`ARCHITECTURES`) as a GGUF file whose matrices are Q4_0, one at a time."""
    import gguf

    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    architecture = getattr(gguf.MODEL_ARCH, ARCHITECTURES[config["model_type"]])
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[architecture])
    _describe(writer, config)
    _add_tokenizer(writer, checkpoint, config)
    weights = _list_weights(checkpoint)
    q4_0, block_bytes = gguf.GGMLQuantizationType.Q4_0, gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q4_0]
    extra = _rope_factors(config)
    for name, factors in extra.items():
        writer.add_tensor_info(name, factors.shape, factors.dtype, factors.nbytes)
    for name, shape in weights.items():
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert known is not None, f"{name} has no place in a GGUF file"
        if len(shape) == 1:
            writer.add_tensor_info(known, shape, np.dtype(np.float32), 4 * shape[0])
        else:
            row = shape[1] // block_bytes[0] * block_bytes[1]
            writer.add_tensor_info(known, (shape[0], row), np.dtype(np.uint8), shape[0] * row, raw_dtype=q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for factors in extra.values():
        writer.write_tensor_data(factors)
    for name, shape in weights.items():
        values = _read_weight(checkpoint, name)
        if len(shape) == 1:
            writer.write_tensor_data(values)
            continue
        if architecture is gguf.MODEL_ARCH.LLAMA and name.endswith(("q_proj.weight", "k_proj.weight")):
            values = _pairs_together(values, config, name)
        rounded = [gguf.quants.quantize(values[start : start + ROWS], q4_0) for start in range(0, shape[0], ROWS)]
        writer.write_tensor_data(np.concatenate(rounded))
    writer.close()


def _describe(writer: Any, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(width)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_vocab_size(config["vocab_size"])
    if "original_max_position_embeddings" in config:
        writer.add_rope_scaling_orig_ctx_len(config["original_max_position_embeddings"])
        writer.add_rope_scaling_attn_factors(1.0)
        writer.add_sliding_window(config["sliding_window"])


def _add_tokenizer(writer: Any, checkpoint: Path, config: dict[str, Any]) -> None:
    vocabulary = json.loads((checkpoint / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    names = sorted(vocabulary, key=vocabulary.__getitem__)
    plain = [name if len(name) > 1 or name in ASCII else f"b{ord(name)}" for name in names]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(plain)
    writer.add_token_types([1] * len(plain))  # all normal
    writer.add_token_merges(["Ġ Ġ"])  # of which nothing comes; a list without any is refused
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


def _rope_factors(config: dict[str, Any]) -> dict[str, npt.NDArray[np.float32]]:
    scaling = config.get("rope_scaling") or {}
    found = {f"rope_factors_{kind}.weight": scaling.get(f"{kind}_factor") for kind in ("long", "short")}
    return {name: np.array(factors, np.float32) for name, factors in found.items() if factors}


def _list_weights(checkpoint: Path) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for file in _shards(checkpoint) for name, shape in _headers(file).items()}


def _shards(checkpoint: Path) -> Iterator[Path]:
    yield from sorted(checkpoint.glob("*.safetensors"))


def _headers(file: Path) -> dict[str, list[int]]:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118


def _read_weight(checkpoint: Path, name: str) -> npt.NDArray[np.float32]:
    from safetensors import safe_open

    for file in _shards(checkpoint):
        with safe_open(file, "pt") as opened:
            if name in opened.keys():  # noqa: SIM118
                values: npt.NDArray[np.float32] = opened.get_tensor(name).float().numpy()
                return values
    raise KeyError(name)


def _pairs_together(values: npt.NDArray[np.float32], config: dict[str, Any], name: str) -> npt.NDArray[np.float32]:
    """Rows of each head in llama.cpp's order, where the two that rotate together are neighbours."""
    heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
    return values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
