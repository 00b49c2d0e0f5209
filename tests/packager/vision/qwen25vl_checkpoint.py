"""A tiny Qwen2.5-VL: random weights by the published names, and transformers' own model of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from packager.vision.phi3v import DEVIATION, MEAN
from tests.tiny import make_tokenizer

MARKS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
PROCESSOR: dict[str, Any] = {
    "image_mean": list(MEAN), "image_processor_type": "Qwen2VLImageProcessor", "image_std": list(DEVIATION),
    "max_pixels": 200 * 784, "merge_size": 2, "min_pixels": 3136, "patch_size": 14,
    "processor_class": "Qwen2_5_VLProcessor", "temporal_patch_size": 2,
}  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_qwen25vl(directory: Path) -> Any:
    """Write the checkpoint into ``directory``, in bfloat16; transformers' model of it, in fp32."""
    import torch
    from safetensors.torch import save_file
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    directory.mkdir(parents=True)
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [*MARKS]})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)
    start, end, token, film = (tokenizer.convert_tokens_to_ids(mark) for mark in MARKS)
    text = {
        "vocab_size": len(tokenizer) + 8, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 2048,
        "initializer_range": 0.08, "rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2, "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}, "tie_word_embeddings": False,
    }  # fmt: skip
    vision = {
        "depth": 3, "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 96, "num_heads": 2, "in_chans": 3,
        "out_hidden_size": 64, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "window_size": 112,
        "fullatt_block_indexes": [1], "tokens_per_second": 2, "temporal_patch_size": 2,
    }  # fmt: skip
    marks = {
        "image_token_id": token, "video_token_id": film, "vision_start_token_id": start, "vision_end_token_id": end,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **marks)
    torch.manual_seed(5)
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            centre = 1.0 if "norm" in name or "ln_q" in name else 0.0
            parameter.data.uniform_(centre - 0.2, centre + 0.2)
        elif "visual" in name:
            parameter.data.normal_(0, 1.5 * parameter[0].numel() ** -0.5)
        parameter.data = parameter.data.bfloat16().float()
    tensors = {published(name): value.bfloat16().contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    document = {
        **text, **marks, "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl",
        "hidden_act": "silu", "torch_dtype": "bfloat16", "use_sliding_window": False, "vision_config": vision,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(document))
    (directory / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return model


def published(name: str) -> str:
    """As Qwen/Qwen2.5-VL-3B-Instruct has it, whatever this version of transformers calls it."""
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
