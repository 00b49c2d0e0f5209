"""Pictures in requests, as ``data:`` URLs or by their digest: a device never fetches what a client names.

What is too large for one message is sent in parts before, each on a topic that names the picture by its digest.
"""

from __future__ import annotations

import base64
import binascii
import re
from hashlib import sha256

from msgspec import Struct

from contract.errors import RequestInvalid

MAX_PICTURE_BYTES = 6 << 20
"""Of all pictures of a request together, as files: four times what fits into the request itself."""

MAX_PICTURE_PARTS = 32
MAX_PART_BYTES = 1 << 20
PART_BYTES = 256 << 10
"""What clients send at a time: brokers take messages of so many bytes nearly always."""

DIGEST_SCHEME = "sha256:"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PART = re.compile(r"([1-9][0-9]?)-([1-9][0-9]?)")

SIGNATURES = {"image/png": b"\x89PNG\r\n\x1a\n", "image/jpeg": b"\xff\xd8\xff"}
"""What a file of each kind that is taken begins with (PNG specification 5.2; ISO/IEC 10918-1 B.1.1.3)."""


def picture_bytes(url: str, field: str) -> bytes:
    """The encoded picture in ``url``; looked at no further than its first bytes.

    Raises:
        RequestInvalid: anything but a PNG or JPEG in a ``data:`` URL; ``field`` is named.
    """
    head, comma, body = url.partition(",")
    if head[:5].lower() != "data:" or not comma:
        text = "a picture travels in the request, as data:image/png;base64,… or data:image/jpeg;base64,…"
        raise RequestInvalid(f"{text}: a device fetches nothing", field=field)
    kind, _, coding = head[5:].lower().partition(";")
    if kind not in SIGNATURES or coding != "base64":
        raise RequestInvalid("a picture is image/png or image/jpeg, in base64", field=field)
    try:
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestInvalid(f"the picture is not base64: {error}", field=field) from error
    if not data.startswith(SIGNATURES[kind]):
        raise RequestInvalid(f"the picture is no {kind}", field=field)
    return data


def picture_url(data: bytes) -> str:
    """The ``data:`` URL of an encoded picture.

    Raises:
        RequestInvalid: neither PNG nor JPEG.
    """
    for kind, signature in SIGNATURES.items():
        if data.startswith(signature):
            return f"data:{kind};base64,{base64.b64encode(data).decode()}"
    raise RequestInvalid("a picture is a PNG or a JPEG file")


def picture_digest(data: bytes) -> str:
    """What names a picture that is sent in parts: SHA-256 of the file, in small hexadecimal digits."""
    return sha256(data).hexdigest()


def referenced_digest(url: str, field: str) -> str | None:
    """The digest in ``url``, or None where it is no ``sha256:`` reference.

    Raises:
        RequestInvalid: it is one, and has no digest; ``field`` is named.
    """
    if not url.lower().startswith(DIGEST_SCHEME):
        return None
    digest = url[len(DIGEST_SCHEME) :]
    if not url.startswith(DIGEST_SCHEME) or _DIGEST.fullmatch(digest) is None:
        raise RequestInvalid("a picture that is sent in parts is sha256: and 64 digits 0-9 a-f", field=field)
    return digest


class PicturePart(Struct, frozen=True):
    """The part ``number`` (from 1) of ``count`` of the picture with this digest, as a topic says it."""

    digest: str
    number: int
    count: int

    @property
    def level(self) -> str:
        """The last level of its topic."""
        return f"{self.number}-{self.count}"


def read_part(digest: str, level: str) -> PicturePart | None:
    """The part that the last two levels of a topic name; None if they name none."""
    found = _PART.fullmatch(level)
    if found is None or _DIGEST.fullmatch(digest) is None:
        return None
    number, count = int(found[1]), int(found[2])
    return PicturePart(digest, number, count) if number <= count <= MAX_PICTURE_PARTS else None


def split_picture(data: bytes) -> list[tuple[PicturePart, bytes]]:
    """``data`` in parts, as a client sends them.

    Raises:
        RequestInvalid: it is larger than a device takes.
    """
    if len(data) > MAX_PICTURE_BYTES:
        raise RequestInvalid(f"a picture of {len(data):,} bytes is too large: {MAX_PICTURE_BYTES:,} are the most")
    pieces = [data[start : start + PART_BYTES] for start in range(0, len(data), PART_BYTES)]
    digest = picture_digest(data)
    return [(PicturePart(digest, number, len(pieces)), piece) for number, piece in enumerate(pieces, 1)]
