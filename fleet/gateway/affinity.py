"""Which device has the beginning of a chat in its cache: hashes of beginnings, the last ones that were asked. Pure.

A device keeps the keys and values of prompts that it has read (docs/MQTT.md, ``usage.cached_tokens``): of a chat that
comes back to it, it reads only what is new.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

MAX_BEGINNINGS = 65_536
"""That are remembered, of about 200 bytes each."""

MAX_OF_ONE = 64
"""Beginnings of one request that are remembered: the first and the last of them."""

BLOCK_CHARACTERS = 512
"""Of a prompt without messages: beginnings are cut after so many."""

_DIGEST_BYTES = 16


def beginnings_of_messages(messages: Sequence[Any], salt: Any) -> tuple[bytes, ...]:
    """A hash for each beginning of ``messages``, the shortest first; ``salt``: what else stands before them."""
    return _chain(messages, salt)


def beginnings_of_prompt(prompt: str, salt: Any) -> tuple[bytes, ...]:
    """The same for a text that goes to the model as it is."""
    blocks = [prompt[at : at + BLOCK_CHARACTERS] for at in range(0, len(prompt), BLOCK_CHARACTERS)]
    return _chain(blocks, salt)


def _chain(pieces: Iterable[Any], salt: Any) -> tuple[bytes, ...]:
    found: list[bytes] = []
    before = hashlib.blake2b(msgspec.json.encode(salt, order="sorted"), digest_size=_DIGEST_BYTES).digest()
    for each in pieces:
        piece = msgspec.json.encode(each, order="sorted")
        before = hashlib.blake2b(before + piece, digest_size=_DIGEST_BYTES).digest()
        found.append(before)
    if len(found) > MAX_OF_ONE:
        found = found[: MAX_OF_ONE // 2] + found[-MAX_OF_ONE // 2 :]
    return tuple(found)


class Affinity:
    """Devices by the beginnings that they were asked last; the oldest are forgotten."""

    def __init__(self, limit: int = MAX_BEGINNINGS) -> None:
        self._limit = limit
        self._devices: OrderedDict[bytes, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._devices)

    def remember(self, beginnings: Iterable[bytes], device: str) -> None:
        """``device`` answers what begins so."""
        for each in beginnings:
            self._devices[each] = device
            self._devices.move_to_end(each)
        while len(self._devices) > self._limit:
            self._devices.popitem(last=False)

    def find(self, beginnings: Sequence[bytes]) -> str | None:
        """The device that was asked the longest of them."""
        for each in reversed(beginnings):
            if (device := self._devices.get(each)) is not None:
                return device
        return None
