"""A checkpoint whose weights are pickled (``pytorch_model.bin``), turned into one of safetensors.

A pickle can run code when it is read; torch's ``weights_only`` reading knows tensors and nothing else, and refuses the
rest.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from packager.build.build_cache import have
from packager.sources.checkpoint import list_indexed
from packager.sources.converted import holds_converted
from packager.sources.headers import WeightHeaders, reported_headers
from packager.sources.jobs import PICKLED, PickledJob
from packager.subprocess_job import run_child

REVISION = 1
"""Raised whenever the conversion changes, so that older cache entries are not taken for its result."""

WHOLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"

PICKLE_BYTES = 8 * 2**20
"""More than a file of pickled weights has beside their numbers, or than one of safetensors has."""

WEIGHTS = (".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")


def find_pickled(path: Path) -> list[Path]:
    """The pickled weight files of ``path`` if it has no others.

    Raises:
        BuildRefused: some that the index names are missing, or it is no index.
    """
    if any(path.glob("*.safetensors")):
        return []
    if (path / INDEX).is_file():
        return [path / name for name in list_indexed(path / INDEX)]
    return [path / WHOLE] if (path / WHOLE).is_file() else []


def read_pickled_headers(files: list[Path], log: Path) -> WeightHeaders:
    """Names, types and shapes of the weights in ``files``; none of their numbers are read.

    Raises:
        BuildRefused: a file holds more than tensors, or is damaged.
    """
    job = PickledJob([str(file) for file in files], out=None)
    return reported_headers(run_child(PICKLED, job, log, doing="reading the names of the pickled weights").headers)


def is_unpickled(files: list[Path], cache: Path, shared: int) -> bool:
    """Whether ``cache`` holds what :func:`convert_pickled` would make of ``files``, as far as size tells; so many as
    ``shared`` bytes may be in a pickle once for two names.
    """
    size = sum(file.stat().st_size for file in files)
    return holds_converted(cache, f"*-unpickled-{REVISION}", size, within=shared + len(files) * PICKLE_BYTES)


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
        run_child(PICKLED, PickledJob([str(file) for file in files], str(staging)), log)

    have(entry, make)
    return entry
