"""A base model and its LoRA adapter, merged into one checkpoint: ``W + scale * B A`` for every product it changes.

The formula is that of LoRA (Hu et al., 2021) with ``scale = alpha / r``, or ``alpha / sqrt(r)`` where the adapter asks
for rank-stabilised scaling. Only plain LoRA is merged; whatever else an adapter may hold is refused, since leaving it
out would be silent.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct

from contract.errors import BuildRefused
from packager.build_cache import get_or_create, locked
from packager.child import run_child
from packager.sources.checkpoint import Checkpoint, digest_directory, find_shards, inspect_checkpoint, read_json
from packager.sources.hub import is_hub_id
from packager.sources.safetensors_header import count_parameters
from packager.sources.weights import StoredTensor, list_tensors

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
REVISION = 1
"""Raised whenever merging changes, so that older cache entries are not taken for its result."""


EXTRAS = (
    "use_dora", "fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias", "use_qalora",
    "layer_replication", "target_parameters", "alora_invocation_tokens", "trainable_token_indices", "arrow_config",
)  # fmt: skip
"""Entries of adapter_config.json that make an adapter more than ``scale * B A`` beside each product."""

PLAIN_STARTS = (True, False, None, "gaussian", "eva")
"""Ways to begin an adapter that leave the base as it is. PiSSA, OLoRA, LoftQ, CorDA and others take from the base what
they put into the adapter, and peft does that again whenever it loads one."""


class Adapter(Struct, frozen=True):
    """A LoRA adapter: ``pairs`` maps a weight of the base to the names of its A and B."""

    path: Path
    sha256: str
    base: str
    scale: float
    pairs: dict[str, tuple[str, str]]
    tensors: dict[str, StoredTensor]


def inspect_adapter(path: Path) -> Adapter:
    """Look at the adapter directory ``path``.

    Raises:
        BuildRefused: it is no LoRA adapter, or holds more than plain LoRA.
    """
    if not (path / "adapter_config.json").is_file() or not (path / WEIGHTS).is_file():
        raise BuildRefused(f"{path} is not an adapter; it needs adapter_config.json and {WEIGHTS}")
    config = read_json(path / "adapter_config.json")
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise BuildRefused(f"{path} is not a LoRA adapter; other kinds cannot be merged")
    _refuse_extras(path, config)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise BuildRefused(f"{path}/adapter_config.json has no rank 'r' or no 'lora_alpha'")
    count_parameters(path / WEIGHTS)  # refuses a damaged file
    tensors = {tensor.name: tensor for tensor in list_tensors(path / WEIGHTS)}
    return Adapter(
        path=path,
        sha256=digest_directory(path),
        base=str(config.get("base_model_name_or_path") or ""),
        scale=alpha / (math.sqrt(rank) if config.get("use_rslora") else rank),
        pairs=_pair(path, tensors),
        tensors=tensors,
    )


def _refuse_extras(path: Path, config: dict[str, Any]) -> None:
    for key in EXTRAS:
        if config.get(key):
            raise BuildRefused(f"the adapter {path.name!r} uses {key}, which is not merged here; merge it with peft")
    start = config.get("init_lora_weights", True)
    if start not in PLAIN_STARTS:
        raise BuildRefused(
            f"the adapter {path.name!r} began as {str(start)[:40]!r} (init_lora_weights), which changes the base as "
            "well; merge it with peft, or save it again there with path_initial_model_for_weight_conversion"
        )


def _pair(path: Path, tensors: dict[str, StoredTensor]) -> dict[str, tuple[str, str]]:
    pairs: dict[str, tuple[str, str]] = {}
    for name in tensors:
        if name.endswith(".lora_A.weight"):
            stem = name.removesuffix(".lora_A.weight")
            other = f"{stem}.lora_B.weight"
            if other not in tensors:
                raise BuildRefused(f"the adapter {path.name!r} has {name!r} without its B")
            pairs[f"{stem.removeprefix(PREFIX)}.weight"] = (name, other)
    if not pairs or 2 * len(pairs) != len(tensors):
        raise BuildRefused(f"the adapter {path.name!r} holds tensors other than pairs of lora_A and lora_B")
    return pairs


def check_base(adapter: Adapter, base: Checkpoint, source: str) -> None:
    """Refuse an adapter that was trained on another base, as far as names and shapes tell.

    Raises:
        BuildRefused: naming the first difference.
    """
    name = adapter.path.name
    if base.quantization is not None:
        raise BuildRefused("an adapter cannot be merged into quantised weights; name the base that it was trained on")
    if is_hub_id(source) and is_hub_id(adapter.base) and source != adapter.base:
        raise BuildRefused(f"the adapter {name!r} was trained on {adapter.base}, not on {source}")
    weights = {tensor.name: tensor for shard in find_shards(base.path) for tensor in list_tensors(shard)}
    for target, (first, second) in adapter.pairs.items():
        if target not in weights:
            raise BuildRefused(f"the adapter {name!r} belongs to another base: this one has no {target!r}")
        shape = (adapter.tensors[second].shape[0], adapter.tensors[first].shape[1])
        if weights[target].shape != shape:
            raise BuildRefused(
                f"the adapter {name!r} belongs to another base: {target!r} is {weights[target].shape} here and "
                f"{shape} there"
            )


def merge_adapter(
    base: Checkpoint,
    digest: str,
    adapter: Adapter,
    *,
    cache: Path,
    log: Path,
    on_progress: Callable[[float, float], None],
) -> Checkpoint:
    """The checkpoint of ``base`` (whose digest is ``digest``) with ``adapter`` merged in, kept in ``cache``.

    Raises:
        BuildRefused: the process that merges failed.
        StoreFull: no room for a copy of the weights.
    """
    key = hashlib.sha256(f"{digest} {adapter.sha256} {REVISION}".encode()).hexdigest()[:32]
    entry = cache / "checkpoints" / f"{key}-merged"

    def make(staging: Path) -> None:
        for file in base.path.iterdir():
            if file.is_file() and file.suffix not in (".safetensors", ".bin", ".pt", ".gguf"):
                shutil.copyfile(file, staging / file.name)
        job = {
            "base": str(base.path),
            "shards": [shard.name for shard in find_shards(base.path)],
            "out": str(staging),
            "adapter": str(adapter.path / WEIGHTS),
            "scale": adapter.scale,
            "pairs": {target: list(pair) for target, pair in adapter.pairs.items()},
        }
        run_child("packager.sources.adapter_process", job, log, doing="merging the adapter", on_progress=on_progress)
        inspect_checkpoint(staging)

    with locked(entry):
        get_or_create(entry, make)
    return inspect_checkpoint(entry)
