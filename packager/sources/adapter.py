"""A base model and its LoRA adapter, merged into one checkpoint by peft itself.

peft decides what an adapter is: scaling, magnitudes (DoRA), ways to begin that change the base as well (PiSSA, OLoRA).
What it cannot merge, or needs more than the adapter's files for, is refused by name. An adapter that stays beside its
base is another matter: there it is ``W + scale * B A`` (Hu et al., 2021) for every product or it is refused, and each
product is held against peft's.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct

from contract.errors import BuildRefused
from packager.build.build_cache import have
from packager.sources.checkpoint import (
    INDEX_FILE,
    Checkpoint,
    Pending,
    digest_directory,
    inspect_checkpoint,
    read_json,
)
from packager.sources.converted import holds_converted
from packager.sources.headers import WeightHeaders
from packager.sources.hub import is_hub_id
from packager.sources.jobs import MERGE, MergeJob
from packager.sources.small_files import refuse_wrong_types
from packager.sources.weights import StoredTensor, count_parameters, list_tensors
from packager.subprocess_job import run_child

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
REVISION = 2
"""Raised whenever merging changes, so that older cache entries are not taken for its result."""


BYTES_PER_PARAMETER = 5
"""Of the base: it is merged in fp32, a product at a time."""

PROCESS_BYTES = 700 * 2**20
STORED_BYTES = {"float16": 2, "bfloat16": 2}
"""Of a weight of the merged model, by the type that config.json names."""

UNMERGED = (
    "use_qalora", "layer_replication", "target_parameters", "alora_invocation_tokens", "trainable_token_indices",
    "arrow_config", "use_bdlora", "velora_config", "monteclora_config", "kasa_config",
)  # fmt: skip
"""Entries of adapter_config.json whose adapters peft does not merge into a plain model of the same shape."""

BESIDE = (
    "use_dora", "fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias",
)  # fmt: skip
"""Entries that make an adapter more than ``scale * B A`` beside each product: peft merges them."""

PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Ways to begin an adapter that leave the base as it is."""

MERGED_STARTS = ("pissa", "olora")
"""Ways to begin that take from the base what they put into the adapter, which peft does again whenever it loads one.
Others need more for that than the adapter's files hold: LoftQ, CorDA, LoRA-GA, and the random numbers of pissa_niter.
"""


class Adapter(Struct, frozen=True):
    """A LoRA adapter: ``pairs`` maps a weight of the base to the names of its A and B."""

    path: Path
    sha256: str
    base: str
    scale: float
    pairs: dict[str, tuple[str, str]]
    tensors: dict[str, StoredTensor]


def inspect_adapter(path: Path, *, merged: bool = True) -> Adapter:
    """Look at the adapter directory ``path``, which is to be ``merged`` or to stay beside its base.

    Raises:
        BuildRefused: it is no LoRA adapter, or holds what cannot be merged, or more than plain LoRA for one that stays.
    """
    if not (path / CONFIG).is_file() or not (path / WEIGHTS).is_file():
        raise BuildRefused(f"{path} is not an adapter; it needs {CONFIG} and {WEIGHTS}")
    refuse_wrong_types(path)
    config = read_json(path / CONFIG)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise BuildRefused(f"{path} is not a LoRA adapter; other kinds cannot be merged")
    _refuse_extras(path, config, merged=merged)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise BuildRefused(f"{path}/{CONFIG} has no rank 'r' or no 'lora_alpha'")
    count_parameters(path / WEIGHTS)  # refuses a damaged file
    tensors = {tensor.name: tensor for tensor in list_tensors(path / WEIGHTS)}
    pairs = _pair(path, tensors)
    if not merged and 2 * len(pairs) != len(tensors):
        raise BuildRefused(f"the adapter {path.name!r} holds tensors other than pairs of lora_A and lora_B")
    return Adapter(
        path=path,
        sha256=digest_directory(path),
        base=str(config.get("base_model_name_or_path") or ""),
        scale=alpha / (math.sqrt(rank) if config.get("use_rslora") else rank),
        pairs=pairs,
        tensors=tensors,
    )


def _refuse_extras(path: Path, config: dict[str, Any], *, merged: bool) -> None:
    for key in UNMERGED:
        if config.get(key):
            raise BuildRefused(f"the adapter {path.name!r} uses {key}, which cannot be merged into a plain model")
    for key in BESIDE:
        if config.get(key) and not merged:
            raise BuildRefused(
                f"the adapter {path.name!r} uses {key}, which cannot stay beside its base; merge it (--merge-adapter)"
            )
    start = config.get("init_lora_weights", True)
    takes = start in MERGED_STARTS
    if takes and not merged:
        raise BuildRefused(
            f"the adapter {path.name!r} began as {start!r} (init_lora_weights), which changes the base as well; "
            "merge it (--merge-adapter), or save it again in peft with path_initial_model_for_weight_conversion"
        )
    if not takes and start not in PLAIN_STARTS:
        raise BuildRefused(
            f"the adapter {path.name!r} began as {str(start)[:40]!r} (init_lora_weights), which changes the base by "
            "more than its files hold; save it again in peft with path_initial_model_for_weight_conversion"
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
    if not pairs:
        raise BuildRefused(f"the adapter {path.name!r} holds no pairs of lora_A and lora_B")
    return pairs


def check_base(adapter: Adapter, base: Checkpoint, headers: WeightHeaders, source: str) -> None:
    """Refuse an adapter that was trained on another base than ``base``, whose weights ``headers`` list, as far as names
    and shapes tell.

    Raises:
        BuildRefused: naming the first difference.
    """
    name = adapter.path.name
    if base.quantization is not None:
        raise BuildRefused("an adapter cannot be merged into quantised weights; name the base that it was trained on")
    if is_hub_id(source) and is_hub_id(adapter.base) and source != adapter.base:
        raise BuildRefused(f"the adapter {name!r} was trained on {adapter.base}, not on {source}")
    weights = {tensor.name: tensor for tensor in headers.tensors}
    for target, (first, second) in adapter.pairs.items():
        if target not in weights:
            raise BuildRefused(f"the adapter {name!r} belongs to another base: this one has no {target!r}")
        shape = (adapter.tensors[second].shape[0], adapter.tensors[first].shape[1])
        if weights[target].shape != shape:
            raise BuildRefused(
                f"the adapter {name!r} belongs to another base: {target!r} is {weights[target].shape} here and "
                f"{shape} there"
            )


def pending_merge(base: Checkpoint, cache: Path) -> Pending:
    """What merging into ``base`` takes; nothing where ``cache`` holds such a model, as far as its size tells."""
    found = _merging(base)
    return Pending() if holds_converted(cache, "*-merged", found.disk_bytes) else found


def _merging(base: Checkpoint) -> Pending:
    size = STORED_BYTES.get(str(base.config.get("torch_dtype") or base.config.get("dtype")), 4) * base.parameters
    return Pending(memory_bytes=PROCESS_BYTES + BYTES_PER_PARAMETER * base.parameters, disk_bytes=size)


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
    from packager.build.estimate import refuse_conversion  # which knows plans, which know how sources are opened

    key = hashlib.sha256(f"{digest} {adapter.sha256} {REVISION} {importlib.metadata.version('peft')}".encode())
    entry = cache / "checkpoints" / f"{key.hexdigest()[:32]}-merged"

    def make(staging: Path) -> None:
        refuse_conversion(_merging(base), cache, "merging the adapter")
        for file in base.path.iterdir():
            if (
                file.is_file()
                and file.suffix not in (".safetensors", ".bin", ".pt", ".gguf")
                and file.name != INDEX_FILE
            ):
                shutil.copyfile(file, staging / file.name)
        job = MergeJob(base=str(base.path), adapter=str(adapter.path.resolve()), out=str(staging))
        run_child(MERGE, job, log, on_progress=on_progress)
        inspect_checkpoint(staging)

    have(entry, make)
    return inspect_checkpoint(entry)
