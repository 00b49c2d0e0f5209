"""Adapters beside a loaded model: which are there, under which names, and giving one to a generator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contract.errors import RequestInvalid


class LoadedAdapters:
    """``files`` by NAME@VERSION; a request may leave the version out, since there is one of each name.

    Raises whatever the runtime raises.
    """

    def __init__(self, og: Any, model: Any, files: Mapping[str, Path]) -> None:
        self._loaded: Any = None
        self._names: dict[str, str] = {}
        if files:
            self._loaded = og.Adapters(model)
        for reference, path in files.items():
            self._loaded.load(str(path), reference)
            self._names[reference] = self._names[reference.partition("@")[0]] = reference

    def find(self, wanted: str | None) -> str | None:
        """The adapter that a request means; None when it wants none.

        Raises:
            RequestInvalid: there is no such one.
        """
        if wanted is None:
            return None
        found = self._names.get(wanted)
        if found is None:
            there = sorted(set(self._names.values()))
            hint = f"there are {', '.join(there)}" if there else "this device has none for its model"
            raise RequestInvalid(f"there is no adapter {wanted!r} here: {hint}", field="adapter")
        return found

    def activate(self, generator: Any, reference: str | None) -> None:
        """Let ``generator`` compute with the adapter, before its first token."""
        if reference is not None:
            generator.set_active_adapter(self._loaded, reference)

    def release(self) -> None:
        self._loaded = None
