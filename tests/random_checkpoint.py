"""Checkpoints with random weights of real models' shapes, written shard by shard in bounded memory.

    python -m tests.random_checkpoint phi-3.5-mini DIRECTORY

What they answer means nothing; what it takes to build, install and run them is what the real ones take. The
tokenizer has a token for every row, so that whatever comes out can be shown.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from packager.vision.judging import PROCESSOR_FILE
from packager.vision.phi3v import (
    DEVIATION,
    EMBEDDING,
    HEAD,
    MEAN,
    VisionShape,
    list_vision_weights,
)
from tests.tiny import TEMPLATE

SHARD_BYTES = 2**30
PIECE = 2**22
"""Elements made at a time."""

SPREAD = 0.02
"""Standard deviation of a weight, as most configurations name it."""

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

_LONGROPE = {
    "type": "longrope",
    "long_factor": [1.08 + 1.3 * pair for pair in range(48)],
    "short_factor": [1.0 + 0.04 * pair for pair in range(48)],
}
_LLAMA3 = {
    "rope_type": "llama3", "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip

SHAPES: dict[str, dict[str, Any]] = {
    "phi-3.5-mini": {
        "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "vocab_size": 32064, "hidden_size": 3072,
        "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "rope_theta": 10000.0,
        "rope_scaling": _LONGROPE, "sliding_window": 262144, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "hidden_act": "silu",
    },
    "phi-3.5-vision": {
        "architectures": ["Phi3VForCausalLM"], "model_type": "phi3_v", "vocab_size": 32064, "hidden_size": 3072,
        "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "rope_theta": 10000.0,
        "rope_scaling": {**_LONGROPE, "type": "su"}, "sliding_window": 262144, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False, "hidden_act": "silu", "embd_layer": EMBEDDING,
        "img_processor": {
            "image_dim_out": 1024, "model_name": "openai/clip-vit-large-patch14-336", "name": "clip_vision_model",
            "num_img_tokens": 144,
        },
    },
    "llama-3.2-1b": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048,
        "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 64, "max_position_embeddings": 131072, "rope_theta": 500000.0, "rope_scaling": _LLAMA3,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "hidden_act": "silu",
    },
    "mistral-7b": {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "vocab_size": 32768, "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "max_position_embeddings": 32768, "rope_theta": 1000000.0, "sliding_window": None,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "hidden_act": "silu",
    },
    "qwen-0.5b": {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896,
        "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "max_position_embeddings": 32768, "rope_theta": 1000000.0, "use_sliding_window": False, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False, "hidden_act": "silu",
    },
    "smollm2-135m": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 49152, "hidden_size": 576,
        "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "max_position_embeddings": 8192, "rope_theta": 100000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
        "hidden_act": "silu",
    },
}  # fmt: skip
"""By name; ``qwen-0.5b`` as its GGUF files hold it, with an embedding beside the lm_head."""

CLIP_LAYERS = {1024: 24}
"""By the encoder's width; small ones have three."""

PROCESSOR = {
    "image_mean": list(MEAN), "image_processor_type": "Phi3VImageProcessor", "image_std": list(DEVIATION),
    "num_crops": 4, "num_img_tokens": 144,
}  # fmt: skip

SMALL: dict[str, Any] = {"vocab_size": 512, "num_hidden_layers": 2}
"""What makes a shape small enough for tests, beside narrower widths; heads stay as wide as they are."""


def config_of(name: str, **changes: Any) -> dict[str, Any]:
    """The config.json of the shape ``name``, which :data:`SHAPES` has."""
    common = {"torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "use_cache": True}
    return {**common, **SHAPES[name], **changes}


def small_config(name: str) -> dict[str, Any]:
    """The same configuration with two narrow layers of two heads."""
    whole = SHAPES[name]
    head = whole.get("head_dim") or whole["hidden_size"] // whole["num_attention_heads"]
    widths = {"hidden_size": 2 * head, "intermediate_size": 4 * head, "num_attention_heads": 2}
    if "img_processor" in whole:
        widths["img_processor"] = {**whole["img_processor"], "image_dim_out": HEAD}
    shared = whole["num_key_value_heads"] < whole["num_attention_heads"]
    return config_of(name, **SMALL, **widths, num_key_value_heads=1 if shared else 2)


def make_random_checkpoint(
    directory: Path, config: dict[str, Any], *, seed: int = 0, shard_bytes: int = SHARD_BYTES
) -> Path:
    """A whole checkpoint of ``config`` in ``directory``, the same for the same ``seed``."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=1), "utf-8")
    (directory / "README.md").write_text("---\nlicense: apache-2.0\n---\nRandom weights.\n", "utf-8")
    if "img_processor" in config:
        (directory / PROCESSOR_FILE).write_text(json.dumps(PROCESSOR), "utf-8")
    make_tokenizer(directory, config["vocab_size"])
    shards = list(_cut(list_weights(config), shard_bytes))
    index: dict[str, str] = {}
    for number, tensors in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write(directory / file, tensors, np.random.default_rng([seed, number]))
        index |= {name: file for name, _ in tensors}
    if len(shards) > 1:
        document = {"metadata": {}, "weight_map": index}
        (directory / "model.safetensors.index.json").write_text(json.dumps(document), "utf-8")
    return directory


def list_weights(config: dict[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes that transformers' model of ``config`` has, tied ones once, and those of the part that sees."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    seen: dict[str, tuple[int, ...]] = {}
    if "img_processor" in config:
        width = config["img_processor"]["image_dim_out"]
        seen = list_vision_weights(VisionShape(width, 4 * width, CLIP_LAYERS.get(width, 3), config["hidden_size"]))
        rope = {**config["rope_scaling"], "type": "longrope"}
        config = {**config, "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "rope_scaling": rope}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    return [*((name, tuple(parameter.shape)) for name, parameter in model.named_parameters()), *seen.items()]


def make_tokenizer(directory: Path, vocabulary: int) -> None:
    """A byte-level tokenizer with ChatML's control tokens and a token for each of ``vocabulary`` rows."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*SPECIAL, *letters]
    names += [f"w{number}" for number in range(len(names), vocabulary)]
    tokenizer = Tokenizer(models.BPE(vocab={name: number for number, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=SPECIAL[0],
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        pad_token=SPECIAL[0],
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(directory)


def _cut(weights: list[tuple[str, tuple[int, ...]]], shard_bytes: int) -> Iterator[list[tuple[str, tuple[int, ...]]]]:
    shard: list[tuple[str, tuple[int, ...]]] = []
    size = 0
    for name, shape in weights:
        needed = 2 * int(np.prod(shape))
        if shard and size + needed > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append((name, shape))
        size += needed
    yield shard


def _write(path: Path, tensors: list[tuple[str, tuple[int, ...]]], random: np.random.Generator) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in tensors:
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    data = json.dumps(header).encode()
    data += b" " * (-len(data) % 8)
    with path.open("wb") as file:
        file.write(len(data).to_bytes(8, "little") + data)
        for name, shape in tensors:
            centre = 1.0 if re.search(r"norm[^.]*\.weight$", name) else 0.0
            values = _bfloat16(_QUANTILES + np.float32(centre))
            for start in range(0, int(np.prod(shape)), PIECE):
                count = min(PIECE, int(np.prod(shape)) - start)
                file.write(values[random.integers(0, 2**16, count, dtype=np.uint16)].tobytes())


_QUANTILES = np.random.default_rng(0).standard_normal(2**16, dtype=np.float32) * SPREAD
"""Drawn from again and again: many times as fast as from the distribution itself."""


def _bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--small", action="store_true", help="two narrow layers of it")
    arguments = parser.parse_args()
    config = small_config(arguments.shape) if arguments.small else config_of(arguments.shape)
    make_random_checkpoint(arguments.directory, config)


if __name__ == "__main__":
    main()
