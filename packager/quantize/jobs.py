"""What the process that calibrates is asked, and what it answers; loads no torch."""

from __future__ import annotations

from msgspec import Struct

from packager.subprocess_job import Job, Task


class CalibrationJob(Job, frozen=True):
    """Round ``checkpoint`` on ``text`` (None: its own, or the passages with the digest ``passages``) into a GPTQ
    checkpoint at ``out``; what is done so far is kept in ``stages``. ``by_layer``: each
    layer is written as soon as it is rounded.
    """

    checkpoint: str
    quantizer: str
    out: str
    stages: str
    text: str | None
    block: int = 32
    passages: str | None = None
    symmetric: bool = False
    by_layer: bool = False


class CalibrationResult(Struct, frozen=True):
    """How many ``tokens`` were read and ``matrices`` rounded; whether scales were tuned."""

    tokens: int
    matrices: int
    tuned: bool


CALIBRATION = Task("packager.quantize.process", CalibrationJob, CalibrationResult, "calibrating")
