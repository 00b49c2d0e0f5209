"""Whether the graph that sees computes what the source does: features of a picture, by transformers and by the graph.

Run in every build, as the proof of two layers of the text model is; the numbers go into the evidence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from contract.errors import BuildRefused
from packager.sources.vision_part import VisionPart
from packager.subprocess_job import run_child
from packager.vision.jobs import VISION_PROOF, VisionProof, VisionProofJob
from packager.vision.process import EMBEDDING_FILE, ENCODER_FILE

BOUND = 1e-3
"""Of the spread (standard deviation) of the source's features: fp32 on both sides differs by some millionths of it."""


def prove_vision(vision: VisionPart, folder: Path, log: Path) -> VisionProof:
    """Compare the graph in ``folder`` with ``vision``.

    Raises:
        BuildRefused: it computes something else, or numbers that are not finite.
    """
    job = VisionProofJob(str(vision.directory), vision.shape, str(folder / ENCODER_FILE))
    proof = run_child(VISION_PROOF, job, log)
    # Not >: what is no number must not pass.
    if not proof.furthest <= BOUND * proof.spread:
        raise BuildRefused(
            f"features of a picture are off by {proof.furthest:.3g} of a spread of {proof.spread:.3g}, which is no "
            "rounding: the graph that sees computes something else than transformers; report it with config.json"
        )
    return proof


def describe_vision(proof: VisionProof, folder: Path) -> dict[str, Any]:
    """For the evidence: what was compared, and the bytes of each part."""
    sizes = {
        name: sum(path.stat().st_size for path in folder.glob(f"{name}*"))
        for name in ("model.onnx", ENCODER_FILE, EMBEDDING_FILE)
    }
    numbers = {
        key: float(f"{value:.3g}") if isinstance(value, float) and key != "cosine" else value
        for key, value in msgspec.to_builtins(proof).items()
    }
    return {"features": numbers, "bytes": sizes}
