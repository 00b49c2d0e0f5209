"""transformers' own models, for comparison, with a checkpoint's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from packager.vision.stored import StoredWeights

START = "vision_model."
"""Versions of transformers differ in whether names of weights begin with it."""


def load_whole(kind: str, path: Path) -> Any:
    """transformers' class ``kind`` with all weights of the checkpoint in ``path``, in their own types."""
    import transformers

    return getattr(transformers, kind).from_pretrained(path, dtype="auto").eval()


def give_weights(model: Any, weights: StoredWeights, stem: str) -> Any:
    """``model`` with the weights whose published names begin with ``stem``, in fp32, ready to be run."""
    import torch

    own = {
        name: torch.from_numpy(weights.read(f"{stem}{name.removeprefix(START)}")).reshape(parameter.shape)
        for name, parameter in model.named_parameters()
    }
    model.load_state_dict(own, strict=False, assign=True)
    return model.eval()
