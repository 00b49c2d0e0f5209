"""What a safetensors file claims, without loading it (github.com/huggingface/safetensors, "Format")."""

from __future__ import annotations

from pathlib import Path

from contract.errors import BuildRefused
from packager.sources.naming import refuse_stand_in

MAX_HEADER_BYTES = 100 * 2**20
"""The library's own limit."""


def read_header(path: Path) -> bytes:
    """The header's own bytes.

    Raises:
        BuildRefused: the file is truncated or is not a safetensors file.
    """
    refuse_stand_in(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = header_length(file.read(8), path.name)
        if length > size - 8:
            raise BuildRefused(f"{path.name} is truncated or is not a safetensors file; fetch it again")
        return file.read(length)


def header_length(start: bytes, name: str) -> int:
    """Bytes of the header of a file that begins with ``start``.

    Raises:
        BuildRefused: it is no safetensors file.
    """
    length = int.from_bytes(start[:8], "little")
    if len(start) < 8 or length > MAX_HEADER_BYTES:
        raise BuildRefused(f"{name} is truncated or is not a safetensors file; fetch it again")
    return length
