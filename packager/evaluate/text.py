"""The text that quality is measured on."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from msgspec import Struct

from contract.errors import BuildRefused

TEXT_NAME = "pydoc_data.topics"
TEXT_CHARACTERS = 24_000
"""More than the tokens that are read of it need, in any tokenizer."""

MAX_TEXT_BYTES = 16 * 2**20
"""Far more than is ever read; a larger file is most likely the wrong one."""


class EvalText(Struct, frozen=True):
    """A text and what evidence calls it: its digest tells more than a path would."""

    name: str
    sha256: str
    text: str


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def reference_text() -> EvalText:
    """English reference prose that ships with CPython: the longest topics of its language reference.

    The same on every host with the same Python minor version, which is part of its name.
    """
    from pydoc_data.topics import topics

    ordered = sorted(topics.items(), key=lambda item: (-len(item[1]), item[0]))
    text = "\n".join(text for _, text in ordered[:6])[:TEXT_CHARACTERS]
    name = f"{TEXT_NAME} of Python {sys.version_info.major}.{sys.version_info.minor}"
    return EvalText(name=name, sha256=_digest(text), text=text)


def read_text(path: Path, purpose: str) -> EvalText:
    """The UTF-8 text in ``path``, for ``purpose`` (``--eval`` or ``--calibration``).

    Raises:
        BuildRefused: it is missing, empty, too large or not text.
    """
    try:
        data = path.read_bytes() if path.stat().st_size <= MAX_TEXT_BYTES else None
    except OSError as error:
        raise BuildRefused(f"{purpose} {path} cannot be read: {error.strerror}") from error
    if data is None:
        raise BuildRefused(f"{purpose} {path} is larger than {MAX_TEXT_BYTES >> 20} MiB; cut it, little of it is read")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BuildRefused(f"{purpose} {path} is not UTF-8 text at byte {error.start}") from error
    if not text.strip():
        raise BuildRefused(f"{purpose} {path} is empty; give it some pages of text")
    return EvalText(name=path.name, sha256=_digest(text), text=text)
