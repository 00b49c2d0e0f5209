"""What an engine is opened with: the files of a model, what of the machine it may use, and what it is to promise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

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


Speculating = Literal["auto", "on", "off"]


class Mode(Struct, frozen=True):
    """``reproducible``: what a request gets must not depend by a bit on what else runs, though the engine may be slower
    for it. ``speculation``: whether the batched engine drafts tokens for a request that runs alone: ``off``; ``auto``,
    where nothing that it promises is lost; ``on``, within a bound as well.
    """

    reproducible: bool = False
    speculation: Speculating = "auto"


DEFAULT_MODE = Mode()


class Resources(Struct, frozen=True):
    """``max_bytes`` is what keys, values and scratch may take (0: decided from the memory that is available, and
    ``reclaimable_bytes`` that soon will be); ``kernels`` are those that compute. ``slots``: so many requests at once in
    the batched engine (0: as many as go well with that memory).
    """

    threads: int
    max_bytes: int = 0
    reclaimable_bytes: int = 0
    kernels: Kernels = AS_IT_COMES
    slots: int = 0
