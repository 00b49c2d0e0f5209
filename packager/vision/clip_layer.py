"""A layer of CLIP's and SigLIP's encoders, which differ by what stands between the two products of its MLP."""

from __future__ import annotations

from collections.abc import Callable

from packager.vision.graph_writer import MICROSOFT
from packager.vision.parts import Parts

Activation = Callable[[str, str], str]
"""Writes the node that makes of its first argument what it calls by its second."""


def clip_layer(parts: Parts, x: str, stem: str, name: str, heads: int, *, activation: Activation) -> str:
    """The layer whose weights' names begin with ``stem`` (transformers' names); those of its nodes with ``name``."""
    body = parts.body
    normed = parts.norm(x, f"{stem}layer_norm1", f"{name}_norm1")
    three = [parts.linear(normed, f"{stem}self_attn.{each}_proj", f"{name}_{each}") for each in "qkv"]
    attended = body.node("MultiHeadAttention", *three, name=f"{name}_attention", domain=MICROSOFT, num_heads=heads)
    out = parts.linear(attended, f"{stem}self_attn.out_proj", f"{name}_out")
    x = body.node("Add", x, out, name=f"{name}_between")
    normed = parts.norm(x, f"{stem}layer_norm2", f"{name}_norm2")
    active = activation(parts.linear(normed, f"{stem}mlp.fc1", f"{name}_fc1"), f"{name}_active")
    return body.node("Add", x, parts.linear(active, f"{stem}mlp.fc2", f"{name}_fc2"), name=f"{name}_end")
