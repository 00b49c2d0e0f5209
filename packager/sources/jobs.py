"""What the processes that open sources are asked, and what they answer."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from packager.evaluate.jobs import Templates
from packager.graph.slots import Block
from packager.subprocess_job import Job, Task

WeightEntry = tuple[str, str, list[int], int]
"""Name, type as safetensors writes it, shape and bytes of a weight."""

ReportedHeaders = list[tuple[str, list[WeightEntry]]]
"""The weights of each file."""


class HubJob(Job, frozen=True):
    """Fetch ``model`` into the hub cache ``cache``: all of it, or with ``scratch``, a directory for the outlines of
    pickled weights, without its weights.
    """

    model: str
    revision: str | None
    cache: str | None
    scratch: str | None = None


class RemoteWeights(Struct, frozen=True):
    """``weight_bytes`` of all of them (0 where nobody says), ``missing_bytes`` of those that are not here; where the
    server tells, ``headers`` of safetensors files or ``outlines`` of pickled ones, by their names in ``scratch``.
    """

    weight_bytes: int
    missing_bytes: int
    pickled: bool
    headers: ReportedHeaders | None
    outlines: list[str] | None


class HubResult(Struct, frozen=True):
    """Where the snapshot of ``commit`` lies; of one without weights, what is known of them."""

    path: str
    commit: str
    weights: RemoteWeights | None = None


HUB = Task("packager.sources.hub_process", HubJob, HubResult, "fetching")


class PickledJob(Job, frozen=True):
    """Write the weights of ``files`` into ``out``; where that is None, only say what is in them."""

    files: list[str]
    out: str | None


class PickledResult(Struct, frozen=True):
    headers: ReportedHeaders = []


PICKLED = Task("packager.sources.pickled_process", PickledJob, PickledResult, "reading the pickled weights")


class TextConfigJob(Job, frozen=True):
    checkpoint: str


class TextConfig(Struct, frozen=True):
    """The text part of a configuration, with every default filled in."""

    config: dict[str, Any]


TEXT_CONFIG = Task("packager.sources.text_config_process", TextConfigJob, TextConfig, "reading the configuration")


class GgufJob(Job, frozen=True):
    """Write what ``gguf`` holds into ``out``: all of it, or only what its ``header`` says."""

    gguf: str
    out: str
    header: bool = False


class GgufFacts(Struct, frozen=True):
    """What the header says; the small files lie in the job's ``out``."""

    config: dict[str, Any]
    architecture: str
    parameters: int
    templates: Templates


class GgufResult(Struct, frozen=True):
    """``facts`` where only the header was asked for."""

    facts: GgufFacts | None = None


GGUF = Task("packager.sources.gguf_process", GgufJob, GgufResult, "reading the GGUF file")


class MergeJob(Job, frozen=True):
    """Save ``base`` with ``adapter`` merged in to ``out``, where the base's small files lie."""

    base: str
    adapter: str
    out: str


MERGE = Task("packager.sources.adapter_process", MergeJob, type(None), "merging the adapter")


class SlotFilling(Struct, frozen=True):
    """The names of a slot's two matrices, its widths, and what goes into it."""

    first: str
    second: str
    width_in: int
    width_out: int
    blocks: list[Block]


class AdapterExportJob(Job, frozen=True):
    """Write the LoRA file ``adapter`` (in ``adapter_dir``, for ``checkpoint``) to ``out``; ``pairs`` are the names of A
    and B by the weight that they change.
    """

    checkpoint: str
    adapter_dir: str
    pairs: dict[str, tuple[str, str]]
    adapter: str
    scale: float
    out: str
    slots: list[SlotFilling]


class AdapterExportResult(Struct, frozen=True):
    parameters: int


ADAPTER_EXPORT = Task(
    "packager.sources.adapter_export_process", AdapterExportJob, AdapterExportResult, "writing the adapter"
)
