"""Asking source and bundle the same things and holding the difference against the limits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from contract.errors import BuildRefused
from packager.build.progress import BuildProgress
from packager.evaluate.behaviour import Case, compare_behaviour, read_cases
from packager.evaluate.check import CANARY_QUESTIONS, CANARY_TOKENS, check_model
from packager.evaluate.conversations import Rendering
from packager.evaluate.gates import Limits, QualityPlan, check_reason, choose_limits, evaluate_limits
from packager.evaluate.jobs import CheckResult, SourceView, Spelling
from packager.evaluate.source import DEFAULT_TOKENS, EVAL_TOKENS, view_source
from packager.evaluate.text import EvalText, read_text, reference_text
from packager.sources.checkpoint import Checkpoint
from packager.vision.jobs import PictureAnswers

PREQUANTISED = "the source is quantised already; transformers alone cannot run it as it is"


class EvaluationSpec(Struct, frozen=True):
    """A :class:`QualityPlan` whose files were read, before anything heavy starts: its faults come first."""

    text: EvalText
    tokens: int
    cases: list[Case]
    limits: Limits
    accepted: str | None


class Assessment(Struct, frozen=True):
    """What came out. ``summary`` goes into the manifest, ``details`` into ``evidence/quality.json`` beside it."""

    checked: CheckResult
    summary: dict[str, Any]
    details: dict[str, Any]


def prepare_evaluation(plan: QualityPlan, precision: str) -> EvaluationSpec:
    """Read and check everything that ``plan`` names.

    Raises:
        UsageError: a limit or reason that makes no sense.
        BuildRefused: a file that cannot be used.
    """
    own = plan.eval_file is not None
    return EvaluationSpec(
        text=read_text(Path(plan.eval_file), "--eval") if plan.eval_file is not None else reference_text(),
        tokens=EVAL_TOKENS if own else DEFAULT_TOKENS,
        cases=read_cases(Path(plan.behaviour_file)) if plan.behaviour_file is not None else [],
        limits=choose_limits(precision, plan.max_kl, plan.max_perplexity_ratio, plan.min_agreement),
        accepted=check_reason(plan.accept),
    )


def source_logits(
    spec: EvaluationSpec, checkpoint: Checkpoint, cache: Path, log: Path, progress: BuildProgress
) -> SourceView | None:
    """The source's side; None when it cannot be run by transformers because it is quantised already.

    Raises:
        BuildRefused: the source cannot be run, or the text is too short.
        StoreFull: no room in the cache.
    """
    if "quantization_config" in checkpoint.config:
        if spec.cases:
            raise BuildRefused(f"--behaviour compares with the source, but {PREQUANTISED}")
        return None
    questions = [(question, CANARY_TOKENS) for question in CANARY_QUESTIONS]
    questions += [(case.prompt, case.tokens) for case in spec.cases]
    return view_source(checkpoint, spec.text, questions, cache, log, tokens=spec.tokens, on_progress=progress.advance)


def evaluate(
    spec: EvaluationSpec,
    heard: SourceView | None,
    staged: Path,
    log: Path,
    progress: BuildProgress,
    *,
    adapter: Path | None = None,
    spellings: Sequence[Spelling] = (),
    renderings: Sequence[Rendering] = (),
    looked: PictureAnswers | None = None,
) -> Assessment:
    """Load and measure the model folder ``staged``, with ``adapter`` if given, compare it with its source, and judge.

    ``spellings`` are texts with the source's tokens, ``renderings`` conversations as transformers does them, ``looked``
    answers about pictures.

    Raises:
        BuildRefused: it does not load or generate, or is beyond the limits and nobody accepted that.
    """
    checked = check_model(
        staged,
        log,
        text=spec.text.text,
        source=heard,
        behaviour=[(case.prompt, case.tokens) for case in spec.cases] if heard is not None else (),
        adapter=adapter,
        spellings=spellings,
        renderings=renderings,
        on_progress=progress.advance,
    )
    summary: dict[str, Any] = {"text": {"name": spec.text.name, "sha256": spec.text.sha256}}
    details: dict[str, Any] = {}
    if checked.respelled:
        texts = ", ".join(repr(text[:24]) for text in checked.respelled[:4])
        progress.message(f"the runtime makes other tokens than the source of {len(checked.respelled)} texts: {texts}")
        details["respelled"] = checked.respelled
    if checked.rerendered:
        raise BuildRefused(
            "devices would render the chat template otherwise than transformers, since the built tokenizer's files say "
            f"something else than the source's: {', '.join(checked.rerendered)}"
        )
    endless = find_endless(heard, checked)
    if heard is None or checked.compared is None:
        summary["limits"] = evaluate_limits(spec.limits, spec.accepted, None, None, checked.respelled)
        summary["compared"] = f"not compared: {PREQUANTISED}"
        return Assessment(checked, summary, details)
    numbers = msgspec.to_builtins(checked.compared)
    details["kl_by_position"] = numbers.pop("kl_by_position")
    details["window"] = max(map(len, heard.windows))
    details["canaries"] = _side_by_side(heard.answers[: len(CANARY_QUESTIONS)], checked)
    behaviour = None
    if spec.cases:
        behaviour = compare_behaviour(spec.cases, heard.answers[len(CANARY_QUESTIONS) :], checked.answers)
        details["behaviour"] = behaviour
        summary["behaviour"] = {"cases": len(spec.cases), **{key: behaviour[key] for key in BEHAVIOUR_KEYS}}
    kl = None
    if looked is not None:
        kl = looked.kl
        summary["pictures"] = {"tokens": looked.tokens, "kl": kl, "top1_agreement": looked.top1_agreement}
        details["looked"] = msgspec.to_builtins(looked.cases)
    summary["limits"] = evaluate_limits(
        spec.limits, spec.accepted, numbers, behaviour, checked.respelled, endless=endless, pictures_kl=kl
    )
    # The manifest's ``perplexity`` has these two, as it does where there is no source.
    del numbers["perplexity"], numbers["tokens"]
    summary |= {**numbers, "source_dtype": heard.dtype}
    return Assessment(checked, summary, details)


BEHAVIOUR_KEYS = ("source_passed", "bundle_passed", "lost")


def find_endless(heard: SourceView | None, checked: CheckResult) -> list[str]:
    """The canary questions at which the source stops, where the bundle stops at none of them."""
    if heard is None:
        return []
    pairs = zip(CANARY_QUESTIONS, heard.ended, checked.ended, strict=False)
    due = [(question, ended) for question, must_end, ended in pairs if must_end]
    return [] if any(ended for _, ended in due) else [question for question, _ in due]


def _side_by_side(answers: Sequence[str], checked: CheckResult) -> list[dict[str, str]]:
    """Canary questions with both answers; a canary that the bundle left unanswered shows as empty."""
    rows = []
    for question, answer in zip(CANARY_QUESTIONS, answers, strict=True):
        found = [canary.text for canary in checked.canaries if question in canary.prompt]
        rows.append({"prompt": question, "source": answer, "bundle": found[0] if found else ""})
    return rows
