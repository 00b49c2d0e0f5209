"""What the processes that write and prove the graphs that see are asked, and what they answer."""

from __future__ import annotations

import math

from msgspec import Struct

from packager.subprocess_job import Job, Task
from packager.vision.family import EncoderType


class VisionJob(Job, frozen=True):
    """Write the graphs of ``checkpoint`` beside the decoder in ``out``; ``encoder`` and ``embedding`` say how weights
    are stored.
    """

    checkpoint: str
    out: str
    encoder: EncoderType
    embedding: str


class VisionWritten(Struct, frozen=True):
    """The ``files`` that were written."""

    files: list[str]


VISION = Task("packager.vision.process", VisionJob, VisionWritten, "writing the graphs that see")


class VisionProofJob(Job, frozen=True):
    """Compare features of pictures by ``graph`` with those of ``checkpoint``."""

    checkpoint: str
    graph: str


class SeenFeatures(Struct, frozen=True):
    """``tokens`` of the picture ``name``; the largest difference of a feature, their spread in the source, and their
    cosine.
    """

    name: str
    tokens: int
    furthest: float
    spread: float
    cosine: float


class SeenPictures(Struct, frozen=True):
    """Of each picture."""

    pictures: list[SeenFeatures]


VISION_PROOF = Task("packager.vision.proof_process", VisionProofJob, SeenPictures, "looking at pictures")


BOUND = 1e-3
"""Of the spread (standard deviation) of the source's features: fp32 on both sides differs by some millionths of it."""

LEAST_COSINE = 0.999
"""Of the features of each picture and the source's; below it weights are stored in more bits."""


class VisionProof(Struct, frozen=True):
    """The type of the encoder's weights, and what it makes of each picture; ``rejected`` are types with the least
    cosine of a picture, for which they were not taken.
    """

    encoder: EncoderType
    pictures: list[SeenFeatures]
    rejected: dict[str, float] = {}

    @property
    def cosine(self) -> float:
        """The least of a picture; 0 where one has none."""
        return min(picture.cosine if math.isfinite(picture.cosine) else 0.0 for picture in self.pictures)

    @property
    def furthest(self) -> float:
        """The largest difference, as a share of the spread."""
        # Not max(): what is no number must not be passed over.
        shares = [picture.furthest / picture.spread for picture in self.pictures]
        return next((share for share in shares if not share <= BOUND), max(shares))

    def __str__(self) -> str:
        """One line for the display."""
        tokens = sum(picture.tokens for picture in self.pictures)
        if self.encoder == "float":
            return f"{tokens} features of pictures are the source's to {self.furthest:.0e} of their spread"
        return f"with {self.encoder} weights, {tokens} features of pictures have a cosine of {self.cosine:.6f} at least"


ROWS = "answers.f16"
"""``[tokens, vocabulary]`` log-probabilities in half precision, of all answers one after the other."""


class LookJob(Job, frozen=True):
    """Answer ``cases`` (a picture's name and a question) with the source: the whole ``checkpoint`` and its ``text``
    model, at most ``limit`` tokens each; log-probabilities go into :data:`ROWS` in ``out``.
    """

    checkpoint: str
    text: str
    cases: list[tuple[str, str]]
    limit: int
    out: str


class Looked(Struct, frozen=True):
    """One case as the source has it: the tokens of the ``prompt`` with the picture's in it, and of the ``answer``."""

    picture: str
    question: str
    prompt: list[int]
    features: int
    answer: list[int]
    text: str


class SourceLook(Struct, frozen=True):
    """Every case; ``vocabulary`` is the width of a row."""

    cases: list[Looked]
    vocabulary: int


SOURCE_LOOK = Task("packager.vision.source_process", LookJob, SourceLook, "asking the source about pictures")


class CompareJob(Job, frozen=True):
    """Answer the ``cases`` of ``checkpoint`` with the bundle's folder ``model``; ``rows`` are the source's."""

    checkpoint: str
    model: str
    threads: int
    cases: list[Looked]
    rows: str
    vocabulary: int
    limit: int


class Answered(Struct, frozen=True):
    """A case with both answers, and the mean KL divergence over the source's."""

    picture: str
    question: str
    source: str
    bundle: str
    kl: float


class PictureAnswers(Struct, frozen=True):
    """Every case, and over all positions: how many, KL divergence in nats, and how often both find the same token most
    likely.
    """

    cases: list[Answered]
    tokens: int
    kl: float
    top1_agreement: float


COMPARE = Task("packager.vision.compare_process", CompareJob, PictureAnswers, "asking the bundle about pictures")
