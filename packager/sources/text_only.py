"""The text model of a checkpoint that also sees, as a checkpoint of its own: built, compared and run as any other.

With text alone its positions are the same along every axis of a picture's rotary embedding, so what remains of that is
the plain one.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from contract.errors import BuildRefused
from packager.build.build_cache import have
from packager.sources.checkpoint import find_shards, read_json
from packager.sources.converted import WITHIN_BYTES, holds_converted
from packager.sources.families import SEEING, TEXT_OF
from packager.sources.jobs import TEXT_CONFIG, TextConfigJob
from packager.sources.stored import rewrite_shards
from packager.sources.weights import list_tensors
from packager.subprocess_job import run_child

REVISION = 4
"""Raised whenever the conversion changes, so that older cache entries are not taken for its result."""

VISION_PARTS = re.compile(
    r"^(?:model\.)?(?:vision_tower|multi_modal_projector|visual|vision_embed_tokens|embed_vision|audio_tower)\."
)
"""Names of the parts that see, and of what hands that on to the text model."""

PREFIXES = (
    (re.compile(r"^(?:model\.)?language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^model\.language_model\."), "model."),
    (re.compile(r"^language_model\.model\."), "model."),
)
"""Where the text model lies in what different versions of transformers save."""

KEPT = (".json", ".jinja", ".model", ".txt", ".md")
RAW = {"Phi3VForCausalLM": ("embd_layer", "img_processor", "auto_map", "text_config", "_attn_implementation")}
"""Architectures that transformers runs only with code of the checkpoint, and the keys that are not text's."""

MROPE = "mrope_section"
"""How many pairs of each head are turned by a token's place in time, in height and in width: of no matter where tokens
are words, and kept for the decoder that is given pictures too."""

OLD_LONGROPE = "su"
"""What published checkpoints call ``longrope``, which transformers no longer takes in every form."""


def find_vision(path: Path) -> str | None:
    """The architecture in ``path/config.json`` if it is one that also sees."""
    file = path / "config.json"
    config = read_json(file) if file.is_file() else None
    found = config.get("architectures") if isinstance(config, dict) else None
    name = found[0] if isinstance(found, list) and found else None
    return name if isinstance(name, str) and name in TEXT_OF else None


def is_built_whole(path: Path) -> bool:
    """Whether what lies in ``path`` becomes a bundle that sees, unless its text model alone is asked for."""
    return find_vision(path) in SEEING


def extract_text(
    path: Path, digest: str, architecture: str, cache: Path, log: Path, *, config: dict[str, Any] | None = None
) -> Path:
    """The directory of the text model of ``path`` (whose files have ``digest``), made once; ``config`` is what
    :func:`read_text_config` gives.

    Raises:
        BuildRefused: its text model is of no architecture that can be built.
        StoreFull: no room for a copy of the weights.
    """
    entry = cache / "checkpoints" / f"{digest[:32]}-text-{REVISION}"

    def make(staging: Path) -> None:
        own = config or read_text_config(path, architecture, log)
        (staging / "config.json").write_text(json.dumps(own, indent=1), "utf-8")
        for file in path.iterdir():
            if file.is_file() and (file.suffix in KEPT or "LICEN" in file.name) and not _left_out(file.name):
                shutil.copyfile(file, staging / file.name)
        shards = find_shards(path)
        names = {tensor.name: name_of_text(tensor.name) for shard in shards for tensor in list_tensors(shard)}
        rewrite_shards(shards, {old: new for old, new in names.items() if new is not None}, staging)

    have(entry, make)
    return entry


def is_extracted(cache: Path, size: int) -> bool:
    """Whether ``cache`` holds a text model of about ``size`` bytes, as far as that tells."""
    return holds_converted(cache, f"*-text-{REVISION}", size, within=max(WITHIN_BYTES, size // 100))


def _left_out(name: str) -> bool:
    """Whether ``name`` is written anew or belongs to the part that sees."""
    return name == "config.json" or name.endswith((".index.json", "processor_config.json"))


def name_of_text(name: str) -> str | None:
    """What a weight of the whole model is called in the text model; None if it has no place there."""
    if VISION_PARTS.match(name):
        return None
    for pattern, start in PREFIXES:
        if pattern.match(name):
            return pattern.sub(start, name)
    return name


def read_text_config(path: Path, architecture: str, log: Path) -> dict[str, Any]:
    """The config.json of the text model of ``path``.

    Raises:
        BuildRefused: it is of no architecture that can be built.
    """
    document = read_json(path / "config.json")
    target, model_type = TEXT_OF[architecture]
    if architecture in RAW:
        config = {key: value for key, value in document.items() if key not in RAW[architecture]}
        scaling = config.get("rope_scaling")
        if isinstance(scaling, dict) and scaling.get("type") == OLD_LONGROPE:
            config["rope_scaling"] = {**scaling, "type": "longrope"}
    else:
        config = run_child(TEXT_CONFIG, TextConfigJob(str(path)), log).config
        own = config.get("model_type", "")
        if own not in (model_type, f"{model_type}_text") and not own.endswith(("vl_text",)):
            raise BuildRefused(
                f"the text model of this {architecture} is of the kind {own!r}, which cannot be built yet"
            )
        rope = {key: value for key, value in (config.get("rope_parameters") or {}).items() if "mrope" not in key}
        if architecture in SEEING and (parts := (config.get("rope_parameters") or {}).get("mrope_section")):
            config[MROPE] = parts
        config["rope_parameters"] = {**rope, "rope_type": "default"} if rope.get("rope_type") == "mrope" else rope
        if "tie_word_embeddings" in document:
            config["tie_word_embeddings"] = document["tie_word_embeddings"]
    for key in ("bos_token_id", "eos_token_id", "pad_token_id", "torch_dtype", "dtype", "quantization_config"):
        if config.get(key) is None and document.get(key) is not None:
            config[key] = document[key]
    return {**config, "architectures": [target], "model_type": model_type}
