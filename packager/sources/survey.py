"""What a source's small files and headers say of it, before its weights are read, converted or fetched.

Everything that can be refused is refused here: names, configuration, tokenizer, the weights' headers. What remains to
the conversions of :mod:`packager.sources.opening` is the numbers themselves.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from contract.errors import UsageError
from packager.sources.checkpoint import (
    Checkpoint,
    find_shards,
    inspect_checkpoint,
    known_architecture,
    read_config,
    survey_checkpoint,
)
from packager.sources.families import TEXT_OF
from packager.sources.naming import refuse_stand_in
from packager.sources.pickled import find_pickled
from packager.sources.safetensors_header import count_parameters
from packager.sources.text_only import SIGHT, find_sight
from packager.sources.weights import list_tensors

ALONE = "--text-only is for models that also see; this one reads alone"

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
    sight = find_sight(path)
    if sight is None and text_only:
        raise UsageError(ALONE, field="text-only")
    if not pickled and not (sight and text_only):
        return inspect_checkpoint(path), True
    config = read_config(path)
    architecture = TEXT_OF[sight][0] if sight and text_only else known_architecture(path, config)
    parameters = _count_pickled(pickled, config) if pickled else _count_text(path)
    return survey_checkpoint(path, _text_part(config) if sight else config, architecture, parameters), False


def survey_small_files(path: Path, weight_bytes: int, *, text_only: bool) -> Checkpoint:
    """What will come of a repository of which ``path`` holds all but the weights, which take ``weight_bytes``.

    Raises:
        BuildRefused: it cannot become a bundle, as far as that can be told.
        UsageError: ``text_only`` of a model that reads alone.
    """
    sight = find_sight(path)
    if sight is None and text_only:
        raise UsageError(ALONE, field="text-only")
    config = read_config(path)
    architecture = TEXT_OF[sight][0] if sight and text_only else known_architecture(path, config)
    return survey_checkpoint(
        path, _text_part(config) if sight else config, architecture, weight_bytes // _weight_size(config)
    )


def _weight_size(config: dict[str, Any]) -> int:
    return WEIGHT_BYTES.get(str(config.get("torch_dtype") or config.get("dtype")), 4)


def _count_pickled(files: list[Path], config: dict[str, Any]) -> int:
    return sum(file.stat().st_size for file in files) // _weight_size(config)


def _count_text(path: Path) -> int:
    shards = find_shards(path)
    for shard in shards:
        count_parameters(shard)  # refuses a damaged file
    tensors = [tensor for shard in shards for tensor in list_tensors(shard)]
    return sum(math.prod(tensor.shape) for tensor in tensors if not SIGHT.match(tensor.name))


def _text_part(config: dict[str, Any]) -> dict[str, Any]:
    part = config.get("text_config")
    return {**config, **part} if isinstance(part, dict) else config
