"""From a checkpoint to its calibrated one, kept by what went in."""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contract.errors import BuildRefused
from packager.calibration import compensation, export, grid, layers, process, samples
from packager.child import run_child
from packager.evidence import BUILD_TOOLS, tool_versions
from packager.quality.text import EvalText, read_text
from packager.sources.checkpoint import Checkpoint, digest_directory, inspect_checkpoint

SELF = "self"
"""The word for text that the source model writes itself."""


def read_calibration(named: str) -> EvalText | None:
    """The text that ``--calibration`` names; None for :data:`SELF`.

    Raises:
        BuildRefused: a file that cannot be used.
    """
    return None if named == SELF else read_text(Path(named), "--calibration")


def describe_calibration(named: str) -> dict[str, Any]:
    """What provenance says of the calibration text and of how it was read."""
    text = read_calibration(named)
    shape = {"sequences": samples.SEQUENCES, "length": samples.LENGTH, "seed": samples.SEED}
    return {"text": SELF, **shape} if text is None else {"text": text.name, "sha256": text.sha256, **shape}


def calibrate_checkpoint(
    checkpoint: Checkpoint,
    text: EvalText | None,
    cache: Path,
    log: Path,
    on_progress: Callable[[float, float], None],
) -> tuple[Checkpoint, str]:
    """The GPTQ checkpoint made of ``checkpoint`` on ``text``, and its key: the same inputs give the same one.

    Raises:
        BuildRefused: it cannot be run or calibrated, or the text is too short.
        StoreFull: no room in the cache.
    """
    if "quantization_config" in checkpoint.config:
        raise BuildRefused("the checkpoint is quantised already; name the one that it was made from, or use rtn")
    document = {
        "source": digest_directory(checkpoint.path),
        "text": None if text is None else text.sha256,
        "tools": tool_versions(BUILD_TOOLS),
        "code": [inspect.getsource(module) for module in (compensation, export, grid, layers, process, samples)],
    }
    key = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    entry = cache / "calibrated" / key[:32]
    if not entry.is_dir():
        entry.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".calibrated-", dir=entry.parent))
        try:
            job = {
                "checkpoint": str(checkpoint.path),
                "out": str(staging),
                "text": None if text is None else text.text,
            }
            run_child("packager.calibration.process", job, log, doing="calibrating", on_progress=on_progress)
            staging.chmod(0o755)
            staging.rename(entry)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return inspect_checkpoint(entry), key
