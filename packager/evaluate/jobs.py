"""What the processes that read and run models are asked, and what they answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec import Struct

from packager.evaluate.conversations import Rendering
from packager.graph.rope import RopeFacts
from packager.sources.headers import Entry
from packager.subprocess_job import Job, Task

Spelling = tuple[str, list[int], list[int]]
"""A text and its tokens, without and with what the source's tokenizer puts at a beginning and an end."""


class LoadFaults(Struct, frozen=True):
    """By which names transformers' load of the files would differ from the model."""

    missing: list[str]
    unexpected: list[str]
    mismatched: list[tuple[str, list[int], list[int]]]


class TemplatesJob(Job, frozen=True):
    """Render with the template of ``checkpoint``, or with ``template``."""

    checkpoint: str
    template: str | None = None


class Templates(Struct, frozen=True):
    """What transformers makes of conversations with a chat template, and the special tokens that it gives that."""

    renderings: list[Rendering] = []
    special_tokens: dict[str, str] = {}


TEMPLATES = Task("packager.evaluate.templates_process", TemplatesJob, Templates, "reading the tokenizer")


class ReferenceJob(Job, frozen=True):
    """Read ``checkpoint`` with ``template``, ``weights`` and ``config`` in place of its own where they are given."""

    checkpoint: str
    template: str | None = None
    weights: list[Entry] | None = None
    config: dict[str, Any] | None = None


class Reference(Struct, frozen=True):
    """``config`` with every default filled in; ``weights`` with their shapes by name; ``tied`` ones by their source.

    ``faults`` is None for weights that are quantised already, ``rope`` for a model that does not rotate.
    """

    config: dict[str, Any]
    weights: dict[str, list[int]]
    tied: dict[str, str]
    faults: LoadFaults | None
    rope: RopeFacts | None
    spellings: list[Spelling] = []
    templates: Templates = Templates()


REFERENCE = Task("packager.evaluate.reference_process", ReferenceJob, Reference, "reading the configuration")


class SourceJob(Job, frozen=True):
    """Write the logits of ``checkpoint`` over ``text``, ``tokens`` of it and at ``least`` so many, into the directory
    ``out``, and answer ``questions``, each with its token limit.
    """

    checkpoint: str
    text: str
    questions: list[tuple[str, int]]
    tokens: int
    least: int
    out: str


class SourceResult(Struct, frozen=True):
    """``windows`` are token ids, the first ``lead`` of each what the tokenizer puts at a beginning; ``ended`` says of
    each answer whether an end token ended it.
    """

    windows: list[list[int]]
    lead: int
    vocabulary: int
    dtype: str
    answers: list[str]
    ended: list[bool] = []


SOURCE = Task("packager.evaluate.source_process", SourceJob, SourceResult, "running the source")


class SourceView(SourceResult, frozen=True, kw_only=True):
    """The source's side of every comparison: every token after the lead and after the first is scored.

    ``rows`` is a file of ``[positions, vocabulary]`` half-precision log-probabilities in the order of the windows.
    """

    rows: Path


class CheckJob(Job, frozen=True):
    """See :func:`packager.evaluate.check.check_model`."""

    model: str
    threads: int
    questions: list[str]
    known: list[tuple[str, str, bool]]
    text: str | None
    tokens: int
    source: SourceView | None
    behaviour: list[tuple[str, int]]
    adapter: str | None
    spellings: list[Spelling]
    renderings: list[Rendering]
    shown: tuple[str, str, bytes] | None = None


class CanaryResult(Struct, frozen=True):
    """One canary on this host; ``spread`` is how far ``mean_nll`` moves between slice lengths, in nats; ``stops``:
    an end token ended the answer; ``picture`` stands where the prompt says so.
    """

    prompt: str
    text: str
    mean_nll: float
    spread: float
    stops: bool = False
    picture: bytes | None = None


class Comparison(Struct, frozen=True):
    """The bundle beside its source at the same positions; see :mod:`packager.evaluate.divergence` for the measures.

    ``kl_by_position`` is in the order of the text; ``tokenizer_same`` says whether the runtime's tokenizer cuts the
    text as the source's does.
    """

    tokens: int
    perplexity: float
    source_perplexity: float
    perplexity_ratio: float
    kl: float
    top1_agreement: float
    kl_by_position: list[float]
    tokenizer_same: bool


class CheckResult(Struct, frozen=True):
    """What loading and generating showed. ``perplexity`` is None when no text was given, ``compared`` when no source.

    ``answers`` are those to the behaviour questions; ``respelled`` the texts that the runtime's tokenizer makes other
    tokens of than the source's; ``rerendered`` the conversations that devices would render otherwise than transformers;
    ``ended`` whether an end token ended the answer to each question; ``stopped_by`` the end tokens that were put in the
    model's mouth, each of which ended generation; ``seen`` is the canary about a picture of a model that sees.
    """

    canaries: list[CanaryResult]
    load_seconds: float
    tokens_per_second: float
    peak_rss_bytes: int
    threads: int
    perplexity: float | None = None
    perplexity_tokens: int = 0
    compared: Comparison | None = None
    answers: list[str] = []
    respelled: list[str] = []
    rerendered: list[str] = []
    ended: list[bool] = []
    stopped_by: list[int] = []
    seen: CanaryResult | None = None


CHECK = Task("packager.evaluate.check_process", CheckJob, CheckResult, "loading the built model")


class LogitsJob(Job, frozen=True):
    """Compute ``layers`` of ``checkpoint``, whose weights are quantised by ``method`` (None: they are not) to ``bits``
    in groups of ``group``, twice; without the workaround ``skip``. What is made goes to ``scratch``.
    """

    checkpoint: str
    config: dict[str, Any]
    layers: list[int]
    boundaries: list[int]
    method: str | None
    bits: int
    group: int
    scratch: str
    skip: str = ""


class LogitsResult(Struct, frozen=True):
    """What :class:`packager.evaluate.logits.LogitsProof` says of the measurement."""

    positions: int
    spread: float
    furthest: float
    own_type: str
    own_furthest: float | None = None
    own_rounding: float | None = None
    workarounds: list[str] = []


LOGITS = Task("packager.evaluate.logits_process", LogitsJob, LogitsResult, "computing two layers")
