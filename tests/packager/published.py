"""Checkpoints laid out as their makers publish them: config.json key for key, tokenizer, special tokens and template of
the same kind, weights in the same type; only sizes and weights are ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct

from tests.tiny import ANSWERS

NO_LIMIT = 1000000000000000019884624838656
"""What transformers writes for a tokenizer without a limit."""

CORPUS = [text for pair in ANSWERS.items() for text in pair] * 3
SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "initializer_range": 0.08,
}  # fmt: skip


class Layout(Struct, frozen=True):
    """One published repository. ``tokenizer`` makes it with the row's special tokens; ``lengths`` are tested."""

    config: dict[str, Any]
    tokenizer: Callable[[], Any]
    settings: dict[str, Any] = {}
    generation: dict[str, Any] | None = None
    template: str | None = None
    lengths: tuple[int, ...] = (40,)
    files: dict[str, str] = {}


def byte_level(specials: list[str], first: str | None = None, *, composes: bool = False) -> Callable[[], Any]:
    """A byte-level BPE as Llama 3, Qwen and SmolLM have; ``first`` stands before every text. Specials come last."""

    def make() -> Any:
        from tokenizers import (
            AddedToken,
            Tokenizer,
            decoders,
            models,
            normalizers,
            pre_tokenizers,
            processors,
            trainers,
        )

        tokenizer = Tokenizer(models.BPE())
        if composes:
            tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=320, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
        )
        tokenizer.train_from_iterator(CORPUS, trainer)
        tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
        if first is not None:
            tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{first} $A",
                pair=f"{first} $A {first} $B",
                special_tokens=[(first, tokenizer.token_to_id(first))],
            )
        return tokenizer

    return make


def sentence_piece(
    leading: list[str], trailing: list[str], *, prefix: bool, first: str | None, stripping: tuple[str, ...] = ()
) -> Callable[[], Any]:
    """A BPE as SentencePiece makes it: bytes for what it lacks, a mark for spaces, ``prefix`` before every text.

    Llama 2, Mistral, Phi-3 and TinyLlama put the mark before a text, Gemma does not. ``leading`` are the first ids,
    ``trailing`` the last; those of ``stripping`` take the white space behind them, as Phi-3's do.
    """

    def make() -> Any:
        from tokenizers import (
            AddedToken,
            Tokenizer,
            decoders,
            models,
            normalizers,
            pre_tokenizers,
            processors,
            trainers,
        )

        trained = Tokenizer(models.BPE())
        trained.normalizer = normalizers.Replace(" ", "▁")
        trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # a mark begins a piece or is none
        trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=120, show_progress=False))
        document = json.loads(trained.to_str())
        words = [*leading, *(f"<0x{number:02X}>" for number in range(256))]
        words += sorted(set(document["model"]["vocab"]) - set(words), key=document["model"]["vocab"].get)
        vocabulary = {word: number for number, word in enumerate(words)}
        merges = [tuple(merge) for merge in document["model"]["merges"]]
        tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        marks = [normalizers.Prepend("▁")] if prefix else []
        tokenizer.normalizer = normalizers.Sequence([*marks, normalizers.Replace(" ", "▁")])
        strip = [decoders.Strip(" ", 1, 0)] if prefix else []
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
        special = [
            AddedToken(text, special=True, normalized=False, rstrip=text in stripping) for text in [*leading, *trailing]
        ]
        tokenizer.add_special_tokens(special)
        if first is not None:
            tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{first} $A", pair=f"{first} $A {first} $B", special_tokens=[(first, vocabulary[first])]
            )
        return tokenizer

    return make


def write_layout(directory: Path, layout: Layout, *, dtype: str | None = None) -> Path:
    """The checkpoint of ``layout`` in ``directory``; its weights in ``dtype``, that of config.json unless given."""
    import torch
    import transformers

    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = layout.tokenizer()
    size = tokenizer.get_vocab_size()
    config = {**layout.config}
    rows = config.pop("rows", 0)
    """How many rows more, or fewer, than tokens."""
    published = {**SIZES, **config, "vocab_size": size + rows}
    (directory / "config.json").write_text(json.dumps(published))
    torch.set_num_threads(1)
    torch.manual_seed(11)
    resolved = transformers.AutoConfig.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_config(resolved, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            centre = 0.0 if "bias" in name or "gemma" in resolved.model_type else 1.0
            parameter.data.uniform_(centre - 0.1, centre + 0.1)
    model.generation_config = transformers.GenerationConfig()
    model.to(getattr(torch, dtype or config["torch_dtype"])).save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps(published))
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": NO_LIMIT, **layout.settings}
    settings["added_tokens_decoder"] = {
        str(number): {
            "content": token.content, "lstrip": token.lstrip, "normalized": token.normalized, "rstrip": token.rstrip,
            "single_word": token.single_word, "special": token.special,
        }
        for number, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }  # fmt: skip
    if layout.template is not None:
        settings["chat_template"] = layout.template
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    if layout.generation is None:
        (directory / "generation_config.json").unlink(missing_ok=True)
    else:
        (directory / "generation_config.json").write_text(json.dumps(layout.generation))
    for name, text in layout.files.items():
        (directory / name).write_text(text)
    return directory


CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TURNS = (
    "{{ bos_token }}{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else "
    "message['role'] %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + "
    "' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
PHI = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)

LLAMA_2 = sentence_piece(["<unk>", "<s>", "</s>"], [], prefix=True, first="<s>")
PHI_3 = sentence_piece(
    ["<unk>", "<s>", "</s>"],
    ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"],
    prefix=True,
    first="<s>",
    stripping=("</s>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"),
)
GEMMA = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
QWEN = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], composes=True)
LLAMA_3 = byte_level(
    ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"],
    "<|begin_of_text|>",
)
PAIRS = 16


def _longrope(**more: Any) -> dict[str, Any]:
    return {
        "long_factor": [1.08 + 0.9 * pair for pair in range(more.pop("pairs", PAIRS))],
        "short_factor": [1.0 + 0.04 * pair for pair in range(more.pop("count", PAIRS))],
        "type": "longrope",
        **more,
    }


_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-05,
    "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False, "pretraining_tp": 1, "use_cache": True,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
_LLAMA_3: dict[str, Any] = {**_LLAMA, "rope_theta": 500000.0, "max_position_embeddings": 131072}
_LLAMA_3_ROPE = {
    "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}  # fmt: skip
_LLAMA_3_ROW: dict[str, Any] = {
    "settings": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "model_max_length": 131072},
    "template": HEADERS,
}
_MISTRAL: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu", "rms_norm_eps": 1e-05,
    "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "rope_theta": 1000000.0, "sliding_window": None,
    "max_position_embeddings": 32768, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True,
}  # fmt: skip
_QWEN: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "rms_norm_eps": 1e-06,
    "attention_dropout": 0.0, "bos_token_id": 320, "eos_token_id": 322, "max_position_embeddings": 32768,
    "max_window_layers": 21, "rope_theta": 1000000.0, "sliding_window": 32768, "use_sliding_window": False,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True, "rows": 13,
}  # fmt: skip
_QWEN_ROW: dict[str, Any] = {
    "settings": {
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 131072,
    },
    "generation": {"bos_token_id": 320, "eos_token_id": [322, 320], "pad_token_id": 320, "do_sample": True},
    "template": CHATML,
}
_PHI_3: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
    "hidden_act": "silu", "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "original_max_position_embeddings": 4096,
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True, "num_key_value_heads": 2,
}  # fmt: skip
_PHI_3_ROW: dict[str, Any] = {
    "settings": {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"},
    "template": PHI,
}
_GEMMA: dict[str, Any] = {
    "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
    "head_dim": 32, "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
    "max_position_embeddings": 8192, "torch_dtype": "bfloat16", "use_cache": True,
}  # fmt: skip
_GEMMA_ROW: dict[str, Any] = {
    "settings": {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"},
    "generation": {"bos_token_id": 2, "eos_token_id": [1, 5], "pad_token_id": 0, "do_sample": True},
    "template": TURNS,
}
_GEMMA_3: dict[str, Any] = {
    **_GEMMA, "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "attn_logit_softcapping": None,
    "final_logit_softcapping": None, "cache_implementation": "hybrid", "query_pre_attn_scalar": 32,
    "eos_token_id": [1, 5], "rope_local_base_freq": 10000, "rope_theta": 1000000, "rope_scaling": None,
    "sliding_window": 512, "sliding_window_pattern": 6, "max_position_embeddings": 32768, "num_hidden_layers": 6,
}  # fmt: skip
GEMMA_TOKENIZER = sentence_piece(GEMMA, [], prefix=False, first="<bos>")

_DEEPSEEK_TOKENS = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"]
DEEPSEEK = byte_level(_DEEPSEEK_TOKENS, "<｜begin▁of▁sentence｜>")
DEEPSEEK_QWEN = byte_level(_DEEPSEEK_TOKENS, "<｜begin▁of▁sentence｜>", composes=True)
_DEEPSEEK_ROW: dict[str, Any] = {
    "settings": {
        "bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>", "model_max_length": 16384,
    },
    "generation": {"bos_token_id": 320, "eos_token_id": 321, "do_sample": True, "temperature": 0.6, "top_p": 0.95},
    "template":
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '<｜User｜>' + "
        "message['content'] }}{% else %}{{ '<｜Assistant｜>' + message['content'].split('</think>')[-1] + "
        "'<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<｜Assistant｜><think>\n' }}{% endif %}",
}  # fmt: skip

PUBLISHED: dict[str, Layout] = {
    "phi-2": Layout(
        {
            "architectures": ["PhiForCausalLM"], "model_type": "phi", "attention_dropout": 0.0, "embd_pdrop": 0.0,
            "bos_token_id": 320, "eos_token_id": 320, "hidden_act": "gelu_new", "layer_norm_eps": 1e-05,
            "max_position_embeddings": 2048, "num_key_value_heads": 2, "partial_rotary_factor": 0.4,
            "qk_layernorm": False, "resid_pdrop": 0.1, "rope_scaling": None, "rope_theta": 10000.0,
            "tie_word_embeddings": False, "torch_dtype": "float16", "use_cache": True, "hidden_size": 160, "rows": 63,
        },
        byte_level(["<|endoftext|>"]),
        {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"},
    ),
    "phi-3-mini-4k": Layout(
        {**_PHI_3, "max_position_embeddings": 4096, "sliding_window": 2047, "rope_scaling": None},
        PHI_3,
        generation={"bos_token_id": 1, "eos_token_id": [379, 380, 382], "pad_token_id": 379},
        **_PHI_3_ROW,
    ),
    "phi-3.5-mini": Layout(
        {**_PHI_3, "max_position_embeddings": 131072, "sliding_window": 262144, "rope_scaling": _longrope()},
        PHI_3,
        **_PHI_3_ROW,
    ),
    "phi-4-mini": Layout(
        {
            **_PHI_3, "max_position_embeddings": 131072, "sliding_window": 262144, "tie_word_embeddings": True,
            "partial_rotary_factor": 0.75, "rope_scaling": _longrope(pairs=24, count=24), "bos_token_id": 320,
            "eos_token_id": 320, "pad_token_id": 320, "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False,
            "num_key_value_heads": 1, "hidden_size": 128,
        },
        byte_level(["<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>", "<|system|>"]),
        {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        {"bos_token_id": 320, "eos_token_id": [322, 320], "pad_token_id": 320},
        PHI.replace("\n", ""),
    ),
    "gemma": Layout(
        {
            **_GEMMA, "architectures": ["GemmaForCausalLM"], "model_type": "gemma", "hidden_act": "gelu",
            "hidden_activation": None, "rope_scaling": None,
        },
        GEMMA_TOKENIZER,
        **_GEMMA_ROW,
    ),
    "gemma-2": Layout(
        {
            **_GEMMA, "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0, "cache_implementation": "hybrid", "hidden_act": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": 32, "sliding_window": 4096, "sliding_window_size": 4096,
        },
        GEMMA_TOKENIZER,
        **_GEMMA_ROW,
    ),
    "gemma-3-270m": Layout(
        {**_GEMMA_3, "layer_types": [*["sliding_attention"] * 5, "full_attention"], "_sliding_window_pattern": 6},
        GEMMA_TOKENIZER,
        lengths=(40, 600),
        **_GEMMA_ROW,
    ),
    "gemma-3-1b": Layout(
        {**_GEMMA_3, "rows": -1},
        sentence_piece(GEMMA, ["<image_soft_token>"], prefix=False, first="<bos>"),
        {
            **_GEMMA_ROW["settings"], "boi_token": "<start_of_image>", "image_token": "<image_soft_token>",
            "extra_special_tokens": {"image_token": "<image_soft_token>"},
        },
        _GEMMA_ROW["generation"],
        TURNS,
        (40, 600),
        {"added_tokens.json": json.dumps({"<image_soft_token>": 376})},
    ),
    "mistral-7b-v0.1": Layout(
        {**_MISTRAL, "sliding_window": 4096, "rope_theta": 10000.0},
        LLAMA_2,
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        {"bos_token_id": 1, "eos_token_id": 2},
        INST,
    ),
    "mistral-7b-v0.3": Layout(
        _MISTRAL,
        sentence_piece(["<unk>", "<s>", "</s>", "[INST]", "[/INST]"], [], prefix=True, first="<s>"),
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        {"bos_token_id": 1, "eos_token_id": 2},
        INST,
    ),
    "mistral-nemo": Layout(
        {**_MISTRAL, "head_dim": 64, "max_position_embeddings": 131072, "bos_token_id": 321, "eos_token_id": 322},
        byte_level(["<unk>", "<s>", "</s>", "[INST]", "[/INST]"], "<s>"),
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        {"bos_token_id": 321, "eos_token_id": 322},
        INST,
    ),
    "ministral-8b": Layout(
        {
            **_MISTRAL, "head_dim": 64, "sliding_window": 32768, "rope_theta": 100000000.0, "bos_token_id": 321,
            "eos_token_id": 322,
        },
        byte_level(["<unk>", "<s>", "</s>", "[INST]", "[/INST]"], "<s>"),
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        {"bos_token_id": 321, "eos_token_id": 322},
        INST,
    ),
    "llama-2": Layout(
        {
            **_LLAMA, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 4096, "rope_scaling": None,
            "torch_dtype": "float16", "num_key_value_heads": 2,
        },
        LLAMA_2,
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None},
        {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "temperature": 0.6, "do_sample": True},
        INST,
    ),
    "llama-2-with-padding": Layout(
        {
            **_LLAMA, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 4096, "rope_scaling": None,
            "torch_dtype": "float16", "num_key_value_heads": 2, "rows": -1,
        },
        sentence_piece(["<unk>", "<s>", "</s>"], ["[PAD]"], prefix=True, first="<s>"),
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "[PAD]"},
        {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        INST,
        files={"added_tokens.json": json.dumps({"[PAD]": 373})},
    ),
    "llama-3": Layout(
        {**_LLAMA_3, "max_position_embeddings": 8192, "rope_scaling": None, "bos_token_id": 320, "eos_token_id": 321},
        LLAMA_3,
        generation={"bos_token_id": 320, "eos_token_id": [321, 325], "do_sample": True},
        **_LLAMA_3_ROW,
    ),
    "llama-3.1": Layout(
        {**_LLAMA_3, "rope_scaling": _LLAMA_3_ROPE, "bos_token_id": 320, "eos_token_id": [321, 324, 325]},
        LLAMA_3,
        generation={"bos_token_id": 320, "eos_token_id": [321, 324, 325], "do_sample": True},
        **_LLAMA_3_ROW,
    ),
    "llama-3.2": Layout(
        {
            **_LLAMA_3, "rope_scaling": {**_LLAMA_3_ROPE, "factor": 32.0}, "bos_token_id": 320, "head_dim": 32,
            "eos_token_id": [321, 324, 325], "tie_word_embeddings": True,
        },
        LLAMA_3,
        generation={"bos_token_id": 320, "eos_token_id": [321, 324, 325], "do_sample": True},
        **_LLAMA_3_ROW,
    ),
    "tinyllama": Layout(
        {**_LLAMA, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 2048, "rope_theta": 10000.0},
        LLAMA_2,
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"},
        {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_length": 2048},
        PHI.replace("<|end|>", "</s>"),
    ),
    "longchat-linear": Layout(
        {
            **_LLAMA, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 16384, "torch_dtype": "float16",
            "rope_scaling": {"factor": 8.0, "type": "linear"}, "num_key_value_heads": 2,
        },
        LLAMA_2,
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    ),
    "qwen2.5": Layout(_QWEN, QWEN, **_QWEN_ROW),
    "qwen2.5-yarn": Layout(
        {
            **_QWEN,
            "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"},
        },
        QWEN,
        **_QWEN_ROW,
    ),
    "qwen3": Layout(
        {
            **_QWEN, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False,
            "head_dim": 64, "max_position_embeddings": 40960, "rope_scaling": None, "sliding_window": None,
        },
        byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]),
        **_QWEN_ROW,
    ),
    "deepseek-r1-distill-qwen": Layout(
        {**_QWEN, "bos_token_id": 320, "eos_token_id": 321, "max_position_embeddings": 131072, "rope_theta": 10000,
         "sliding_window": 4096, "tie_word_embeddings": False},
        DEEPSEEK_QWEN,
        **_DEEPSEEK_ROW,
    ),
    "deepseek-r1-distill-llama": Layout(
        {**_LLAMA_3, "rope_scaling": _LLAMA_3_ROPE, "bos_token_id": 320, "eos_token_id": 321},
        DEEPSEEK,
        **_DEEPSEEK_ROW,
    ),
    "smollm2": Layout(
        {
            **_LLAMA, "bos_token_id": 321, "eos_token_id": 322, "pad_token_id": 322, "max_position_embeddings": 8192,
            "rope_theta": 100000, "is_llama_config": True, "rope_interleaved": False, "tie_word_embeddings": True,
            "rope_scaling": None,
        },
        byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
        {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "model_max_length": 8192},
        {"bos_token_id": 321, "eos_token_id": 322, "pad_token_id": 322},
        CHATML,
    ),
    "smollm3": Layout(
        {
            "architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "attention_bias": False,
            "attention_dropout": 0.0, "bos_token_id": 320, "eos_token_id": 322, "pad_token_id": 320,
            "hidden_act": "silu", "rms_norm_eps": 1e-06, "rope_theta": 5000000.0, "max_position_embeddings": 65536,
            "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0], "num_hidden_layers": 4,
            "layer_types": ["full_attention"] * 4, "rope_scaling": None, "sliding_window": None,
            "use_sliding_window": False, "mlp_bias": False, "max_window_layers": 28, "tie_word_embeddings": True,
            "torch_dtype": "bfloat16", "use_cache": False, "pretraining_tp": 2,
        },
        QWEN,
        {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "model_max_length": 131072},
        {"bos_token_id": 320, "eos_token_id": 322, "pad_token_id": 320},
        CHATML,
    ),
    "granite-3.3": Layout(
        {
            "architectures": ["GraniteForCausalLM"], "model_type": "granite", "attention_bias": False,
            "attention_dropout": 0.0, "attention_multiplier": 0.015625, "bos_token_id": 320, "eos_token_id": 320,
            "pad_token_id": 320, "embedding_multiplier": 12.0, "hidden_act": "silu", "logits_scaling": 8.0,
            "max_position_embeddings": 131072, "mlp_bias": False, "residual_multiplier": 0.22, "rms_norm_eps": 1e-05,
            "rope_scaling": None, "rope_theta": 10000000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
            "use_cache": True,
        },
        byte_level(["<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"]),
        {"bos_token": "<|end_of_text|>", "eos_token": "<|end_of_text|>", "pad_token": "<|end_of_text|>"},
        {"bos_token_id": 320, "eos_token_id": 320, "pad_token_id": 320},
        "{% for message in messages %}{{ '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + "
        "message['content'] + '<|end_of_text|>\n' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}",
    ),
}  # fmt: skip
