"""What a safetensors file claims, without loading it (github.com/huggingface/safetensors, "Format")."""

from __future__ import annotations

import math
from pathlib import Path

from contract import strict_json
from contract.errors import BuildRefused, BundleRefused
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


def count_parameters(path: Path) -> int:
    """Elements of all tensors in ``path``, after checking that the file has exactly the bytes that they need.

    Raises:
        BuildRefused: the file is truncated or is not a safetensors file.
    """
    size, header = path.stat().st_size, read_header(path)
    length = len(header)
    try:
        document = strict_json.loads(header, max_bytes=MAX_HEADER_BYTES, what=path.name)
        tensors = {name: entry for name, entry in document.items() if name != "__metadata__"}
        end = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
        parameters = sum(int(math.prod(entry["shape"])) for entry in tensors.values())
    except (BundleRefused, KeyError, TypeError, IndexError, AttributeError) as error:
        raise BuildRefused(f"{path.name} has a damaged header; fetch it again") from error
    if 8 + length + end != size:
        raise BuildRefused(f"{path.name} has {size} bytes, its header speaks of {8 + length + end}; fetch it again")
    return parameters
