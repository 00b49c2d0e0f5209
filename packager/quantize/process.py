"""The process that calibrates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from contract.errors import BuildRefused
from packager.quantize.checkpoints import CalibrationCheckpoints
from packager.quantize.export import write_checkpoint
from packager.quantize.gptq import TABLE_DAMPING, round_matrix
from packager.quantize.jobs import CALIBRATION, CalibrationJob, CalibrationResult
from packager.quantize.layers import Rounded, head_moments, round_model
from packager.quantize.samples import LENGTH, sample_self, tokens_of_passages, tokens_of_text
from packager.quantize.single_pass import Shards, finish_checkpoint, fits_gptq, round_in_one_pass
from packager.quantize.tuning import Target, tune_scales
from packager.subprocess_job import Reporter, child_main

SAMPLING, ROUNDING, TUNING = 20, 45, 30
"""Parts of a hundred on the display, as long as they take on a small model; packing is the rest."""

WRITING, PASS = 50, 95
"""Of a hundred, where layers are rounded one by one: when the model has written its text, and when they are."""


def calibrate(job: CalibrationJob, reporter: Reporter) -> CalibrationResult:
    """Round the checkpoint on its own or somebody's text into a GPTQ checkpoint."""
    from packager.evaluate.source_process import load_source

    model, tokenizer = load_source(job.checkpoint)
    stages = CalibrationCheckpoints(Path(job.stages))
    with torch.no_grad():
        writing, wrote = WRITING if job.by_layer else SAMPLING, False

        def on_token(done: int, of: int) -> None:
            nonlocal wrote
            wrote = True
            reporter.progress(writing * done / of, 100)

        ids = _read(job, model, tokenizer, stages, on_token)
        if job.by_layer:
            return _round_fast(job, model, ids, reporter, wrote=wrote)
        reporter.progress(SAMPLING, 100)
        model = model.float()
        target = Target(model, ids, stages)
        if not bool(torch.isfinite(target.hidden).all()):
            raise BuildRefused("the source model gives numbers that are not finite; its weights are damaged")
        rounded = _round(job, model, tokenizer, ids, stages=stages, reporter=reporter)
        reporter.progress(SAMPLING + ROUNDING, 100)

        def moments() -> torch.Tensor:
            found = head_moments(model, ids)
            found.diagonal().add_(TABLE_DAMPING * found.diagonal().mean())
            return found

        head = model.get_output_embeddings()
        # The builder quantises the lm_head itself, by largest magnitudes: a symmetric grid comes through unchanged.
        kept = stages.once(
            "head", lambda: Rounded(*round_matrix(target.table.clone(), moments(), symmetric=True)).kept()
        )
        rounded_head = Rounded.from_kept(kept)
        head.weight.copy_(rounded_head.weight())
    if target.plain:
        [head_name] = [name for name, module in model.named_modules() if module is head]
        tune_scales(
            model,
            {**rounded, head_name: rounded_head},
            ids,
            target,
            stages=stages,
            on_step=lambda done, of: reporter.progress(SAMPLING + ROUNDING + TUNING * done / of, 100),
        )
    write_checkpoint(model, rounded, Path(job.checkpoint), Path(job.out))
    reporter.progress(100, 100)
    return CalibrationResult(ids.numel(), len(rounded) + 1, target.plain)


def _read(
    job: CalibrationJob,
    model: Any,
    tokenizer: Any,
    stages: CalibrationCheckpoints,
    on_token: Callable[[int, int], None],
) -> torch.Tensor:
    """The calibration text that was asked for, ``[sequences, tokens]``."""
    context = int(getattr(model.config.get_text_config(), "max_position_embeddings", LENGTH) or LENGTH)
    if job.text is not None:
        return tokens_of_text(tokenizer, job.text)
    if job.passages:
        return tokens_of_passages(tokenizer, context)
    return torch.as_tensor(stages.once("samples", lambda: sample_self(model, tokenizer, context, on_token)))


def _round_fast(
    job: CalibrationJob, model: Any, ids: torch.Tensor, reporter: Reporter, *, wrote: bool
) -> CalibrationResult:
    """One pass, each layer written as soon as it is rounded; ``wrote``: the text was written right before."""
    plain = next(model.parameters()).dtype
    # What was stored in 16 bits is stored in 16 bits again: scales are chosen so that nothing is lost by that.
    shards = Shards(
        Path(job.stages),
        torch.float32 if plain == torch.float32 else torch.float16,
        symmetric=job.symmetric or not fits_gptq(model, job.block),
    )
    shards.take_back(Path(job.out))
    begin = WRITING if wrote else 0

    def tell(done: int, of: int) -> None:
        reporter.progress(begin + (PASS - begin) * done / of, 100)

    rounded = round_in_one_pass(model, ids, shards, block=job.block, on_layer=tell)
    finish_checkpoint(shards, Path(job.checkpoint), Path(job.out), job.block)
    reporter.progress(100, 100)
    return CalibrationResult(ids.numel(), rounded, tuned=False)


def _round(
    job: CalibrationJob,
    model: Any,
    tokenizer: Any,
    ids: torch.Tensor,
    *,
    stages: CalibrationCheckpoints,
    reporter: Reporter,
) -> dict[str, Rounded]:
    """Round the layers of ``model`` in place, in the way that was asked for."""
    if job.quantizer != "auto-round":
        return round_model(model, ids, stages, lambda done, of: reporter.progress(SAMPLING + ROUNDING * done / of, 100))
    from packager.evaluate.source_process import load_source
    from packager.quantize.auto_round import learn_rounding

    def learn() -> dict[str, Any]:
        learned = learn_rounding(load_source(job.checkpoint)[0].float(), tokenizer, ids)
        return {name: one.kept() for name, one in learned.items()}

    rounded = {name: Rounded.from_kept(kept) for name, kept in stages.once("learned", learn).items()}
    for name, one in rounded.items():
        model.get_submodule(name).weight.copy_(one.weight())
    return rounded


if __name__ == "__main__":
    child_main(CALIBRATION, calibrate)
