"""What a source's small files and headers say of it, before its weights are read, converted or fetched.

Everything that can be refused is refused here: names, configuration, tokenizer, the weights' headers. What remains to
the conversions of :mod:`packager.sources.opening` is the numbers themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from contract.errors import UsageError
from packager.sources.checkpoint import (
    Checkpoint,
    Pending,
    find_shards,
    inspect_checkpoint,
    known_architecture,
    read_config,
    survey_checkpoint,
)
from packager.sources.families import TEXT_OF
from packager.sources.headers import read_headers
from packager.sources.naming import refuse_stand_in
from packager.sources.pickled import find_pickled, is_unpickled
from packager.sources.small_files import refuse_wrong_types
from packager.sources.text_only import find_vision, is_extracted, name_of_text
from packager.sources.weights import count_parameters

ALONE = "--text-only is for models that also see; this one reads alone"

PICKLE_PROCESS_BYTES = 300 * 2**20
"""Anonymous memory of the process that converts a pickle, beside one file of the result."""

WEIGHT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Of a weight in a pickle, by the type that config.json names."""


def survey_directory(path: Path, *, text_only: bool) -> tuple[Checkpoint, bool]:
    """What will come of ``path``, and whether it is that already: a pickle, and a model that sees, are converted first.

    Raises:
        BuildRefused: it cannot become a bundle.
        UsageError: ``text_only`` of a model that reads alone.
    """
    pickled = find_pickled(path)
    for file in pickled:
        refuse_stand_in(file)
    refuse_wrong_types(path)
    seeing = find_vision(path)
    if seeing is None and text_only:
        raise UsageError(ALONE, field="text-only")
    if not pickled and not (seeing and text_only):
        return inspect_checkpoint(path), True
    config = read_config(path)
    architecture = TEXT_OF[seeing][0] if seeing and text_only else known_architecture(path, config)
    parameters = _count_pickled(pickled, config) if pickled else _count_text(path)
    return survey_checkpoint(path, _text_part(config) if seeing else config, architecture, parameters), False


def pending_directory(path: Path, checkpoint: Checkpoint, cache: Path, *, text_only: bool) -> Pending:
    """What converting ``path`` into ``checkpoint`` takes: nothing of memory and disk for what ``cache`` holds."""
    pickled = find_pickled(path)
    found = Pending()
    if pickled and not is_unpickled(pickled, cache, _table_bytes(checkpoint)):
        sizes = [file.stat().st_size for file in pickled]
        found = Pending(memory_bytes=PICKLE_PROCESS_BYTES + max(sizes), disk_bytes=sum(sizes))
    if text_only:
        size = sum(file.stat().st_size for file in pickled) or read_headers(path).rename(name_of_text).size
        if not is_extracted(cache, size):
            found = msgspec.structs.replace(found, disk_bytes=found.disk_bytes + size)
    return found


def _table_bytes(checkpoint: Checkpoint) -> int:
    """The embedding, which a pickle may hold once for two names and safetensors hold twice."""
    rows, width = checkpoint.config.get("vocab_size"), checkpoint.config.get("hidden_size")
    return rows * width * 4 if isinstance(rows, int) and isinstance(width, int) else 0


def survey_small_files(path: Path, weight_bytes: int, *, text_only: bool) -> Checkpoint:
    """What will come of a repository of which ``path`` holds all but the weights, which take ``weight_bytes``.

    Raises:
        BuildRefused: it cannot become a bundle, as far as that can be told.
        UsageError: ``text_only`` of a model that reads alone.
    """
    refuse_wrong_types(path)
    seeing = find_vision(path)
    if seeing is None and text_only:
        raise UsageError(ALONE, field="text-only")
    config = read_config(path)
    architecture = TEXT_OF[seeing][0] if seeing and text_only else known_architecture(path, config)
    return survey_checkpoint(
        path, _text_part(config) if seeing else config, architecture, weight_bytes // _weight_size(config)
    )


def _weight_size(config: dict[str, Any]) -> int:
    return WEIGHT_BYTES.get(str(config.get("torch_dtype") or config.get("dtype")), 4)


def _count_pickled(files: list[Path], config: dict[str, Any]) -> int:
    return sum(file.stat().st_size for file in files) // _weight_size(config)


def _count_text(path: Path) -> int:
    for shard in find_shards(path):
        count_parameters(shard)  # refuses a damaged file
    return read_headers(path).rename(name_of_text).parameters


def _text_part(config: dict[str, Any]) -> dict[str, Any]:
    part = config.get("text_config")
    return {**config, **part} if isinstance(part, dict) else config
