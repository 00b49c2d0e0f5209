"""Opens the engine that fits a bundle, and says why it is that one."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent.engine.config import read_config
from agent.engine.interface import Engine, Progress, silent
from agent.engine.kernels import Kernels, open_chosen
from agent.engine.load_options import Mode, ModelFiles, Resources, Speculating
from agent.engine.memory import release_freed_memory
from agent.engine.processors import load_processors
from agent.engine.runtime_errors import Declined
from contract.errors import EngineFailed

ENGINES = ("auto", "batched", "genai")


def open_engine(
    bundle_dir: Path,
    *,
    engine: str = "auto",
    threads: int,
    max_bytes: int = 0,
    reclaimable_bytes: int = 0,
    derived_dir: Path | None = None,
    adapters: Mapping[str, Path] | None = None,
    processors: Sequence[str] = (),
    reproducible: bool = False,
    speculation: Speculating = "auto",
    slots: int = 0,
    progress: Progress = silent,
) -> Engine:
    """Load the bundle with the engine asked for; ``auto`` prefers the one that batches.

    ``max_bytes`` is what keys, values and scratch may take (0: decided from the memory that is available, and
    ``reclaimable_bytes`` that soon will be). ``derived_dir`` holds prepacked weights for this processor, which the
    batched engine uses; genai does without. ``adapters`` are files by NAME@VERSION, which only
    genai can switch between;
    ``processors`` the names of logits processors that every token goes through. ``reproducible`` and
    ``speculation`` are those of :class:`~agent.engine.load_options.Mode`, ``slots`` those of its ``Resources``.
    ``progress`` hears that loading goes on.

    Raises:
        EngineFailed: no such engine, or the bundle cannot be loaded with it.
    """
    if engine not in ENGINES:
        raise EngineFailed(f"there is no engine {engine!r}: choose {', '.join(ENGINES)}")
    if adapters and engine == "batched":
        raise EngineFailed("the batched engine takes no adapters")
    scoring = load_processors(processors, read_config(bundle_dir).vocab_size) if processors else None

    mode = Mode(reproducible, speculation)
    files = ModelFiles(bundle_dir, derived_dir, adapters or {})

    def load(kernels: Kernels) -> Engine:
        resources = Resources(threads, max_bytes, reclaimable_bytes, kernels, slots)
        why = "asked for"
        if adapters and engine == "auto":
            why = "not batched: it has adapters"
        elif engine != "genai":
            from agent.engine.batched.engine import BatchedEngine
            from agent.engine.batched.opening import open_model

            try:
                return BatchedEngine(open_model(files, resources, mode=mode, progress=progress), scoring)
            except Declined as declined:
                if engine == "batched":
                    raise EngineFailed(f"the batched engine cannot serve this model: {declined}") from declined
                why = f"not batched: {declined}"
            # Two copies of the weights may be more than there is memory for.
            gc.collect()
            release_freed_memory()
        from agent.engine.genai import GenaiEngine

        return GenaiEngine(files, resources, why=why, processors=scoring, progress=progress)

    return open_chosen(load, bundle_dir, derived_dir, progress)
