"""A checkpoint with another chat template: a directory of links to it, with the template of the operator's choice."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from packager.shelf import held, make_once
from packager.sources.checkpoint import TEMPLATE_FILE, Checkpoint, inspect_checkpoint, read_json

TOKENIZER_CONFIG = "tokenizer_config.json"


def replace_template(checkpoint: Checkpoint, digest: str, template: str, cache: Path) -> tuple[Checkpoint, str]:
    """``checkpoint``, whose files have ``digest``, with ``template`` in place of its own; and the template's SHA-256.

    Raises:
        BuildRefused: the checkpoint's tokenizer configuration cannot be read.
    """
    sha256 = hashlib.sha256(template.encode()).hexdigest()
    entry = cache / "checkpoints" / f"{digest[:32]}-template-{sha256[:16]}"

    def make(staging: Path) -> None:
        for path in checkpoint.path.iterdir():
            if path.is_file() and not path.name.startswith("chat_template"):
                (staging / path.name).symlink_to(path.resolve())
        config = checkpoint.path / TOKENIZER_CONFIG
        if config.is_file():
            document = read_json(config)
            document.pop("chat_template", None)
            (staging / TOKENIZER_CONFIG).unlink()
            (staging / TOKENIZER_CONFIG).write_text(json.dumps(document, indent=1), "utf-8")
        (staging / TEMPLATE_FILE).write_text(template, "utf-8")

    with held(entry):
        # The source may have been moved since.
        if any(not path.exists() for path in entry.glob("*")):
            shutil.rmtree(entry)
        make_once(entry, make)
    return inspect_checkpoint(entry), sha256
