"""The graph that makes features of pictures for Gemma 3: SigLIP, patches pooled to 256 tokens, norm and projection."""

from __future__ import annotations

from pathlib import Path

from packager.vision.clip_layer import clip_layer
from packager.vision.family import EncoderType, Progress
from packager.vision.gemma3 import ENCODER, PROJECTOR, TOKENS, Gemma3Shape
from packager.vision.graph_writer import GraphWriter, Nodes, value
from packager.vision.parts import Parts
from packager.vision.picture_loop import write_picture_loop
from packager.vision.stored import StoredWeights


def write_gemma3_encoder(
    path: Path, weights: StoredWeights, shape: Gemma3Shape, on_progress: Progress, kind: EncoderType = "float"
) -> None:
    """Write it to ``path``, the weights of its products as ``kind`` says."""
    with GraphWriter(path) as graph:
        body = Nodes()
        parts = Parts(graph, body, weights, kind, shape.epsilon)
        parts.constant("zero", [0])
        features = _project(parts, _encode(parts, shape, on_progress), shape)
        counted = graph.node("Shape", "pixel_values", name="counted", start=0, end=1)
        write_picture_loop(graph, body, features, shape.hidden, counted=counted, tokens=TOKENS)
        graph.save(
            [value("pixel_values", "FLOAT", ["pictures", 3, shape.side, shape.side])],
            [value("image_features", "FLOAT", ["pictures", TOKENS, shape.hidden])],
        )


def _encode(parts: Parts, shape: Gemma3Shape, on_progress: Progress) -> str:
    """The patches' features of the last layer."""
    body, width = parts.body, shape.width
    which = body.node("Unsqueeze", "number", "zero", name="which")
    pixels = body.node("Gather", "pixel_values", which, name="pixels", axis=0)
    patches = body.node(
        "Conv",
        pixels,
        parts.weight(f"{ENCODER}embeddings.patch_embedding.weight"),
        parts.weight(f"{ENCODER}embeddings.patch_embedding.bias"),
        name="patches",
        kernel_shape=[shape.patch, shape.patch],
        strides=[shape.patch, shape.patch],
    )
    flat = body.node("Reshape", patches, parts.constant("flat_shape", [0, width, -1]), name="flat")
    rows = body.node("Transpose", flat, name="patch_rows", perm=[0, 2, 1])
    positions = parts.weight(f"{ENCODER}embeddings.position_embedding.weight")
    x = body.node("Add", rows, positions, name="with_positions")
    for number in range(shape.layers):
        x = _layer(parts, x, number, shape.heads)
        on_progress(number + 1, shape.layers)
    return parts.norm(x, f"{ENCODER}post_layernorm", "features")


def _layer(parts: Parts, x: str, number: int, heads: int) -> str:
    def activation(inner: str, name: str) -> str:
        return parts.body.node("Gelu", inner, name=name, approximate="tanh")

    return clip_layer(parts, x, f"{ENCODER}encoder.layers.{number}.", f"layer_{number}", heads, activation=activation)


def _project(parts: Parts, features: str, shape: Gemma3Shape) -> str:
    """The means of squares of patches, as tokens of the text model's width."""
    body = parts.body
    turned = body.node("Transpose", features, name="turned", perm=[0, 2, 1])
    plane_shape = parts.constant("plane_shape", [1, shape.width, shape.grid, shape.grid])
    plane = body.node("Reshape", turned, plane_shape, name="plane")
    square = [shape.pooled, shape.pooled]
    pooled = body.node("AveragePool", plane, name="pooled", kernel_shape=square, strides=square)
    token_shape = parts.constant("token_shape", [shape.width, TOKENS])
    columns = body.node("Reshape", pooled, token_shape, name="token_columns")
    tokens = body.node("Transpose", columns, name="tokens", perm=[1, 0])
    normed = parts.root_norm(tokens, f"{PROJECTOR}mm_soft_emb_norm", "tokens_normed", offset=1.0)
    projection = f"{PROJECTOR}mm_input_projection_weight"
    return parts.product(normed, projection, parts.read(projection).T, "seen")
