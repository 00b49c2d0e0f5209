"""A checkpoint's chat template: whether devices render it as transformers does, and another in its place."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from contract.chat.files import DEFAULT, ChatFiles, read_chat_files
from contract.chat.template import ChatTemplate
from contract.errors import BuildRefused, RequestInvalid
from packager.build.build_cache import have
from packager.evaluate.conversations import CONVERSATIONS, DAY, differing
from packager.evaluate.jobs import Templates
from packager.sources.checkpoint import TEMPLATE_FILE, Checkpoint, inspect_checkpoint, read_json

TOKENIZER_CONFIG = "tokenizer_config.json"


def check_template(path: Path, templates: Templates, own: str | None = None) -> None:
    """Hold what a device would make of some conversations, with the template in ``path`` or ``own`` in its place,
    against what transformers makes of them.

    Raises:
        BuildRefused: the template renders none of them, or a device would render some otherwise.
    """
    if not templates.renderings:
        return
    texts = read_chat_files(path).templates if own is None else {DEFAULT: own}
    template = ChatTemplate(ChatFiles(texts, templates.special_tokens), now=lambda: DAY)
    try:
        if all(text is None for _, _, text in templates.renderings):
            template.render(CONVERSATIONS["one question"].messages)
    except RequestInvalid as refused:
        raise BuildRefused(
            f"the chat template renders no conversation: {refused.message}; give another with --chat-template"
        ) from refused
    fault, different = template.fault, differing(template, templates.renderings)
    if fault is not None or different:
        why = fault.message if fault is not None else ", ".join(different)
        raise BuildRefused(
            f"devices would render the chat template otherwise than transformers: {why}; give another with "
            "--chat-template"
        )


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

    # The source may have been moved since.
    have(entry, make, whole=lambda made: all(path.exists() for path in made.glob("*")))
    return inspect_checkpoint(entry), sha256
