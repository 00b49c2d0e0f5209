"""GGUF files as llama.cpp's converter writes them for the layouts of :mod:`tests.packager.published`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

Weights = dict[str, Any]
CONTROL, NORMAL, UNKNOWN, USER, BYTE = 3, 1, 2, 4, 6


def write_published_gguf(path: Path, source: Path, architecture: str, **more: Any) -> None:
    """The checkpoint ``source`` as the GGUF file ``path``, of the kind that llama.cpp calls ``architecture``.

    ``more`` are fields of the architecture, by their names without it, that take the place of what is derived.
    """
    import gguf
    from safetensors.torch import load_file
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source)
    writer = gguf.GGUFWriter(str(path), architecture)
    fields = _fields(config, architecture)
    license_ = more.pop("license", None)
    if license_ is not None:
        writer.add_license(license_)
    for key, value in {**fields, **more}.items():
        if value is not None:
            _add(writer, f"{architecture}.{key}", value)
    _write_tokenizer(writer, source)
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, architecture.upper()), config.num_hidden_layers)
    for name, tensor in load_file(source / "model.safetensors").items():
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        rows = tensor.float().numpy()
        if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            pairs = rows.reshape(heads, 2, len(rows) // heads // 2, rows.shape[1])
            rows = np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows.shape))
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            rows = rows + 1
        writer.add_tensor(stored, np.ascontiguousarray(rows))
    for name, rows in _factors(config).items():
        writer.add_tensor(name, rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


def _fields(config: Any, architecture: str) -> dict[str, Any]:
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    fields: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": getattr(config, "rms_norm_eps", None),
        "attention.layer_norm_epsilon": getattr(config, "layer_norm_eps", None),
        "rope.freq_base": float(rope["rope_theta"]),
        "rope.dimension_count": int(head * rope.get("partial_rotary_factor", 1.0)),
        "vocab_size": config.vocab_size,
    }
    if architecture in ("gemma2", "gemma3", "qwen3") or head * config.num_attention_heads != config.hidden_size:
        fields |= {"attention.key_length": head, "attention.value_length": head}
    if architecture in ("gemma2", "gemma3", "phi3"):
        fields["attention.sliding_window"] = config.sliding_window
    if architecture == "phi3":
        original = getattr(config, "original_max_position_embeddings", None) or config.max_position_embeddings
        fields["rope.scaling.original_context_length"] = original
        if rope["rope_type"] == "longrope":
            scale = config.max_position_embeddings / original
            fields["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(scale) / math.log(original))
    if rope["rope_type"] in ("linear", "yarn"):
        fields |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
    if rope["rope_type"] == "yarn":
        fields["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    return fields


def _factors(config: Any) -> dict[str, Any]:
    rope = config.rope_parameters
    if rope.get("rope_type") == "longrope":
        kinds = {"long": rope["long_factor"], "short": rope["short_factor"]}
        return {f"rope_factors_{kind}.weight": np.array(rows, dtype=np.float32) for kind, rows in kinds.items()}
    if rope.get("rope_type") != "llama3":
        return {}
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    wave = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, head, 2) / head)
    old, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = (old / wave - low) / (high - low)
    middle = 1 / ((1 - smooth) / rope["factor"] + smooth)
    factors = np.where(wave < old / high, 1.0, np.where(wave > old / low, rope["factor"], middle))
    return {"rope_freqs.weight": factors.astype(np.float32)}


def _write_tokenizer(writer: Any, source: Path) -> None:
    document = json.loads((source / "tokenizer.json").read_text())
    settings = json.loads((source / "tokenizer_config.json").read_text())
    model = document["model"]
    added = {token["content"]: token for token in document["added_tokens"]}
    words = {**model["vocab"], **{text: token["id"] for text, token in added.items()}}
    rows = json.loads((source / "config.json").read_text())["vocab_size"]
    names = sorted(words, key=lambda text: words[text])[:rows]
    names += [f"[PAD{number}]" for number in range(len(names), rows)]
    pieces = model.get("byte_fallback", False)
    kinds = []
    for name in names:
        kind = CONTROL if name in added else NORMAL
        kind = USER if name.startswith("[PAD") and name not in words else kind
        kind = UNKNOWN if pieces and name == "<unk>" else BYTE if pieces and name.startswith("<0x") else kind
        kinds.append(kind)
    writer.add_tokenizer_model("llama" if pieces else "gpt2")
    writer.add_tokenizer_pre("default" if pieces else "llama-bpe")
    writer.add_token_list(names)
    writer.add_token_types(kinds)
    if pieces:
        writer.add_token_scores([-float(number) for number in range(len(names))])
        prepended = "Prepend" in json.dumps(document["normalizer"])
        writer.add_add_space_prefix(prepended)
    else:
        writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    for key, add in (("bos_token", writer.add_bos_token_id), ("eos_token", writer.add_eos_token_id),
                     ("unk_token", writer.add_unk_token_id), ("pad_token", writer.add_pad_token_id)):  # fmt: skip
        if settings.get(key) is not None and words[settings[key]] < rows:
            add(words[settings[key]])
    writer.add_add_bos_token(document.get("post_processor") is not None)
    if settings.get("chat_template"):
        writer.add_chat_template(settings["chat_template"])
