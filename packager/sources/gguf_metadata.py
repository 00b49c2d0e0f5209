"""What a GGUF file says of its model, as transformers' configuration. Pure; the names are llama.cpp's.

transformers' own reader drops rotary factors and their scaling, windows, the length of heads and part of the end tokens
in silence, so every field is read here, and one that is not known is a refusal: it may change what the model computes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from contract.errors import BuildRefused

SIMPLE = {
    "context_length": "max_position_embeddings", "embedding_length": "hidden_size", "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads", "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "norm_eps", "attention.key_length": "head_dim", "vocab_size": "vocab_size",
    "attention.sliding_window": "sliding_window", "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}  # fmt: skip
"""Fields whose value is one of the configuration."""

ROPE = (
    "rope.freq_base", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear",
    "rope.scaling.original_context_length", "rope.scaling.attn_factor", "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow", "rope.freq_base_swa",
)  # fmt: skip
FIXED = {"attention.causal": True, "attention.sliding_window_pattern": 6, "use_parallel_residual": False}
"""Fields that can have this one value."""

HARMLESS = ("rope.scaling.finetuned", "tensor_data_layout", "attention.value_length")
LLAMA_3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Llama 3.1 and 3.2 as published; the file holds the factors that come of these and of one more."""

END_NAMES = (
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|end_of_text|>", "<|endoftext|>", "<end_of_turn>", "<EOT>",
    "<｜end▁of▁sentence｜>", "<|end_of_turn|>", "</s>", "<eos>",
)  # fmt: skip
"""Control tokens that end a turn wherever they are in a vocabulary; llama.cpp finds them by name, too."""

SCALED_BY_HEAD = {"gemma2": 46, "gemma3": 62}
"""Architectures whose attention is scaled by the length of a head, and the layers of the one model (27B) in which it is
by the width divided by the number of heads.
"""

PARTIAL = ("phi3", "nemotron")
"""Architectures that may rotate a part of each head."""


def read_config(kind: str, fields: Mapping[str, Any], factors: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The configuration that ``fields`` (names without the architecture's) and the tensors of rotary factors describe.

    Raises:
        BuildRefused: naming fields that are not known, or that describe no model of transformers'.
    """
    known = {*SIMPLE, *ROPE, *FIXED, *HARMLESS}
    unknown = sorted(name for name in fields if name not in known)
    if unknown:
        named = ", ".join(f"{kind}.{name}" for name in unknown)
        raise BuildRefused(f"the GGUF file has fields that are not known here: {named}")
    for name, value in FIXED.items():
        if fields.get(name, value) != value:
            raise BuildRefused(f"the GGUF file says {kind}.{name} = {fields[name]}; only {value} can be built")
    config = {SIMPLE[name]: _plain(kind, name, value) for name, value in fields.items() if name in SIMPLE}
    if fields.get("attention.value_length", config.get("head_dim")) != config.get("head_dim"):
        raise BuildRefused(f"the GGUF file has keys and values of different lengths ({kind}.attention.value_length)")
    window = config.get("sliding_window")
    if not window:
        config.pop("sliding_window", None)
        config |= {"sliding_window": None} if kind in ("llama", "phi3", "qwen2", "qwen3") else {}
    elif kind == "llama" and window < config["max_position_embeddings"]:
        config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    rope = _read_rope(kind, fields, factors, config)
    if kind == "gemma3":
        local = {"rope_type": "default", "rope_theta": _round(fields.get("rope.freq_base_swa", 10000.0))}
        config["rope_parameters"] = {"full_attention": rope, "sliding_attention": local}
    else:
        config["rope_parameters"] = rope
    if kind in SCALED_BY_HEAD:
        # No field says by what attention is scaled; llama.cpp goes by the number of layers, too.
        whole = config["num_hidden_layers"] == SCALED_BY_HEAD[kind]
        size = config["hidden_size"] // config["num_attention_heads"] if whole else config.get("head_dim", 256)
        config["query_pre_attn_scalar"] = size
    if kind == "phi3":
        original = fields.get("rope.scaling.original_context_length") if factors else None
        config["original_max_position_embeddings"] = int(original or config["max_position_embeddings"])
    return config


def _plain(kind: str, name: str, value: Any) -> Any:
    if isinstance(value, list):
        if len(set(value)) != 1:
            raise BuildRefused(f"the GGUF file has layers of different sizes ({kind}.{name}), which cannot be built")
        value = value[0]
    return _round(value) if isinstance(value, float) else value


def _round(value: Any) -> float:
    """Without what storing it in 32 bits added."""
    return float(f"{float(value):.7g}")


def _read_rope(
    kind: str, fields: Mapping[str, Any], factors: Mapping[str, Sequence[float]], config: Mapping[str, Any]
) -> dict[str, Any]:
    head = int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    rotated = int(fields.get("rope.dimension_count", head))
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": _round(fields.get("rope.freq_base", 10000.0))}
    if rotated != head:
        if kind not in PARTIAL:
            raise BuildRefused(f"the GGUF file rotates {rotated} of {head} values of a head, as no {kind} model does")
        rope["partial_rotary_factor"] = rotated / head
    original = fields.get("rope.scaling.original_context_length")
    scaling = fields.get("rope.scaling.type") or ("linear" if "rope.scale_linear" in fields else "none")
    if "rope_factors_long.weight" in factors or "rope_factors_short.weight" in factors:
        if original is None or len(factors) < 2:
            raise BuildRefused("the GGUF file has one set of rotary factors of two, or no original context length")
        rope |= {
            "rope_type": "longrope",
            "long_factor": [_round(value) for value in factors["rope_factors_long.weight"]],
            "short_factor": [_round(value) for value in factors["rope_factors_short.weight"]],
            "original_max_position_embeddings": int(original),
        }
        if "rope.scaling.attn_factor" in fields:
            rope["attention_factor"] = float(fields["rope.scaling.attn_factor"])
    elif "rope_freqs.weight" in factors:
        rope |= _match_llama_3(rope["rope_theta"], factors["rope_freqs.weight"])
    elif scaling in ("linear", "yarn"):
        factor = _round(fields.get("rope.scaling.factor") or fields.get("rope.scale_linear") or 0)
        if factor <= 0:
            raise BuildRefused(f"the GGUF file scales positions ({scaling}) and does not say by what factor")
        rope |= {"rope_type": scaling, "factor": factor}
        if scaling == "yarn":
            rope["original_max_position_embeddings"] = int(original or config["max_position_embeddings"])
            for name, key in (("attn_factor", "attention_factor"), ("yarn_beta_fast", "beta_fast"),
                              ("yarn_beta_slow", "beta_slow")):  # fmt: skip
                if f"rope.scaling.{name}" in fields:
                    rope[key] = _round(fields[f"rope.scaling.{name}"])
    elif scaling not in ("none", "longrope"):
        raise BuildRefused(f"the GGUF file scales positions by {str(scaling)[:40]!r}, which is not known here")
    return rope


def llama_3_factors(theta: float, pairs: int, factor: float) -> list[float]:
    """By what Llama 3.1 divides the frequency of each pair (transformers' ``llama3``)."""
    old, low, high = (LLAMA_3[k] for k in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"))
    found = []
    for pair in range(pairs):
        wave = 2 * math.pi * theta ** (pair / pairs)
        smooth = (old / wave - low) / (high - low)
        inside = 1 / ((1 - smooth) / factor + smooth)
        found.append(1.0 if wave < old / high else factor if wave > old / low else inside)
    return found


def _match_llama_3(theta: float, factors: Sequence[float]) -> dict[str, Any]:
    factor = _round(max(factors))
    wanted = llama_3_factors(theta, len(factors), factor)
    if any(abs(one - other) > 1e-4 * other for one, other in zip(factors, wanted, strict=True)):
        raise BuildRefused("the GGUF file has rotary factors (rope_freqs) that are not those of Llama 3.1 or 3.2")
    return {"rope_type": "llama3", "factor": factor, **LLAMA_3}


def find_ends(fields: Mapping[str, Any], tokens: Sequence[str], control: Sequence[bool]) -> list[int]:
    """Every token that ends an answer: those that the file names as such, and control tokens with such a name."""
    named = [fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    found = [int(token) for token in named if token is not None]
    found += [number for number, text in enumerate(tokens) if control[number] and text in END_NAMES]
    return list(dict.fromkeys(found))
