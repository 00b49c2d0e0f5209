"""The process that reads pickled weights, tensors only, and writes them as safetensors."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

from contract.errors import BuildRefused
from packager.sources.checkpoint import INDEX_FILE, WHOLE_FILE
from packager.subprocess_job import Reporter, child_main


def convert(job: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Write each of ``job["files"]`` to ``job["out"]``, with an index where there are several."""
    import torch
    from safetensors.torch import save_file

    files, out = [Path(name) for name in job["files"]], Path(job["out"])
    index: dict[str, str] = {}
    for number, file in enumerate(files, 1):
        try:
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise BuildRefused(
                f"{file.name} holds more than tensors or is damaged, and pickled code is not run: {reason}; "
                "fetch a checkpoint of safetensors"
            ) from error
        tensors = found if isinstance(found, dict) else {}
        if not tensors or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
            raise BuildRefused(f"{file.name} is no plain table of weights; fetch a checkpoint of safetensors")
        name = WHOLE_FILE if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
        # Two names may share one storage in a pickle, which safetensors knows nothing of.
        save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, out / name, {"format": "pt"})
        index |= dict.fromkeys(tensors, name)
        reporter.progress(number, len(files))
    if len(files) > 1:
        (out / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": index}), "utf-8")
    return {}


if __name__ == "__main__":
    child_main(convert)
