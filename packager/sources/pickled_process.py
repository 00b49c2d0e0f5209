"""The process that reads pickled weights, tensors only: their names and shapes, or all of them, as safetensors."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

from contract.errors import BuildRefused
from packager.sources.checkpoint import INDEX_FILE, WHOLE_FILE
from packager.sources.jobs import PICKLED, PickledJob, PickledResult, WeightEntry
from packager.sources.pickled_front import ZIP
from packager.subprocess_job import Reporter, child_main

TYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
"""Types of torch as safetensors writes them; others have their own name, which no model's weight has."""


def convert(job: PickledJob, reporter: Reporter) -> PickledResult:
    """Write each of the files, with an index where there are several; without a place for that, only say what is in
    them.
    """
    files = [Path(name) for name in job.files]
    if job.out is None:
        return PickledResult([(file.name, _describe(_load(file, "meta"))) for file in files])
    from safetensors.torch import save_file

    out = Path(job.out)
    index: dict[str, str] = {}
    for number, file in enumerate(files, 1):
        tensors = _load(file, "cpu")
        name = WHOLE_FILE if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
        # Two names may share one storage in a pickle, which safetensors knows nothing of.
        save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, out / name, {"format": "pt"})
        index |= dict.fromkeys(tensors, name)
        reporter.progress(number, len(files))
    if len(files) > 1:
        (out / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": index}), "utf-8")
    return PickledResult()


def _load(file: Path, device: str) -> dict[str, Any]:
    """The tensors of ``file``: mapped, or, on the device ``meta``, without their numbers.

    Raises:
        BuildRefused: it holds something else, or is damaged.
    """
    import torch

    with file.open("rb") as handle:
        if handle.read(len(ZIP)) != ZIP:
            raise BuildRefused(
                f"{file.name} is damaged, or of the format that torch wrote before version 1.6; fetch it again, save "
                "it again with torch.save, or fetch a checkpoint of safetensors"
            )
    try:
        found = torch.load(file, map_location=device, weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BuildRefused(
            f"{file.name} holds more than tensors or is damaged, and pickled code is not run: {reason}; "
            "fetch a checkpoint of safetensors"
        ) from error
    tensors = found if isinstance(found, dict) else {}
    if not tensors or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise BuildRefused(f"{file.name} is no plain table of weights; fetch a checkpoint of safetensors")
    return tensors


def _describe(tensors: dict[str, Any]) -> list[WeightEntry]:
    kinds = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    return [
        (name, TYPES.get(kinds[name], kinds[name]), list(tensor.shape), tensor.numel() * tensor.element_size())
        for name, tensor in tensors.items()
    ]


if __name__ == "__main__":
    child_main(PICKLED, convert)
