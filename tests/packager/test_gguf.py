"""GGUF files of many quantisations: what comes out is what they hold, with template, special tokens and words."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from packager.child import Reporter
from packager.sources.checkpoint import inspect_checkpoint
from packager.sources.gguf_process import convert

KINDS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
"""Those that the gguf package can write; transformers reads the k-quants, too."""

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
Weights = dict[str, npt.NDArray[np.float32]]


def rotated(weight: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Rows in the order of llama.cpp, whose rope turns neighbours instead of halves."""
    pairs = weight.reshape(heads, 2, len(weight) // heads // 2, weight.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(weight.shape))


def write_gguf(path: Path, source: Path, weights: Weights, kind: str) -> None:
    """``weights`` of the checkpoint ``source``, matrices quantised to ``kind``, with its tokenizer and template."""
    import gguf

    config = json.loads((source / "config.json").read_text())
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config["vocab_size"])
    words = tokenizer["model"]["vocab"]
    special = {token["content"] for token in tokenizer["added_tokens"]}
    names = sorted(words, key=words.get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(names)
    writer.add_token_types([3 if name in special else 1 for name in names])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template((source / "chat_template.jinja").read_text())
    for name, weight in weights.items():
        stem = name.removesuffix(".weight")
        layer, _, part = stem.removeprefix("model.layers.").partition(".")
        stored = TOP.get(stem) or f"blk.{layer}.{NAMES[part]}"
        rows = weight
        if part == "self_attn.q_proj":
            rows = rotated(weight, config["num_attention_heads"])
        elif part == "self_attn.k_proj":
            rows = rotated(weight, config["num_key_value_heads"])
        if rows.ndim == 1 or kind == "F32":
            writer.add_tensor(f"{stored}.weight", rows)
        else:
            number = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(f"{stored}.weight", gguf.quants.quantize(rows, number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def as_stored(weight: npt.NDArray[np.float32], kind: str) -> Any:
    import gguf

    if weight.ndim == 1 or kind == "F32":
        return weight
    number = gguf.GGMLQuantizationType[kind]
    return gguf.quants.dequantize(gguf.quants.quantize(weight, number), number)


@pytest.mark.parametrize("kind", KINDS)
def test_every_quantisation_is_read_for_what_it_holds(tiny_checkpoint: Path, tmp_path: Path, kind: str) -> None:
    from safetensors.numpy import load_file
    from transformers import AutoTokenizer

    weights = {
        name: tensor.astype(np.float32) for name, tensor in load_file(tiny_checkpoint / "model.safetensors").items()
    }
    write_gguf(tmp_path / "model.gguf", tiny_checkpoint, weights, kind)
    (tmp_path / "out").mkdir()
    job = {"gguf": str(tmp_path / "model.gguf"), "out": str(tmp_path / "out")}
    convert(job, Reporter(os.open(os.devnull, os.O_WRONLY)))

    found = load_file(tmp_path / "out" / "model.safetensors")
    for name, weight in weights.items():
        assert np.allclose(found[name], as_stored(weight, kind), atol=1e-6), name
    checkpoint = inspect_checkpoint(tmp_path / "out")
    assert checkpoint.chat_template == inspect_checkpoint(tiny_checkpoint).chat_template
    before, after = (AutoTokenizer.from_pretrained(path) for path in (tiny_checkpoint, tmp_path / "out"))
    text = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
    assert after(text)["input_ids"] == before(text)["input_ids"]
    assert (after.bos_token, after.eos_token) == ("<|im_start|>", "<|im_end|>")
