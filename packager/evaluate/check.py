"""Loading a built model and generating with it, in a process of its own, before it may become a bundle.

What is measured here becomes the manifest's ``budget`` and ``canary``: evidence from this host for the device to
compare itself with.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from contract.errors import BuildRefused
from packager.evaluate.conversations import Rendering
from packager.evaluate.reference import Spelling
from packager.evaluate.source import SourceView
from packager.subprocess_job import run_child

CANARY_QUESTIONS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Count from one to five.",
)
"""Short questions whose answers use different parts of a vocabulary; the device pays for each before activating."""

CANARY_TOKENS = 32
"""Tokens of an expected text: enough for a stable mean, under a second on a slow box."""

LEAST_TOLERANCE = 0.1
"""Nats. Other instruction sets round int8 activations otherwise; means over 32 tokens then move by a few hundredths.
One wrong layer or a damaged block of weights moves them by whole nats."""

SPREAD_FACTOR = 6.0
"""Slices of another length run the same model through other kernels, which is the same kind of rounding as another
instruction set's; six times the spread seen here covers hosts that were not."""


class CanaryResult(Struct, frozen=True):
    """One canary on this host; ``spread`` is how far ``mean_nll`` moves between slice lengths, in nats; ``stops``:
    an end token ended the answer.
    """

    prompt: str
    text: str
    mean_nll: float
    spread: float
    stops: bool = False

    @property
    def tolerance(self) -> float:
        """How far a device's mean may lie from this one."""
        return round(max(LEAST_TOLERANCE, SPREAD_FACTOR * self.spread), 4)


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
    model's mouth, each of which ended generation.
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


def host_threads() -> int:
    """Cores this process may use: what the checked model runs on."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def check_model(
    model_dir: Path,
    log: Path,
    *,
    questions: Sequence[str] = CANARY_QUESTIONS,
    known: Sequence[tuple[str, str, bool]] = (),
    text: str | None = None,
    source: SourceView | None = None,
    behaviour: Sequence[tuple[str, int]] = (),
    adapter: Path | None = None,
    spellings: Sequence[Spelling] = (),
    renderings: Sequence[Rendering] = (),
    on_progress: Callable[[float, float], None] | None = None,
) -> CheckResult:
    """Load ``model_dir``, answer ``questions`` greedily, score the ``known`` prompts and texts, read ``text``; of the
    ``known`` those that must end are answered as well.

    With a ``source`` the text is read at its very positions and compared; without, it only gives a perplexity.
    ``spellings`` are texts with the source's tokens. ``behaviour`` are more questions, each with its token limit. With
    an ``adapter`` file all of it is done with that.

    Raises:
        BuildRefused: it does not load, crashes, or gives numbers that are not finite.
    """
    job = {
        "model": str(model_dir),
        "threads": host_threads(),
        "questions": list(questions),
        "known": [list(pair) for pair in known],
        "text": text,
        "tokens": CANARY_TOKENS,
        "source": None if source is None else {**msgspec.structs.asdict(source), "rows": str(source.rows)},
        "behaviour": [list(question) for question in behaviour],
        "adapter": None if adapter is None else str(adapter),
        "spellings": [list(spelling) for spelling in spellings],
        "renderings": [list(rendering) for rendering in renderings],
    }
    value = run_child(
        "packager.evaluate.check_process", job, log, doing="loading the built model", on_progress=on_progress
    )
    try:
        return msgspec.convert(value, CheckResult)
    except msgspec.ValidationError as error:
        raise BuildRefused(f"the built model could not be measured: {error}") from error
