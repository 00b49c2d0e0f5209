"""What the processes that write and prove the graphs that see are asked, and what they answer."""

from __future__ import annotations

from msgspec import Struct

from packager.subprocess_job import Job, Task
from packager.vision.phi3v import VisionShape


class VisionJob(Job, frozen=True):
    """Write the graphs of ``checkpoint`` beside the decoder in ``out``, the embeddings' table as ``embedding`` says."""

    checkpoint: str
    out: str
    shape: VisionShape
    embedding: str


class VisionWritten(Struct, frozen=True):
    """The ``files`` that were written."""

    files: list[str]


VISION = Task("packager.vision.process", VisionJob, VisionWritten, "writing the graphs that see")


class VisionProofJob(Job, frozen=True):
    """Compare features of a picture by ``graph`` with those of ``checkpoint``."""

    checkpoint: str
    shape: VisionShape
    graph: str


class VisionProof(Struct, frozen=True):
    """``tokens`` of one picture; the largest difference of a feature, their spread in the source, and their cosine."""

    tokens: int
    furthest: float
    spread: float
    cosine: float

    def __str__(self) -> str:
        """One line for the display."""
        share = self.furthest / self.spread
        return f"{self.tokens} features of a picture are the source's to {share:.0e} of their spread"


VISION_PROOF = Task("packager.vision.proof_process", VisionProofJob, VisionProof, "looking at a picture")
