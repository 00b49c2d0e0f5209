"""Pictures that do not fit into their request: taken out of it, to be sent in parts before. Pure."""

from __future__ import annotations

from typing import Any

from contract.errors import RequestInvalid
from contract.mqtt.pictures import DIGEST_SCHEME, MAX_PICTURE_BYTES, picture_bytes, picture_digest


def take_out(body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """``body`` with every picture named by its digest, and the pictures. What is no picture stays as it is: the device
    says what is wrong with it.

    Raises:
        RequestInvalid: together they are more than a device takes.
    """
    pictures: dict[str, bytes] = {}

    def name(part: Any) -> Any:
        url = part.get("image_url") if isinstance(part, dict) else None
        if not isinstance(url, dict) or not isinstance(url.get("url"), str):
            return part
        try:
            data = picture_bytes(url["url"], "")
        except RequestInvalid:
            return part
        digest = picture_digest(data)
        pictures[digest] = data
        return {**part, "image_url": {**url, "url": DIGEST_SCHEME + digest}}

    def turn(message: Any) -> Any:
        content = message.get("content") if isinstance(message, dict) else None
        return {**message, "content": [name(part) for part in content]} if isinstance(content, list) else message

    messages = body.get("messages")
    if not isinstance(messages, list):
        return body, pictures
    left = {**body, "messages": [turn(message) for message in messages]}
    size = sum(map(len, pictures.values()))
    if size > MAX_PICTURE_BYTES:
        raise RequestInvalid(
            f"the pictures have {size:,} bytes, a device takes {MAX_PICTURE_BYTES:,} in a request: make them smaller",
            field="messages",
            code=413,
        )
    return left, pictures
