"""The process that makes features of pictures twice: with the reference, and with the graph written here."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from contract.errors import BuildRefused
from packager.subprocess_job import Reporter, child_main
from packager.vision.families import vision_family
from packager.vision.family import Array, Tensors
from packager.vision.jobs import VISION_PROOF, SeenFeatures, SeenPictures, VisionProofJob
from packager.vision.pictures import SCENES, draw


def compare(job: VisionProofJob, reporter: Reporter) -> SeenPictures:
    """Features of each picture, twice."""
    path = Path(job.checkpoint)
    family = vision_family(path)
    side = family.side(path)
    inputs = {name: family.prepare(path, draw(name, side)).inputs for name in SCENES}
    source = family.open_source(path, None)
    theirs = {}
    for number, (name, given) in enumerate(inputs.items(), 1):
        theirs[name] = source.features(given)
        reporter.progress(number, len(inputs) + 1)
    del source
    ours = graph_features(job.graph, inputs)
    return SeenPictures([_compare(name, ours[name], theirs[name]) for name in inputs])


def _compare(name: str, ours: Array, theirs: Array) -> SeenFeatures:
    if ours.shape != theirs.shape or not np.isfinite(theirs).all():
        raise BuildRefused("the part that sees makes no features of a picture; its weights are damaged")
    return SeenFeatures(
        name=name,
        tokens=len(theirs),
        furthest=float(np.abs(ours - theirs).max()),
        spread=float(theirs.std()),
        cosine=cosine(ours, theirs),
    )


def cosine(one: Array, other: Array) -> float:
    """Of the angle between two arrays; not in fp32, where sums of millions of numbers come to more than 1."""
    a, b = (each.astype(np.float64).reshape(-1) for each in (one, other))
    return float(np.minimum(1.0, a @ b / np.sqrt((a @ a) * (b @ b))))  # not min(): what is no number stays none


def graph_features(graph: str, pictures: dict[str, Tensors]) -> dict[str, Array]:
    """By the graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_prepacking", "1")
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return {name: np.asarray(session.run(None, inputs)[0]) for name, inputs in pictures.items()}


if __name__ == "__main__":
    child_main(VISION_PROOF, compare)
