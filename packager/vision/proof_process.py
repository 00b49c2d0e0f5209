"""The process that makes features of a picture twice: with transformers' encoder, and with the graph written here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from contract.errors import BuildRefused
from packager.subprocess_job import Reporter, child_main
from packager.vision.jobs import VISION_PROOF, VisionProof, VisionProofJob
from packager.vision.phi3v import CROP, ENCODER, GRID, MERGED, PATCH, PREFIX, VisionShape
from packager.vision.stored import StoredWeights

SIDE = 2
"""Crops to a side of the picture: enough that an order mistaken for another would show."""

START = "vision_model."


def compare(job: VisionProofJob, reporter: Reporter) -> VisionProof:
    """Features of one picture, twice."""
    pixels = draw_pixels()
    theirs = source_features(StoredWeights(Path(job.checkpoint)), job.shape, pixels)
    reporter.progress(1, 2)
    ours = graph_features(job.graph, pixels)
    reporter.progress(2, 2)
    if ours.shape != theirs.shape or not np.isfinite(theirs).all():
        raise BuildRefused("the part that sees makes no features of a picture; its weights are damaged")
    return VisionProof(
        tokens=len(theirs),
        furthest=float(np.abs(ours - theirs).max()),
        spread=float(theirs.std()),
        cosine=float((ours * theirs).sum() / np.linalg.norm(ours) / np.linalg.norm(theirs)),
    )


def draw_pixels() -> npt.NDArray[np.float32]:
    """A picture as a processor hands it on: slopes, stripes and noise, and another in each crop."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:CROP, 0:CROP].astype(np.float32) / CROP
    crops = [
        np.stack([x * (number + 1) - y, np.sin(20 * y + number), random.standard_normal(y.shape) / 2])
        for number in range(SIDE * SIDE + 1)
    ]
    return np.stack(crops)[None].astype(np.float32)


def graph_features(graph: str, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """By the graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_prepacking", "1")
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    sizes = np.array([[SIDE * CROP, SIDE * CROP]], np.int64)
    return np.asarray(session.run(None, {"pixel_values": pixels, "image_sizes": sizes})[0])


def source_features(
    weights: StoredWeights, shape: VisionShape, pixels: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """By transformers' encoder, and the rest as the family's own code has it."""
    import torch
    from torch.nn.functional import gelu, linear

    def read(name: str) -> torch.Tensor:
        return torch.from_numpy(weights.read(f"{PREFIX}{name}"))

    with torch.inference_mode():
        seen = load_encoder(weights, shape)(torch.from_numpy(pixels[0]), output_hidden_states=True).hidden_states[-2]
        merged = _merge(seen[:, 1:].reshape(-1, GRID, GRID, shape.width))
        own = (
            merged[1:].reshape(SIDE, SIDE, MERGED, MERGED, -1).transpose(1, 2).reshape(SIDE * MERGED, SIDE * MERGED, -1)
        )
        end = read("sub_GN").reshape(1, 1, -1)
        lines = [torch.cat([plane, end.expand(len(plane), 1, -1)], 1).flatten(0, 1) for plane in (own, merged[0])]
        joined = torch.cat([lines[0], read("glb_GN").reshape(1, -1), lines[1]])
        inner = gelu(linear(joined, read("img_projection.0.weight"), read("img_projection.0.bias")))
        found = linear(inner, read("img_projection.2.weight"), read("img_projection.2.bias"))
    return np.asarray(found.numpy())


def _merge(patches: Any) -> Any:
    """Two by two patches side by side, the upper ones first."""
    import torch

    return torch.cat([patches[:, y::2, x::2] for y in (0, 1) for x in (0, 1)], -1)


def load_encoder(weights: StoredWeights, shape: VisionShape) -> Any:
    """transformers' own encoder with the checkpoint's weights."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        image_size=CROP,
        patch_size=PATCH,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
    )
    model = CLIPVisionModel(config).eval()
    own = {}
    for name, parameter in model.named_parameters():
        # Versions of transformers differ in whether the names have this beginning.
        read = weights.read(f"{ENCODER}{name.removeprefix(START)}")
        own[name] = torch.from_numpy(read).reshape(parameter.shape)
    model.load_state_dict(own, strict=False, assign=True)
    return model


if __name__ == "__main__":
    child_main(VISION_PROOF, compare)
