"""Whether the graph that sees computes what the source does: features of pictures, by the reference and by the graph.

Run in every build, as the proof of two layers of the text model is; the numbers go into the evidence. With quantised
weights they choose the type: the smallest whose features are near enough.
"""

from __future__ import annotations

from pathlib import Path

from contract.errors import BuildRefused
from packager.build.plan import BuildPlan
from packager.sources.vision_part import VisionPart
from packager.subprocess_job import run_child
from packager.vision.family import ENCODER_FILE, EncoderType
from packager.vision.jobs import BOUND, LEAST_COSINE, VISION, VISION_PROOF, VisionJob, VisionProof, VisionProofJob


def build_vision(vision: VisionPart, plan: BuildPlan, out: Path, log: Path) -> VisionProof:
    """Put the graphs of ``vision`` beside the decoder in ``out``: beside a quantised one with the smallest weights that
    keep the features of pictures.

    Raises:
        BuildRefused: they cannot be written, or compute something else than the source.
    """
    rejected: dict[str, float] = {}
    for encoder in encoder_types(plan):
        run_child(VISION, VisionJob(str(vision.directory), str(out), encoder, plan.own_embedding), log)
        proof = prove_vision(vision, out, encoder, log)
        if encoder == "float" or proof.cosine >= LEAST_COSINE:
            return VisionProof(encoder, proof.pictures, rejected)
        rejected[encoder] = float(f"{proof.cosine:.6f}")
    raise AssertionError("fp32 is always among the types")


def encoder_types(plan: BuildPlan) -> list[EncoderType]:
    """Which are tried, smallest first."""
    return ["int8", "fp16", "float"] if plan.quantised and plan.ep == "cpu" else ["float"]


def prove_vision(vision: VisionPart, folder: Path, encoder: EncoderType, log: Path) -> VisionProof:
    """Compare the graph in ``folder``, whose weights are of that type, with ``vision``.

    Raises:
        BuildRefused: in fp32 it computes something else, or numbers that are not finite.
    """
    job = VisionProofJob(str(vision.directory), str(folder / ENCODER_FILE))
    proof = VisionProof(encoder, run_child(VISION_PROOF, job, log).pictures)
    if encoder == "float" and not proof.furthest <= BOUND:
        raise BuildRefused(
            f"features of a picture are off by {proof.furthest:.3g} of their spread, which is no rounding: the graph "
            "that sees computes something else than the reference; report it with config.json"
        )
    return proof
