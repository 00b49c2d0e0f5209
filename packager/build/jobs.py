"""What the processes that build graphs are asked, and what they answer."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from packager.subprocess_job import Job, Task
from packager.vision.jobs import VisionProof


class BuilderJob(Job, frozen=True):
    """Build ``checkpoint`` into ``out`` with ``options`` of the model builder, without the workaround ``skip``; with
    the external data of the graph in ``shared``, where it has the same weights.
    """

    checkpoint: str
    out: str
    scratch: str
    precision: str
    ep: str
    options: list[str]
    adapter_slots: bool = False
    embedding: str | None = None
    shared: str | None = None
    skip: str = ""


class TurnEnd(Struct, frozen=True):
    """A token that ends a turn, and which of the source's files name it as such."""

    token: int
    text: str
    named_by: list[str]


class BuilderReport(Struct, frozen=True):
    """What the builder read: ``config`` with every default filled in; the names of ``workarounds`` that it needed;
    the ``ends`` of a turn; what the encoder makes of pictures, where there is one.
    """

    config: dict[str, Any]
    workarounds: list[str]
    ends: list[TurnEnd] = []
    vision: VisionProof | None = None


BUILDER = Task("packager.build.model_builder_process", BuilderJob, BuilderReport, "the model builder")


class ScalesJob(Job, frozen=True):
    """Write the scales of the key-value cache of the graph ``model`` to the file ``out``; ``text``: None for the
    calibration's own.
    """

    model: str
    tokenizer: str
    out: str
    scheme: str
    percentile: float
    sequences: int
    length: int
    layers: int
    heads: int
    head_size: int
    text: str | None


SCALES = Task("packager.build.kv_cache_process", ScalesJob, type(None), "measuring keys and values")
