"""Which ``genai_config.json`` may reach the runtime, and the few facts in it that engines need.

onnxruntime-genai 0.18 loads the library that ``custom_ops_library`` names, opens whatever a ``filename`` says, and
passes unknown session options on in silence. So every key is on a list (:mod:`contract.bundle.genai_rules`), with its
type, and every file it names must be one of the bundle's.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from msgspec import Struct

from contract import strict_json
from contract.bundle.genai_rules import CONFIG_FILE, CONFIG_RULE, MAX_ITEMS, ConfigWalk, refuse

__all__ = ["CONFIG_FILE", "MAX_CONFIG_BYTES", "GenaiFacts", "read_genai_config"]

MAX_CONFIG_BYTES = 2**20
"""Configurations are 2 to 20 kB, mostly layer lists."""


class GraphFacts(Struct, frozen=True):
    """A graph beside the decoder: its file, the names that it gives to what it reads and writes, and the file that says
    how that is prepared, if there is one.
    """

    filename: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    config_filename: str | None = None


class GenaiFacts(Struct, frozen=True):
    """What engines, checks and manifests take from a configuration that passed.

    ``filename`` is the decoder's graph; ``capabilities`` is ``text`` and whatever else the model has parts for, and
    ``speech`` alone for one whose decoder waits for an encoder (Whisper and its kin), which reads no text.
    ``vision`` and ``embedding`` are graphs of a model that sees, ``image_token_id`` stands for a place of a picture.
    """

    model_type: str
    filename: str
    context_length: int
    vocab_size: int
    hidden_size: int
    head_size: int
    attention_heads: int
    kv_heads: int
    layers: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    pad_token_id: int | None
    graphs: tuple[str, ...]
    capabilities: tuple[str, ...]
    inputs: dict[str, str]
    outputs: dict[str, str]
    search: dict[str, Any]
    sliding_window: dict[str, Any] | None
    provider: str = "cpu"
    vision: GraphFacts | None = None
    embedding: GraphFacts | None = None
    image_token_id: int | None = None

    @property
    def least_cache(self) -> int:
        """Tokens that a key-value cache must hold however short the prompt: the window's, where layers keep no more."""
        windowed = self.sliding_window or {}
        return min(int(windowed.get("window_size", 0)), self.context_length) if windowed.get("layers") else 0


def read_genai_config(data: bytes, files: Collection[str] | None = None) -> GenaiFacts:
    """Check a configuration against the list and take out the facts; ``files`` are the bundle's paths, if known.

    Raises:
        BundleRefused: CONFIG_NOT_ALLOWED, ``field`` naming the key; or what :mod:`contract.strict_json` refuses.
    """
    document = strict_json.loads(data, max_bytes=MAX_CONFIG_BYTES, what=CONFIG_FILE)
    walk = ConfigWalk(files)
    CONFIG_RULE(walk, "", document)
    model = document.get("model", {})
    decoder = model.get("decoder", {})
    parts = [part for part in ("vision", "speech") if part in model]

    def required(table: dict[str, Any], key: str, path: str, most: int) -> int:
        value = table.get(key)
        if value is None or not 0 < value <= most:
            raise refuse(path, f"must be between 1 and {most}")
        return int(value)

    eos = model.get("eos_token_id", [])
    eos_ids = tuple(eos) if isinstance(eos, list) else (eos,)
    vocab_size = required(model, "vocab_size", "model.vocab_size", 2**24)
    if any(not 0 <= token < vocab_size for token in eos_ids):
        raise refuse("model.eos_token_id", f"must lie within the vocabulary of {vocab_size}")
    if "filename" not in decoder:
        raise refuse("model.decoder.filename", "is missing")
    heads = required(decoder, "num_attention_heads", "model.decoder.num_attention_heads", 4096)
    return GenaiFacts(
        model_type=model.get("type", ""),
        filename=decoder["filename"],
        context_length=required(model, "context_length", "model.context_length", 2**31 - 1),
        vocab_size=vocab_size,
        hidden_size=required(decoder, "hidden_size", "model.decoder.hidden_size", 2**20),
        head_size=required(decoder, "head_size", "model.decoder.head_size", 2**14),
        attention_heads=heads,
        kv_heads=required(
            {"n": decoder.get("num_key_value_heads", heads)}, "n", "model.decoder.num_key_value_heads", 4096
        ),
        layers=required(decoder, "num_hidden_layers", "model.decoder.num_hidden_layers", MAX_ITEMS),
        eos_token_ids=eos_ids,
        bos_token_id=model.get("bos_token_id"),
        pad_token_id=model.get("pad_token_id"),
        graphs=tuple(dict.fromkeys(walk.graphs)),
        capabilities=("speech",) if "encoder" in model else ("text", *parts),
        inputs=decoder.get("inputs", {}),
        outputs=decoder.get("outputs", {}),
        search=document.get("search", {}),
        sliding_window=decoder.get("sliding_window"),
        provider=_provider(decoder.get("session_options", {})),
        vision=_graph(model.get("vision", {})),
        embedding=_graph(model.get("embedding", {})),
        image_token_id=model.get("image_token_id"),
    )


def _graph(part: dict[str, Any]) -> GraphFacts | None:
    if "filename" not in part:
        return None
    return GraphFacts(part["filename"], part.get("inputs", {}), part.get("outputs", {}), part.get("config_filename"))


def _provider(session_options: dict[str, Any]) -> str:
    """The execution provider that the decoder asks for first; the CPU when it asks for none."""
    for entry in session_options.get("provider_options", []):
        for name in entry:
            return str(name).lower()
    return "cpu"
