"""From a checkpoint to its calibrated one, kept by what went in."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from contract.errors import BuildRefused
from packager.build.build_cache import hold, locked, put, sweep
from packager.build.plan import CALIBRATION_TEXTS, FAST, BuildPlan, goes_layer_by_layer
from packager.evaluate.evidence import BUILD_TOOLS, tool_versions
from packager.evaluate.text import EvalText, read_text
from packager.quantize.jobs import CALIBRATION, CalibrationJob
from packager.quantize.passages import digest_passages
from packager.sources.checkpoint import Checkpoint, digest_directory, inspect_checkpoint
from packager.subprocess_job import run_child

LIBRARY = "auto-round"
"""The quantizer that is a library of that name, of the ``calibration`` extra."""

CODE = (
    "auto_round", "checkpoints", "export", "gptq", "grid", "layers", "passages", "process", "samples", "single_pass",
    "tuning",
)  # fmt: skip
"""Modules beside this one that decide a calibrated checkpoint's bytes; read, not imported, since they load torch."""


def read_calibration(named: str) -> EvalText | None:
    """The file that ``--calibration`` names; None for a word.

    Raises:
        BuildRefused: a file that cannot be used.
    """
    return None if named in CALIBRATION_TEXTS else read_text(Path(named), "--calibration")


def require_library(quantizer: str) -> None:
    """Refuse a quantizer whose library is not installed, before anything is read.

    Raises:
        BuildRefused: it is not.
    """
    if quantizer == LIBRARY and importlib.util.find_spec("auto_round") is None:
        raise BuildRefused(
            "the quantizer auto-round needs its library: pip install 'edge-bundle[calibration]', or use gptq"
        )


def reads_passages(plan: BuildPlan) -> bool:
    """Whether the text is the one that is shipped."""
    return plan.calibration == "shipped" or (plan.calibration == "auto" and plan.quantizer == FAST)


def describe_calibration(plan: BuildPlan, parameters: int) -> dict[str, Any]:
    """What provenance says of the calibration text and of how it was read, for a model of so many parameters."""
    # Both load torch, which a command that builds nothing must not wait for.
    from packager.quantize import auto_round, samples

    if reads_passages(plan):
        return {"text": "shipped", "sha256": digest_passages(), "length": samples.PASSAGE_LENGTH}
    text = read_calibration(plan.calibration)
    shape: dict[str, Any] = {"sequences": samples.SEQUENCES, "length": samples.LENGTH, "seed": samples.SEED}
    if plan.quantizer not in (FAST, LIBRARY):
        shape["tuned"] = not goes_layer_by_layer(plan, parameters)
    if plan.quantizer == LIBRARY:
        shape |= {LIBRARY: importlib.metadata.version(LIBRARY), "steps": auto_round.STEPS}
    return {"text": "self", **shape} if text is None else {"text": text.name, "sha256": text.sha256, **shape}


def calibrate_checkpoint(
    checkpoint: Checkpoint,
    plan: BuildPlan,
    text: EvalText | None,
    cache: Path,
    *,
    log: Path,
    on_progress: Callable[[float, float], None],
) -> tuple[Checkpoint, str]:
    """The checkpoint that the quantizer of ``plan`` makes of ``checkpoint`` on ``text``, and its key: the same inputs
    give the same one.

    Raises:
        BuildRefused: it cannot be run or calibrated, or the text is too short.
        StoreFull: no room in the cache.
    """
    if "quantization_config" in checkpoint.config:
        raise BuildRefused("the checkpoint is quantised already; name the one that it was made from, or use rtn")
    passages = digest_passages() if reads_passages(plan) else None
    by_layer = goes_layer_by_layer(plan, checkpoint.parameters)
    document = {
        "source": digest_directory(checkpoint.path),
        "quantizer": plan.quantizer,
        "block": plan.block_size,
        "passages": passages,
        "symmetric": plan.adapter_slots,  # places for adapters are put beside the products of a plain build
        "by_layer": by_layer,
        "text": None if text is None else text.sha256,
        "tools": tool_versions((*BUILD_TOOLS, *((LIBRARY,) if plan.quantizer == LIBRARY else ()))),
        "code": [(files(__package__) / f"{name}.py").read_text("utf-8") for name in CODE],
    }
    key = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    entry = cache / "calibrated" / key[:32]
    sweep(entry.parent, ".*")
    # Not get_or_create: what an interrupted calibration has done so far stays in ``work``, to go on from.
    work = entry.parent / f".{entry.name}"
    job = CalibrationJob(
        checkpoint=str(checkpoint.path),
        quantizer=plan.quantizer,
        out=str(work / "out"),
        stages=str(work / "stages"),
        text=None if text is None else text.text,
        block=plan.block_size,
        passages=passages,
        symmetric=plan.adapter_slots,
        by_layer=by_layer,
    )
    while not hold(entry):
        with locked(entry):
            if not entry.is_dir():
                Path(job.out).mkdir(parents=True, exist_ok=True)
                run_child(CALIBRATION, job, log, on_progress=on_progress)
                put(Path(job.out), entry)
            shutil.rmtree(work, ignore_errors=True)
    return inspect_checkpoint(entry), key
