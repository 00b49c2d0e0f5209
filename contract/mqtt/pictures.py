"""Pictures in requests: ``data:`` URLs, so that a device never fetches what a client names."""

from __future__ import annotations

import base64
import binascii

from contract.errors import RequestInvalid

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
