"""Payloads as they go out."""

from __future__ import annotations

import msgspec
from msgspec import Struct


def encode(message: Struct) -> bytes:
    """The JSON bytes of a message."""
    return msgspec.json.encode(message)
