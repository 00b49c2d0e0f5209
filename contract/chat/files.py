"""Where a model's folder keeps its chat templates and the special tokens that they name, as transformers reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from msgspec import Struct

TEMPLATE_FILE = "chat_template.jinja"
MORE_TEMPLATES = "additional_chat_templates"
CONFIG_FILE = "tokenizer_config.json"
TOKENS_FILE = "special_tokens_map.json"

MAX_TEMPLATE_BYTES = 1 << 18
"""The longest published templates (tools and thinking) take 20 kB."""

MAX_CONFIG_BYTES = 64 << 20
"""A tokenizer configuration that lists a whole vocabulary stays below 10 MB."""

DEFAULT, TOOL_USE = "default", "tool_use"

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The names that transformers gives a template."""


class ChatFiles(Struct, frozen=True):
    """``templates`` by name, and the texts of the special tokens by the names that a template has for them."""

    templates: dict[str, str]
    special: dict[str, str]

    @property
    def default(self) -> str:
        """The template of a conversation without tools; empty for a base model."""
        return self.templates.get(DEFAULT, "")


def read_chat_files(directory: Path) -> ChatFiles:
    """What the folder ``directory`` says; files that cannot be read, or are no such files, say nothing."""
    config, tokens = _read_object(directory / CONFIG_FILE), _read_object(directory / TOKENS_FILE)
    special = {name: text for name in SPECIAL_TOKENS if (text := _text(config.get(name, tokens.get(name)))) is not None}
    if not (directory / TEMPLATE_FILE).is_file():
        return ChatFiles(_templates(config.get("chat_template")), special)
    own = _read_text(directory / TEMPLATE_FILE)
    if own is None:
        return ChatFiles({}, special)
    more = sorted((directory / MORE_TEMPLATES).glob("*.jinja"))
    others = {path.stem: text for path in more if (text := _read_text(path)) is not None}
    return ChatFiles({**others, DEFAULT: own}, special)


def _templates(found: Any) -> dict[str, str]:
    if isinstance(found, str):
        return {DEFAULT: found}
    if isinstance(found, dict):
        found = [{"name": name, "template": text} for name, text in found.items()]
    named = [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
    return {
        entry["name"]: entry["template"]
        for entry in named
        if isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str)
    }


def _text(token: Any) -> str | None:
    """A token is its text, or an object that has it as ``content``."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def _read_text(path: Path) -> str | None:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_TEMPLATE_BYTES + 1)
    except (OSError, ValueError):
        return None
    return text if len(text) <= MAX_TEMPLATE_BYTES else None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes()) if path.stat().st_size <= MAX_CONFIG_BYTES else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
