"""The text that the default quantizer reads: ``passages.txt``, written for this purpose, the same for every model.

Which inputs of a matrix are large depends far more on the model than on the text, so that a few thousand tokens are
enough as long as no kind is left out: exposition, narrative, dialogue, instructions, letters, rules, tables, numbers,
code, markup, other languages and scripts. Nothing in it is a question or a text that bundles are judged by. ``%% text``
starts a passage, ``%% user`` and ``%% assistant`` the two sides of a conversation.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files

FILE = files(__package__) / "passages.txt"
MARK = "%% "


def digest_passages() -> str:
    """SHA-256 of the file."""
    return hashlib.sha256(FILE.read_bytes()).hexdigest()


def read_passages() -> list[tuple[str, ...]]:
    """In order: passages as ``(text,)``, conversations as ``(asked, answered)``; a text ends with its line."""
    found: list[tuple[str, ...]] = []
    for section in f"\n{FILE.read_text('utf-8')}".split(f"\n{MARK}")[1:]:
        kind, _, body = section.partition("\n")
        if kind == "assistant":
            found[-1] = (*found[-1], body)
        else:
            found.append((body if kind == "user" else f"{body}\n",))
    return found
