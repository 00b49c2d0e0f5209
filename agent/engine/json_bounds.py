"""Ends JSON that its schema would let go on for ever. Pure.

Small models fall into a rut (``"pop": 1111…``), and a schema that sets no bounds lets them stay there up to the token
limit. Where a text, a number, a list, an object or the whole is full (:class:`Limits`), tokens that would make it
longer are left out, as long as others may follow. The schema stays as it is: whatever it combines, an answer to it can
be finished, since every token that a grammar allows leads to an end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.engine.answer_limits import Limits

LEVELS = 3
"""Lists and objects around a place that one token may end or fill."""

STRUCTURE = frozenset(b'"[]{},')
OPENING = frozenset(b"[{")
CLOSING = frozenset(b"]}")
QUOTE, BACKSLASH, COMMA = b'"\\,'
DIGITS = frozenset(b"0123456789")
CONTINUATION = 0x80
"""The first two bits of a byte that goes on with a character of UTF-8."""


LIST = ord("[")


class Fullness(Struct, frozen=True):
    """What of the places around the next token is full: ``around`` says it of lists and objects, the innermost last.

    ``fresh``: the innermost has just begun, so that anything but its end is its first item.
    """

    in_text: bool
    escaped: bool
    text: bool
    number: bool
    depth: bool
    fresh: bool
    around: tuple[bool, ...]

    @property
    def any(self) -> bool:
        return self.text or self.number or self.depth or True in self.around


class JsonScanner:
    """Follows one answer, byte by byte. ``marks``: JSON begins behind each of them; without any it begins at once."""

    def __init__(self, limits: Limits, marks: Sequence[bytes] = ()) -> None:
        self._limits = limits
        self._marks = marks
        self._tail = b""
        self._inside = not marks
        self._begin()

    def _begin(self) -> None:
        self._stack: list[list[int]] = []
        """Opening byte and commas so far of each list and object."""
        self._in_text = self._escaped = self._fresh = False
        self._text = self._digits = self._bytes = 0

    def feed(self, data: bytes) -> None:
        """What was said."""
        for byte in data.lstrip(b"\xff"):
            if self._inside:
                self._step(byte)
            else:
                self._look(byte)

    def _look(self, byte: int) -> None:
        longest = max(map(len, self._marks))
        self._tail = (self._tail + bytes([byte]))[-longest:]
        if self._tail.endswith(tuple(self._marks)):
            self._tail, self._inside = b"", True
            self._begin()

    def _step(self, byte: int) -> None:
        self._bytes += 1
        if self._in_text:
            self._step_in_text(byte)
            return
        self._digits = self._digits + 1 if byte in DIGITS else 0
        self._fresh = byte in OPENING
        if byte == QUOTE:
            self._in_text, self._text = True, 0
        elif byte in OPENING:
            self._stack.append([byte, 0])
        elif byte in CLOSING and self._stack:
            self._stack.pop()
            self._inside = bool(self._stack) or not self._marks
        elif byte == COMMA and self._stack:
            self._stack[-1][1] += 1

    def _step_in_text(self, byte: int) -> None:
        if self._escaped:
            self._escaped = False
        elif byte == QUOTE:
            self._in_text = False
        else:
            self._escaped = byte == BACKSLASH
            self._text += byte & 0xC0 != CONTINUATION

    def fullness(self) -> Fullness | None:
        """None where there is room."""
        if not self._inside:
            return None
        limits, whole = self._limits, self._bytes >= self._limits.whole
        depth = len(self._stack)
        around = tuple(
            whole or number > limits.depth or commas + 1 >= (limits.items if opening == LIST else limits.names)
            for number, (opening, commas) in enumerate(self._stack[-LEVELS:], max(0, depth - LEVELS) + 1)
        )
        found = Fullness(
            in_text=self._in_text,
            escaped=self._escaped,
            text=self._in_text and (whole or self._text >= limits.text),
            number=self._digits >= (1 if whole else limits.digits),
            depth=whole or depth >= limits.depth,
            fresh=self._fresh and (whole or depth > limits.depth),
            around=around,
        )
        return found if found.any else None


def goes_on(full: Fullness, token: bytes) -> bool:  # noqa: PLR0912 - one branch a kind of byte
    """Whether ``token`` makes longer what is full."""
    if full.fresh:
        return token[0] not in CLOSING
    in_text, escaped, text, number = full.in_text, full.escaped, full.text, full.number
    around, opened = list(full.around), 0
    for byte in token:
        if in_text:
            if escaped:
                escaped = False
            elif byte == QUOTE:
                in_text = text = False
            elif text:
                return True
            else:
                escaped = byte == BACKSLASH
            continue
        if number and byte in DIGITS:
            return True
        number = False
        if byte == QUOTE:
            in_text = True
        elif byte in OPENING:
            if full.depth and opened >= 0:
                return True
            opened += 1
            around.append(False)
        elif byte in CLOSING:
            opened -= 1
            if around:
                around.pop()
        elif byte == COMMA and around and around[-1]:
            return True
    return False


class Tokens:
    """The tokens of a vocabulary, as far as they can fill anything. ``bytes_of`` gives the bytes of a token."""

    def __init__(self, size: int, bytes_of: Callable[[int], bytes]) -> None:
        self._first = np.zeros(size, dtype=np.uint8)
        self._structural: dict[int, bytes] = {}
        for token in range(size):
            data = bytes_of(token)
            if data:
                self._first[token] = data[0]
            if not STRUCTURE.isdisjoint(data):
                self._structural[token] = data
        self._known: dict[Fullness, NDArray[np.bool_]] = {}

    def going_on(self, full: Fullness) -> NDArray[np.bool_]:
        """``[vocab]``, True for tokens that make longer what is full."""
        found = self._known.get(full)
        if found is None:
            found = self._known[full] = self._find(full)
        return found

    def _find(self, full: Fullness) -> NDArray[np.bool_]:
        found = np.zeros(len(self._first), dtype=np.bool_)
        if full.text and not full.escaped:
            found = self._first != QUOTE
        elif full.number:
            found = np.isin(self._first, list(DIGITS))
        elif full.fresh:
            found = self._first != 0
        for token, data in self._structural.items():
            found[token] = goes_on(full, data)
        return found
