"""The same checkpoint with two of its layers: what a whole model takes too long for is computed with these in seconds.

Embedding, final norm and head are the checkpoint's own, in its own type, and every kind of layer that it has is there.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packager.sources.checkpoint import find_shards
from packager.sources.weights import list_tensors

LEAST_LAYERS = 2
LAYER = re.compile(r"^(?P<before>(?:.+\.)?layers\.)(?P<number>\d+)(?P<after>\..+)$")
"""Names of weights that belong to a layer, in every family that is offered."""

BY_LAYER = ("layer_types", "no_rope_layers")
"""Entries of a configuration that say a thing of each layer."""

DERIVED = ("full_attn_idxs", "no_rope_layer_interval", "sliding_window_pattern", "_sliding_window_pattern")
"""Entries from which transformers makes those where they are absent."""

KEPT = (".json", ".jinja", ".model", ".txt")


def choose_layers(config: Mapping[str, Any]) -> list[int]:
    """The first layer of every kind by ``config`` (every default filled in), at least two where there are two."""
    count = int(config["num_hidden_layers"])
    per_layer = [config[key] for key in BY_LAYER if isinstance(config.get(key), list) and len(config[key]) == count]
    kinds: dict[tuple[Any, ...], int] = {}
    for layer in range(count):
        kinds.setdefault(tuple(entry[layer] for entry in per_layer), layer)
    chosen = set(kinds.values())
    for layer in range(count):
        if len(chosen) < LEAST_LAYERS:
            chosen.add(layer)
    return sorted(chosen)


def truncate_config(raw: Mapping[str, Any], config: Mapping[str, Any], layers: list[int]) -> dict[str, Any]:
    """``raw``, a config.json, for a model of ``layers`` alone; ``config`` is what transformers makes of it."""
    count = int(config["num_hidden_layers"])
    changed = {key: value for key, value in raw.items() if key not in DERIVED}
    changed["num_hidden_layers"] = len(layers)
    for key in BY_LAYER:
        value = config.get(key)
        if isinstance(value, list) and len(value) == count:
            changed[key] = [value[layer] for layer in layers]
    return changed


def truncate_name(name: str, layers: list[int]) -> str | None:
    """What the weight ``name`` is called in the model of ``layers``; None where it is of a layer that was left out."""
    match = LAYER.match(name)
    if match is None:
        return name
    number = int(match["number"])
    return f"{match['before']}{layers.index(number)}{match['after']}" if number in layers else None


def truncated_bytes(path: Path, layers: list[int]) -> tuple[int, int]:
    """Weights of the checkpoint ``path`` that remain with ``layers``: how many bytes, and how many numbers."""
    size = count = 0
    for shard in find_shards(path):
        for tensor in list_tensors(shard):
            if truncate_name(tensor.name, layers) is not None:
                size += tensor.end - tensor.start
                numbers = 1
                for length in tensor.shape:
                    numbers *= length
                # Words of 32 bits hold eight codes of four bits.
                count += 8 * numbers if tensor.dtype == "I32" else numbers
    return size, count


def write_truncated(path: Path, out: Path, config: Mapping[str, Any], layers: list[int]) -> None:
    """The checkpoint ``path`` with ``layers`` alone, in the new directory ``out``."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    out.mkdir()
    for file in path.iterdir():
        if file.is_file() and file.suffix in KEPT and not file.name.endswith(".index.json"):
            shutil.copyfile(file, out / file.name)
    raw = json.loads((path / "config.json").read_text("utf-8"))
    (out / "config.json").write_text(json.dumps(truncate_config(raw, config, layers)), "utf-8")
    tensors = {}
    for shard in find_shards(path):
        with safe_open(shard, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping, has no iterator
                kept = truncate_name(name, layers)
                if kept is not None:
                    tensors[kept] = opened.get_tensor(name)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
