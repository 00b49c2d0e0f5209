"""The process that asks a built model about pictures, and compares what it finds likely with the source."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from packager.evaluate import divergence
from packager.evaluate.check_process import Runtime
from packager.evaluate.picture_check import answer_about, rows_after
from packager.subprocess_job import Reporter, child_main
from packager.vision.families import vision_family
from packager.vision.family import Array, Tensors
from packager.vision.jobs import COMPARE, Answered, CompareJob, Looked, PictureAnswers
from packager.vision.pictures import draw

COUNT = "num_image_tokens"
"""By which the runtime knows how many features the encoder will make."""


def compare(job: CompareJob, reporter: Reporter) -> PictureAnswers:
    """Every case: the bundle's own answer, and how likely it finds the source's."""
    path = Path(job.checkpoint)
    family = vision_family(path)
    side = family.side(path)
    runtime = Runtime(Path(job.model), job.threads)
    rows = np.memmap(job.rows, dtype=np.float16, mode="r").reshape(-1, job.vocabulary)
    total, answered, at = divergence.Comparison(), [], 0
    for number, case in enumerate(job.cases, 1):
        inputs = {**family.prepare(path, draw(case.picture, side)).inputs, COUNT: np.array([case.features], np.int64)}
        ours = _score(runtime, case, inputs)
        theirs = np.asarray(rows[at : at + len(case.answer)], dtype=np.float32)
        at += len(case.answer)
        alone = divergence.Comparison()
        for comparison in (alone, total):
            comparison.add(theirs, ours, np.array(case.answer, dtype=np.int64))
        text = answer_about(runtime, case.prompt, inputs, job.limit)
        answered.append(Answered(case.picture, case.question, case.text, text, alone.summary()["kl"]))
        reporter.progress(number, len(job.cases))
    found = total.summary()
    return PictureAnswers(answered, found["tokens"], found["kl"], found["top1_agreement"])


def _score(runtime: Runtime, case: Looked, inputs: Tensors) -> Array:
    """Log-probabilities that predict each token of the source's answer."""
    return divergence.log_softmax(rows_after(runtime, case.prompt, inputs, case.answer))


if __name__ == "__main__":
    child_main(COMPARE, compare)
