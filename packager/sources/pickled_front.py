"""The first bytes of a file that torch pickled, which say what is in it; numbers of its weights come after them.

torch writes a zip archive (since version 1.6) without compression, whose first member is the pickle ``NAME/data.pkl``:
names, types and shapes, and by key where the numbers are. The member does not say its own length before it, but a
pickle ends itself. Nothing is unpickled here: :func:`write_outline` makes an archive of that pickle alone, with an
empty member for the numbers of each key, which is then read as the whole file would be.
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import NamedTuple

ZIP = b"PK\3\4"
"""How a file begins that torch has written since version 1.6."""

MAX_FRONT_BYTES = 8 * 2**20
"""Names and shapes of 30,000 weights; the largest models have a tenth of that in one file."""

PICKLE = "/data.pkl"
STRINGS = ("BINUNICODE", "SHORT_BINUNICODE", "UNICODE", "BINSTRING", "SHORT_BINSTRING", "STRING")

_MEMBER = struct.Struct("<4sHHHHHIIIHH")
"""Signature, version, flags, method, time, date, checksum, two sizes, lengths of the name and of what follows it."""


class Front(NamedTuple):
    """The pickle, what the archive calls its directory, and the keys of numbers that the pickle may name."""

    directory: str
    pickle: bytes
    keys: list[str]


def measure_front(start: bytes) -> int:
    """How many bytes of a file that begins with ``start`` have to be known: as many as there are, if that is enough.

    More than :data:`MAX_FRONT_BYTES` are never asked for.
    """
    at = _pickle_start(start)
    if at is None or parse_front(start) is not None:
        return min(len(start), MAX_FRONT_BYTES)
    return min(max(2 * len(start), at), MAX_FRONT_BYTES)


def parse_front(start: bytes) -> Front | None:
    """What a file that begins with ``start`` holds; None where its pickle is compressed, not first or not all there."""
    at = _pickle_start(start)
    if at is None:
        return None
    keys: dict[str, None] = {}
    stream = io.BytesIO(start[at:])
    try:
        for operation, argument, _ in pickletools.genops(stream):
            if operation.name in STRINGS and str(argument).isdecimal():
                keys[str(argument)] = None
    except (ValueError, UnicodeError, IndexError):  # cut short, or no pickle at all
        return None
    name = start[_MEMBER.size : _MEMBER.size + _MEMBER.unpack_from(start)[9]].decode("utf-8", "replace")
    return Front(name.removesuffix(PICKLE), start[at : at + stream.tell()], list(keys))


def write_outline(start: bytes, out: Path) -> bool:
    """Write to ``out`` what a file that begins with ``start`` says of its weights; False where that is not known.

    A file that is no archive at all is told by how it begins, so that much of it is written.
    """
    if not start.startswith(ZIP):
        out.write_bytes(start[: len(ZIP)])
        return True
    front = parse_front(start)
    if front is None:
        return False
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{front.directory}{PICKLE}", front.pickle)
        archive.writestr(f"{front.directory}/version", b"3\n")
        for key in front.keys:
            archive.writestr(f"{front.directory}/data/{key}", b"")
    return True


def _pickle_start(start: bytes) -> int | None:
    """Where the pickle begins, perhaps beyond ``start``; None where the first member is something else."""
    if len(start) < _MEMBER.size or not start.startswith(ZIP):
        return None
    method, name, extra = (_MEMBER.unpack_from(start)[field] for field in (3, 9, 10))
    end = _MEMBER.size + name
    if method != zipfile.ZIP_STORED or (len(start) >= end and not start[:end].endswith(PICKLE.encode())):
        return None
    return int(end + extra)
