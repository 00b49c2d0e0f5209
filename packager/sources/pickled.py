"""A checkpoint whose weights are pickled (``pytorch_model.bin``), turned into one of safetensors.

A pickle can run code when it is read; torch's ``weights_only`` reading knows tensors and nothing else, and refuses the
rest.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from contract.errors import BuildRefused
from packager.build.build_cache import get_or_create, locked
from packager.sources.checkpoint import read_weight_map
from packager.subprocess_job import run_child

REVISION = 1
"""Raised whenever the conversion changes, so that older cache entries are not taken for its result."""

WHOLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"


WEIGHTS = (".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")


def find_pickled(path: Path) -> list[Path]:
    """The pickled weight files of ``path`` if it has no others.

    Raises:
        BuildRefused: some that the index names are missing.
    """
    if any(path.glob("*.safetensors")):
        return []
    if (path / INDEX).is_file():
        names = sorted(set(read_weight_map(path / INDEX).values()))
        missing = [name for name in names if "/" in name or not (path / name).is_file()]
        if missing:
            raise BuildRefused(f"{path} lacks {len(missing)} of {len(names)} weight files, first {missing[0]!r}")
        return [path / name for name in names]
    return [path / WHOLE] if (path / WHOLE).is_file() else []


def convert_pickled(path: Path, files: list[Path], digest: str, cache: Path, log: Path) -> Path:
    """The directory of ``path`` (whose files have ``digest``) with its weights as safetensors, made once.

    Raises:
        BuildRefused: a file holds more than tensors, or is damaged.
        StoreFull: no room for a copy of the weights.
    """
    entry = cache / "checkpoints" / f"{digest[:32]}-unpickled-{REVISION}"

    def make(staging: Path) -> None:
        for file in path.iterdir():
            if file.is_file() and file.suffix not in WEIGHTS and file.name != INDEX:
                shutil.copyfile(file, staging / file.name)
        job: dict[str, Any] = {"files": [str(file) for file in files], "out": str(staging)}
        run_child("packager.sources.pickled_process", job, log, doing="reading the pickled weights")

    with locked(entry):
        get_or_create(entry, make)
    return entry
