"""Loading a built model and generating with it, in a process of its own, before it may become a bundle.

What is measured here becomes the manifest's ``budget`` and ``canary``: evidence from this host for the device to
compare itself with.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from contract.bundle.manifest import PictureCanary
from packager.evaluate.conversations import Rendering
from packager.evaluate.jobs import CHECK, CanaryResult, CheckJob, CheckResult, SourceView, Spelling
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


def tolerance(canary: CanaryResult) -> float:
    """How far a device's mean may lie from this one."""
    return round(max(LEAST_TOLERANCE, SPREAD_FACTOR * canary.spread), 4)


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
    shown: PictureCanary | None = None,
    on_progress: Callable[[float, float], None] | None = None,
) -> CheckResult:
    """Load ``model_dir``, answer ``questions`` greedily, score the ``known`` prompts and texts, read ``text``; of the
    ``known`` those that must end are answered as well.

    With a ``source`` the text is read at its very positions and compared; without, it only gives a perplexity.
    ``spellings`` are texts with the source's tokens. ``behaviour`` are more questions, each with its token limit. With
    an ``adapter`` file all of it is done with that. ``shown`` is a canary about a picture to score.

    Raises:
        BuildRefused: it does not load, crashes, or gives numbers that are not finite.
    """
    job = CheckJob(
        model=str(model_dir),
        threads=host_threads(),
        questions=list(questions),
        known=list(known),
        text=text,
        tokens=CANARY_TOKENS,
        source=source,
        behaviour=list(behaviour),
        adapter=None if adapter is None else str(adapter),
        spellings=list(spellings),
        renderings=list(renderings),
        shown=None if shown is None else (shown.prompt, shown.expected_text, shown.picture),
    )
    return run_child(CHECK, job, log, on_progress=on_progress)
