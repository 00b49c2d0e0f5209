"""A tiny Phi-3.5-vision: random weights by the published names, in their form, and transformers' parts of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from packager.vision.phi3v import DEVIATION, MEAN, PREFIX
from tests.packager.families import make_random
from tests.tiny import VOCABULARY

WIDTH, INNER, LAYERS = 64, 96, 3
CONTEXT = 8192

EMBEDDING = {
    "embedding_cls": "image", "hd_transform_order": "sub_glb", "projection_cls": "mlp", "use_hd_transform": True,
    "with_learnable_separator": True,
}  # fmt: skip
ENCODER = {
    "image_dim_out": WIDTH, "model_name": "openai/clip-vit-large-patch14-336", "name": "clip_vision_model",
    "num_img_tokens": 144,
}  # fmt: skip
PROCESSOR = {
    "auto_map": {"AutoProcessor": "processing_phi3_v.Phi3VProcessor"},
    "do_convert_rgb": True, "image_mean": list(MEAN), "image_processor_type": "Phi3VImageProcessor",
    "image_std": list(DEVIATION), "num_crops": 4, "num_img_tokens": 144,
}  # fmt: skip


def make_phi3v(directory: Path, *, hidden: int = 64) -> Path:
    """Write the checkpoint into ``directory``."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import Phi3Config

    scaling = {
        "type": "su", "short_factor": [1.0 + 0.05 * pair for pair in range(hidden // 4)],
        "long_factor": [1.5 + 0.4 * pair for pair in range(hidden // 4)],
    }  # fmt: skip
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": hidden, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 2, "original_max_position_embeddings": 4096, "sliding_window": 262144,
        "initializer_range": 0.08,
    }  # fmt: skip
    make_random(directory, Phi3Config(**sizes, rope_scaling={**scaling, "type": "longrope"}))
    published = {
        **sizes,
        "architectures": ["Phi3VForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_phi3_v.Phi3VConfig"},
        "_attn_implementation": "flash_attention_2",
        "embd_layer": EMBEDDING,
        "hidden_act": "silu",
        "img_processor": ENCODER,
        "model_type": "phi3_v",
        "rms_norm_eps": 1e-5,
        "rope_scaling": scaling,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    (directory / "config.json").write_text(json.dumps(published, indent=1))
    (directory / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    vision = make_vision_weights(hidden)
    save_file(
        {**load_file(directory / "model.safetensors"), **{PREFIX + name: tensor for name, tensor in vision.items()}},
        directory / "model.safetensors",
        metadata={"format": "pt"},
    )
    assert all(tensor.dtype == torch.float32 for tensor in vision.values())
    return directory


def clip_config() -> Any:
    """The encoder's, as CLIP ViT-L/14-336 but for its widths."""
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=WIDTH // 64,
        image_size=336, patch_size=14, projection_dim=32, hidden_act="quick_gelu", layer_norm_eps=1e-5,
    )  # fmt: skip


def make_vision_weights(hidden: int) -> dict[str, Any]:
    """Its weights by the published names without their prefix: numbers of NumPy's, the same with every torch."""
    import torch
    from transformers import CLIPVisionModel

    with torch.device("meta"):
        names = {
            "img_processor." + clip_name(name): tuple(tensor.shape)
            for name, tensor in CLIPVisionModel(clip_config()).named_parameters()
        }
    names |= {
        "glb_GN": (1, 1, 4 * WIDTH), "sub_GN": (1, 1, 1, 4 * WIDTH),
        "img_projection.0.weight": (hidden, 4 * WIDTH), "img_projection.0.bias": (hidden,),
        "img_projection.2.weight": (hidden, hidden), "img_projection.2.bias": (hidden,),
    }  # fmt: skip
    random = np.random.default_rng(7)
    found: dict[str, Any] = {}
    for name in sorted(names):
        values = random.standard_normal(names[name]).astype(np.float32)
        scale = 0.3 if len(names[name]) < 2 or name.endswith("GN") else 1.5 * names[name][-1] ** -0.5
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        found[name] = torch.from_numpy((scale * values + centre).astype(np.float32))
    return found


def clip_name(name: str) -> str:
    """As published, whatever this version of transformers calls it."""
    return name if name.startswith("vision_model.") else f"vision_model.{name}"


def load_clip(directory: Path) -> Any:
    """transformers' own encoder with the weights of the checkpoint."""
    from safetensors.torch import load_file
    from transformers import CLIPVisionModel

    start = f"{PREFIX}img_processor."
    stored = {
        name.removeprefix(start): tensor
        for name, tensor in load_file(directory / "model.safetensors").items()
        if name.startswith(start)
    }
    model = CLIPVisionModel(clip_config()).eval()
    own = {name: stored[clip_name(name)] for name in model.state_dict() if clip_name(name) in stored}
    _, unexpected = model.load_state_dict(own, strict=False)
    assert not unexpected
    return model


def reference_features(directory: Path, pixels: npt.NDArray[np.float32], sizes: npt.NDArray[np.int64]) -> Any:
    """What pictures become: by transformers' encoder, and for the rest pixel by pixel as the family is described."""
    import torch
    from safetensors.torch import load_file

    stored = load_file(directory / "model.safetensors")
    clip = load_clip(directory)
    found = []
    with torch.no_grad():
        for crops, (height, width) in zip(torch.from_numpy(pixels), sizes.tolist(), strict=True):
            rows, columns = height // 336, width // 336
            seen = clip(crops[: 1 + rows * columns], output_hidden_states=True).hidden_states[-2][:, 1:]
            merged = _merge(seen.reshape(-1, 24, 24, seen.shape[-1]))
            lines = []
            for y in range(rows * 12):
                for x in range(columns * 12):
                    lines.append(merged[1 + y // 12 * columns + x // 12, y % 12, x % 12])
                lines.append(stored[f"{PREFIX}sub_GN"].flatten())
            lines.append(stored[f"{PREFIX}glb_GN"].flatten())
            for y in range(12):
                lines += [*merged[0, y], stored[f"{PREFIX}sub_GN"].flatten()]
            inner = torch.nn.functional.linear(
                torch.stack(lines), stored[f"{PREFIX}img_projection.0.weight"], stored[f"{PREFIX}img_projection.0.bias"]
            )
            found.append(
                torch.nn.functional.linear(
                    torch.nn.functional.gelu(inner),
                    stored[f"{PREFIX}img_projection.2.weight"],
                    stored[f"{PREFIX}img_projection.2.bias"],
                )
            )
    return torch.cat(found).numpy()


def _merge(patches: Any) -> Any:
    """Each two by two patches as one token: left and right of the upper row, then of the lower."""
    import torch

    upper, lower = patches[:, 0::2], patches[:, 1::2]
    return torch.cat([upper[:, :, 0::2], upper[:, :, 1::2], lower[:, :, 0::2], lower[:, :, 1::2]], -1)
