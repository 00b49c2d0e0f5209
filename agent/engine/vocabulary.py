"""The bytes behind a token. A character outside ASCII is often several tokens, none of which is a text by itself, so
that only their bytes can be joined again; the runtime's tokenizer tells nothing but text.

Two kinds of ``tokenizer.json`` matter: byte-level ones write each byte as a printable character (GPT-2's table), the
others write a space as ``▁`` and a byte that is no character as ``<0xE2>``. The file of a large vocabulary takes 35 MB
and much more as objects, so that only the places of its entries are kept, and those from the first request that asks.
"""

from __future__ import annotations

import json
import re
from array import array
from functools import cache
from pathlib import Path

MAX_FILE_BYTES = 64 << 20

MAX_ADDED_BYTES = 4 << 20
"""Of the list of added tokens: thousands of them take a few hundred kB."""

_STRING = rb'"((?>[^"\\]*(?:\\.[^"\\]*)*))"'
_VOCABULARY = re.compile(rb'"vocab"\s*:\s*([\[{])')
_NUMBERED = re.compile(rb"\s*" + _STRING + rb"\s*:\s*(\d{1,9})\s*[,}]", re.DOTALL)
_LISTED = re.compile(rb"\s*\[\s*" + _STRING + rb"\s*,[^\]\"]*\]\s*[,\]]", re.DOTALL)
_BYTE_LEVEL = re.compile(rb'"type"\s*:\s*"ByteLevel"')
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
_ADDED = re.compile(rb'"added_tokens"\s*:\s*\[')


class Vocabulary:
    """Of the ``tokenizer.json`` at ``path``; one that is missing or of another kind knows no token."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offsets = array("q")
        self._added: dict[int, bytes] = {}
        self._byte_level = False
        try:
            if path.stat().st_size <= MAX_FILE_BYTES:
                self._read(path.read_bytes())
        except (OSError, ValueError, KeyError, TypeError):
            self._offsets = array("q")

    def _read(self, data: bytes) -> None:
        added = _ADDED.search(data)
        if added is not None:
            # A list of small objects; the decoder stops at its end.
            text = data[added.end() - 1 : added.end() + MAX_ADDED_BYTES].decode("utf-8", "ignore")
            found, _ = json.JSONDecoder().raw_decode(text)
            self._added = {int(token["id"]): token["content"].encode("utf-8", "replace") for token in found}
        start = _VOCABULARY.search(data)
        if start is None:
            return
        self._byte_level = _BYTE_LEVEL.search(data) is not None
        entry, listed = (_LISTED, True) if start[1] == b"[" else (_NUMBERED, False)
        at, number = start.end(), 0
        while (match := entry.match(data, at)) is not None:
            number = len(self._offsets) if listed else int(match[2])
            if number >= len(self._offsets):
                self._offsets.extend([-1] * (number + 1 - len(self._offsets)))
            self._offsets[number] = match.start(1) - 1
            at = match.end()

    def bytes_of(self, token: int) -> bytes | None:
        """The bytes that ``token`` adds to an answer, None if that is not known."""
        if token in self._added:
            return self._added[token]
        if not 0 <= token < len(self._offsets) or self._offsets[token] < 0:
            return None
        with self._path.open("rb") as file:
            file.seek(self._offsets[token])
            piece = file.read(4096).decode("utf-8", "ignore")
        try:
            text, _ = json.JSONDecoder().raw_decode(piece)
        except ValueError:
            return None
        if self._byte_level:
            table = _byte_level_table()
            return b"".join(table[char] if char in table else char.encode("utf-8", "replace") for char in text)
        byte = _BYTE.fullmatch(text)
        return bytes([int(byte[1], 16)]) if byte else str(text).replace("▁", " ").encode("utf-8", "replace")


@cache
def _byte_level_table() -> dict[str, bytes]:
    """GPT-2's: printable bytes stand for themselves, the others for the characters from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): bytes([byte]) for byte in printable} | {
        chr(256 + offset): bytes([byte]) for offset, byte in enumerate(others)
    }
