"""Finds the id in what is no JSON, so that whoever sent it hears what is wrong with it. Pure, bounded.

Only the members of the outermost object are looked at, as far as they can be told apart: a byte order mark, another
encoding, a NUL or a comma too many, numbers that are none, a missing end, single quotes, or the whole document written
once more as a text do not matter. What is found is only ever used as the last level of a reply topic of the client that
the topic of the message names, and only if it is an identifier.

Where a name stands twice, the last value counts, as with nearly every reader of JSON, of those that will do.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable

MAX_SCANNED_BYTES = 1 << 20
"""The largest request that is read at all; of a larger one its beginning."""

MAX_PARTS = 100_000
"""Texts, brackets and words; so many take a few hundredths of a second."""

_PART = re.compile(
    r'"((?>[^"\\]*(?:\\.[^"\\]*)*))"' r"|'((?>[^'\\]*(?:\\.[^'\\]*)*))'" r"|([\[{])|([\]}])|([:,])|([\w.+-]+)|(\"|')",
    re.DOTALL,
)

_NUMBER = re.compile(r"\d+")
"""An id that was not written as a text; whoever counts its requests listens to the topic with these digits."""


def find_member(payload: bytes, name: str, suits: Callable[[str], bool]) -> str | None:
    """The text or whole number that the member ``name`` has in ``payload``, if there is one that ``suits``."""
    text = _decode(payload[:MAX_SCANNED_BYTES]).lstrip("\ufeff \t\r\n")
    if text.startswith('"') and (whole := _PART.match(text)) is not None and whole[1] is not None:
        # A document that was encoded twice.
        text = _unescape(whole[1]).lstrip()
    return _scan(text, name, suits)


def _decode(data: bytes) -> str:
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        if data.startswith(mark):
            return data.decode(encoding, "replace")
    if data[:2] == b"{\0":
        return data.decode("utf-16-le", "replace")
    return data.decode("utf-8", "replace")


def _scan(text: str, name: str, suits: Callable[[str], bool]) -> str | None:
    found: str | None = None
    depth, base = 0, 0
    key: str | None = None
    word: str | None = None
    for count, part in enumerate(_PART.finditer(text)):
        double, single, opening, closing, sign, bare, unended = part.groups()
        if count > MAX_PARTS or unended is not None:
            break
        if opening is not None:
            depth += 1
            if not base:
                # Lists around the object do not matter.
                base = depth if opening == "{" else 0
            key = word = None
        elif closing is not None:
            depth -= 1
            if base and depth < base:
                break
        elif depth == base and base:
            if sign == ":":
                key = word
            elif sign == ",":
                key = None
            else:
                written = double if double is not None else single
                word = bare if written is None else _unescape(written)
                readable = written is not None or _NUMBER.fullmatch(word) is not None
                if key == name and word is not None and readable and suits(word):
                    found = word
    return found


def _unescape(written: str) -> str:
    """The text between two quotes; as it is written where its escapes are none."""
    if "\\" not in written:
        return written
    try:
        return str(json.loads(f'"{written}"', strict=False))
    except ValueError:
        return written
