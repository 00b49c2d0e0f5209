"""How large the parts of a model are, from the headers of its weight files alone: what an estimate is made of."""

from __future__ import annotations

import math
import re
from collections import Counter

from msgspec import Struct

from packager.sources.checkpoint import Checkpoint, find_shards
from packager.sources.weights import list_tensors

_LAYER = re.compile(r"^(.*\blayers\.[0-9]+)\.")
_PACKED = re.compile(r"\.[qkv]_proj\.weight$")
"""Weights that the builder puts side by side into one product, as copies."""

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


LARGEST = 2**53
"""Whatever is larger is none of a model's numbers, and may be too large to reckon with."""


class ModelShape(Struct, frozen=True):
    """``layer`` is the largest layer and ``matrix`` the largest weight in parameters; ``table`` the embedding, 0 where
    it is the lm_head's own weight; ``vocabulary`` its rows and ``hidden`` their length. ``copied_bytes`` are weights
    that are joined before they are quantised, ``rope_bytes`` rotary tables in fp32, ``switches_at`` the position where
    these switch (0: nowhere), ``layer_kv_bytes`` keys and values of one position and layer; ``half`` says whether most
    of the weights are stored in 16 bits, ``family`` is the configuration's model type.
    """

    parameters: int
    layer: int = 0
    matrix: int = 0
    table: int = 0
    vocabulary: int = 0
    hidden: int = 0
    kv_token_bytes: int = 0
    copied_bytes: int = 0
    rope_bytes: int = 0
    switches_at: int = 0
    layer_kv_bytes: int = 0
    half: bool = True
    family: str = ""

    @property
    def switching_rope_bytes(self) -> int:
        """Of rotary tables inside branches of the graph."""
        return self.rope_bytes if self.switches_at else 0


def read_shape(checkpoint: Checkpoint) -> ModelShape:
    """The shape of ``checkpoint``; no weight is read. Of one without headers yet, by its configuration."""
    config = checkpoint.config
    if checkpoint.surveyed:
        return _guess_shape(checkpoint)
    layers: Counter[str] = Counter()
    copied = largest = half = 0
    for tensor in (tensor for shard in find_shards(checkpoint.path) for tensor in list_tensors(shard)):
        count = math.prod(tensor.shape)
        largest = max(largest, count)
        half += count if _BYTES.get(tensor.dtype, 4) == 2 else 0
        copied += tensor.end - tensor.start if _PACKED.search(tensor.name) else 0
        layer = _LAYER.match(tensor.name)
        if layer is not None:
            layers[layer[1]] += count
    vocabulary, hidden = _integer(config, "vocab_size"), _integer(config, "hidden_size")
    heads = _integer(config, "num_attention_heads") or 1
    head = _integer(config, "head_dim") or hidden // heads
    kv = 2 * 4 * _integer(config, "num_hidden_layers") * (_integer(config, "num_key_value_heads") or heads) * head
    return ModelShape(
        parameters=checkpoint.parameters,
        layer=max(layers.values(), default=largest),
        matrix=largest,
        table=0 if config.get("tie_word_embeddings") else min(vocabulary * hidden, checkpoint.parameters),
        vocabulary=vocabulary,
        hidden=hidden,
        kv_token_bytes=kv,
        copied_bytes=copied,
        layer_kv_bytes=kv // max(1, _integer(config, "num_hidden_layers")),
        switches_at=_switches_at(config),
        rope_bytes=_rope_bytes(config, head),
        half=2 * half > checkpoint.parameters,
        family=_family(config),
    )


def _switches_at(config: dict[str, object]) -> int:
    """From which position the rotary factors are others, so that both sets of tables stand in branches; 0: never."""
    rope = config.get("rope_scaling") or config.get("rope_parameters")
    if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type")) not in ("longrope", "su"):
        return 0
    name = "original_max_position_embeddings"
    return _integer(config, name) or _integer(rope, name) or _integer(config, "max_position_embeddings")


def _rope_bytes(config: dict[str, object], head: int) -> int:
    return 4 * (_integer(config, "max_position_embeddings") + _switches_at(config)) * head


def _guess_shape(checkpoint: Checkpoint) -> ModelShape:
    config, total = checkpoint.config, checkpoint.parameters
    vocabulary, hidden = _integer(config, "vocab_size"), _integer(config, "hidden_size")
    table = min(vocabulary * hidden, total)
    layers = _integer(config, "num_hidden_layers") or 1
    heads = _integer(config, "num_attention_heads") or 1
    head = _integer(config, "head_dim") or hidden // heads
    cached = (_integer(config, "num_key_value_heads") or heads) * head
    half = str(config.get("torch_dtype") or config.get("dtype")) in ("float16", "bfloat16")
    return ModelShape(
        parameters=total,
        layer=(total - table) // layers,
        matrix=max(table, hidden * _integer(config, "intermediate_size")),
        table=0 if config.get("tie_word_embeddings") else table,
        vocabulary=vocabulary,
        hidden=hidden,
        kv_token_bytes=2 * 4 * layers * cached,
        copied_bytes=(2 if half else 4) * layers * hidden * (hidden + 2 * cached),
        layer_kv_bytes=2 * 4 * cached,
        switches_at=_switches_at(config),
        rope_bytes=_rope_bytes(config, head),
        half=half,
        family=_family(config),
    )


def _family(config: dict[str, object]) -> str:
    return str(config.get("model_type") or "")


def _integer(config: dict[str, object], name: str) -> int:
    value = config.get(name)
    return value if isinstance(value, int) and 0 < value < LARGEST else 0
