"""What a calibration has done so far, kept beside its result so that one that was interrupted goes on there.

Every stage gives the same numbers for the same inputs, and they are kept as they are: a calibration that went on is
byte for byte the one that ran through.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from packager.build.build_cache import put


class CalibrationCheckpoints:
    """Results of stages by name, each a file of tensors in ``directory``."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self._directory = directory

    def load(self, name: str) -> Any:
        """What was kept under ``name``; None when nothing was."""
        path = self._path(name)
        return torch.load(path, weights_only=True) if path.is_file() else None

    def keep(self, name: str, value: Any) -> Any:
        """Keep ``value`` (tensors, numbers, lists and dictionaries of them) under ``name``; the same ``value``."""
        partial = self._path(name).with_suffix(".partial")
        torch.save(value, partial)
        put(partial, self._path(name))
        return value

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What was kept under ``name``, else what ``make`` gives, kept from now on."""
        found = self.load(name)
        return self.keep(name, make()) if found is None else found

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.pt"
