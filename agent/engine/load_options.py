"""What an engine is opened with: the files of a model, and what of the machine it may use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from agent.engine.kernels import AS_IT_COMES, Kernels


class ModelFiles(Struct, frozen=True):
    """``derived_dir`` holds prepacked weights for this processor; ``adapters`` are files by NAME@VERSION."""

    bundle_dir: Path
    derived_dir: Path | None = None
    adapters: Mapping[str, Path] = {}

    @property
    def folders(self) -> list[Path]:
        """Where weights are mapped from."""
        return [self.bundle_dir] if self.derived_dir is None else [self.bundle_dir, self.derived_dir]


class Resources(Struct, frozen=True):
    """``max_bytes`` is what keys, values and scratch may take (0: decided from the memory that is available, and
    ``reclaimable_bytes`` that soon will be); ``kernels`` are those that compute.
    """

    threads: int
    max_bytes: int = 0
    reclaimable_bytes: int = 0
    kernels: Kernels = AS_IT_COMES
