"""GGUF files of many quantisations: what comes out is what they hold, with template, special tokens and words."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from contract.errors import BuildRefused
from packager.evaluate.reference_process import find_rope
from packager.sources.checkpoint import inspect_checkpoint, survey_checkpoint
from packager.sources.gguf_metadata import read_config
from packager.sources.gguf_process import convert
from packager.sources.jobs import GgufJob
from packager.sources.template import check_template
from packager.sources.weight_check import check_weights
from packager.subprocess_job import Reporter
from tests.packager.families import source_logits
from tests.packager.gguf_files import write_published_gguf
from tests.packager.published import PUBLISHED, write_layout
from tests.packager.sources.test_published import reference_of

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
    convert(GgufJob(str(tmp_path / "model.gguf"), str(tmp_path / "out")), Reporter(os.open(os.devnull, os.O_WRONLY)))

    found = load_file(tmp_path / "out" / "model.safetensors")
    for name, weight in weights.items():
        assert np.allclose(found[name], as_stored(weight, kind), atol=1e-6), name
    checkpoint = inspect_checkpoint(tmp_path / "out")
    assert checkpoint.chat_template == inspect_checkpoint(tiny_checkpoint).chat_template
    before, after = (AutoTokenizer.from_pretrained(path) for path in (tiny_checkpoint, tmp_path / "out"))
    text = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
    assert after(text)["input_ids"] == before(text)["input_ids"]
    assert (after.bos_token, after.eos_token) == ("<|im_start|>", "<|im_end|>")


LAYOUTS = {
    "llama-2": "llama", "llama-3": "llama", "llama-3.1": "llama", "llama-3.2": "llama", "tinyllama": "llama",
    "longchat-linear": "llama", "smollm2": "llama", "mistral-7b-v0.1": "llama", "mistral-7b-v0.3": "llama",
    "mistral-nemo": "llama", "phi-3-mini-4k": "phi3", "phi-3.5-mini": "phi3", "phi-4-mini": "phi3", "gemma-2": "gemma2",
    "gemma-3-270m": "gemma3", "qwen2.5": "qwen2", "qwen2.5-yarn": "qwen2", "qwen3": "qwen3",
    "deepseek-r1-distill-qwen": "qwen2",
}  # fmt: skip
"""What llama.cpp calls each of the published layouts."""

TEXT = "Hello  there, été 東京 🙂\n\n\tx = 1 <|end|>  <|eot_id|> <end_of_turn>\n<|im_end|>x"
ENDS = {
    "llama-3.1": {321, 324, 325}, "phi-3-mini-4k": {2, 379, 382}, "phi-4-mini": {320, 322}, "gemma-3-270m": {1, 5},
    "qwen2.5": {320, 322}, "tinyllama": {2},
}  # fmt: skip


def converted(path: Path, out: Path) -> Path:
    """What is made of ``path``, whose header must say the same beforehand."""
    header = out.with_name("header")
    for directory in (header, out):
        directory.mkdir()
    reporter = Reporter(os.open(os.devnull, os.O_WRONLY))
    facts = convert(GgufJob(str(path), str(header), header=True), reporter).facts
    assert facts is not None
    convert(GgufJob(str(path), str(out)), reporter)
    found = inspect_checkpoint(out)
    assert (facts.architecture, facts.parameters) == (found.architecture, found.parameters)
    assert survey_checkpoint(header, facts.config, facts.architecture, 1).chat_template == found.chat_template
    check_template(out, facts.templates)
    assert not any(header.glob("*.safetensors"))
    return out


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_published_layout_is_the_model_that_its_checkpoint_is(name: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = write_layout(tmp_path / "source", PUBLISHED[name], dtype="float32")
    window = {"attention.sliding_window": 4096} if name == "mistral-7b-v0.1" else {}
    write_published_gguf(tmp_path / "model.gguf", source, LAYOUTS[name], **window)
    out = converted(tmp_path / "model.gguf", tmp_path / "out")
    check_weights(inspect_checkpoint(out), reference_of(out))

    models = [AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval() for place in (source, out)]
    ids = np.random.default_rng(1).integers(6, 300, 60, dtype=np.int32)
    first, second = (source_logits(model, ids) for model in models)
    assert np.abs(first - second).max() < 1e-5
    assert find_rope(models[0].config) == find_rope(models[1].config)
    windows = [getattr(model.config, "sliding_window", None) for model in models]
    context = models[0].config.max_position_embeddings
    assert windows[0] == windows[1] or all(window is None or window >= context for window in windows)

    theirs, ours = (AutoTokenizer.from_pretrained(place) for place in (source, out))
    assert ours(TEXT)["input_ids"] == theirs(TEXT)["input_ids"]
    assert ours.bos_token == theirs.bos_token or "qwen" in name
    ends = json.loads((out / "generation_config.json").read_text())["eos_token_id"]
    found = set(ends) if isinstance(ends, list) else {ends}
    assert found >= ENDS.get(name, {ours.eos_token_id})


class TestMetadata:
    @pytest.fixture
    def llama(self, tmp_path: Path) -> Path:
        return write_layout(tmp_path / "source", PUBLISHED["llama-3.1"])

    def refused(self, path: Path, tmp_path: Path) -> str:
        with pytest.raises(BuildRefused) as caught:
            converted(path, tmp_path / "out")
        return caught.value.message

    @pytest.mark.parametrize(
        ("field", "value", "words"),
        [
            ("attention.temperature_scale", 0.1, "not known here: llama.attention.temperature_scale"),
            ("rope.scaling.type", "su", "scales positions by 'su'"),
            ("rope.dimension_count", 16, "rotates 16 of 32"),
            ("rope.freq_base", 10000.0, "not those of Llama 3.1"),
            ("block_count", 3, "missing in the files: model.layers.2."),
            ("feed_forward_length", 128, "mismatched: model.layers.{0-1}.mlp."),
        ],
    )
    def test_what_it_says_and_is_not_so(self, llama: Path, tmp_path: Path, field: str, value: Any, words: str) -> None:
        factors = "rope" in field and "freq_base" not in field
        if factors:
            llama = write_layout(tmp_path / "plain", PUBLISHED["llama-3"])
        write_published_gguf(tmp_path / "model.gguf", llama, "llama", **{field: value})
        assert words in self.refused(tmp_path / "model.gguf", tmp_path)

    @pytest.mark.parametrize(("kind", "layers", "scalar"), [("gemma2", 42, 256), ("gemma2", 46, 144),
                                                            ("gemma3", 34, 256), ("gemma3", 62, 144)])  # fmt: skip
    def test_by_what_a_gemmas_attention_is_scaled(self, kind: str, layers: int, scalar: int) -> None:
        fields = {"block_count": layers, "embedding_length": 4608, "attention.head_count": 32,
                  "attention.key_length": 256, "context_length": 8192}  # fmt: skip
        assert read_config(kind, fields, {})["query_pre_attn_scalar"] == scalar

    def test_its_licence_is_on_the_card(self, llama: Path, tmp_path: Path) -> None:
        write_published_gguf(tmp_path / "model.gguf", llama, "llama", license="apache-2.0")
        assert inspect_checkpoint(converted(tmp_path / "model.gguf", tmp_path / "out")).license_spdx == "Apache-2.0"
