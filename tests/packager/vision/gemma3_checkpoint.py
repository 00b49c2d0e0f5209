"""A tiny Gemma 3 that sees: random weights by the published names, and transformers' own model of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.tiny import make_tokenizer

SIDE = 448
"""Pixels along a side of a picture: 32 x 32 patches, of which two by two are a token."""

MARKS = ("<image_soft_token>", "<start_of_image>", "<end_of_image>")
PROCESSOR: dict[str, Any] = {
    "do_convert_rgb": None, "do_normalize": True, "do_pan_and_scan": None, "do_rescale": True, "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5], "image_processor_type": "Gemma3ImageProcessor", "image_seq_length": 256,
    "image_std": [0.5, 0.5, 0.5], "processor_class": "Gemma3Processor", "resample": 2,
    "rescale_factor": 0.00392156862745098, "size": {"height": SIDE, "width": SIDE},
}  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}<start_of_turn>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<start_of_image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def make_gemma3(directory: Path) -> Any:
    """Write the checkpoint into ``directory``, in bfloat16; transformers' model of it, in fp32."""
    import torch
    from safetensors.torch import save_file
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    directory.mkdir(parents=True)
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [*MARKS, "<start_of_turn>", "<end_of_turn>"]})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)
    token, begin, end = (tokenizer.convert_tokens_to_ids(mark) for mark in MARKS)
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = Gemma3Config(
        text_config={
            "vocab_size": len(tokenizer) + 8, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
            "head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 2048,
            "initializer_range": 0.08, "sliding_window": 300, "query_pre_attn_scalar": 32,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], **ends,
        },
        vision_config={
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": SIDE, "patch_size": 14, "vision_use_head": False,
        },
        mm_tokens_per_image=256, image_token_index=token, boi_token_index=begin, eoi_token_index=end,
    )  # fmt: skip
    torch.manual_seed(5)
    model = Gemma3ForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.data.uniform_(-0.2, 0.2)
        elif "vision" in name or "projection" in name:
            parameter.data.normal_(0, 1.5 * parameter.shape[-1] ** -0.5 if parameter.ndim < 4 else 0.1)
        parameter.data = parameter.data.bfloat16().float()
    tensors = {
        published(name): value.bfloat16().contiguous()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    document = {
        **config.to_dict(),
        "architectures": ["Gemma3ForConditionalGeneration"],
        **ends,
        "torch_dtype": "bfloat16",
    }
    document.pop("dtype")
    (directory / "config.json").write_text(json.dumps(document))
    (directory / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return model


def published(name: str) -> str:
    """As google/gemma-3-4b-it has it, whatever this version of transformers calls it."""
    name = name.removeprefix("model.")
    if name.startswith("language_model."):
        return name.replace("language_model.", "language_model.model.", 1)
    return name if name.startswith("multi_modal") else name.replace("vision_tower.", "vision_tower.vision_model.", 1)
