"""The process that adds an adapter to its base, one weight file at a time: the model itself is never made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from packager.child import Reporter, child_main


def merge(job: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Write each of ``job["shards"]`` to ``job["out"]``, its weights changed where ``job["pairs"]`` says so."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    deltas = load_file(job["adapter"])
    for number, name in enumerate(job["shards"]):
        path = Path(job["base"]) / name
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata()
        tensors = load_file(path)
        for target, (first, second) in job["pairs"].items():
            if target in tensors:
                weight = tensors[target]
                change = deltas[second].to(torch.float32) @ deltas[first].to(torch.float32)
                tensors[target] = (weight.to(torch.float32) + job["scale"] * change).to(weight.dtype)
        save_file(tensors, Path(job["out"]) / name, metadata=metadata)
        reporter.progress(number + 1, len(job["shards"]))
    return {}


if __name__ == "__main__":
    child_main(merge)
