"""Requests that name pictures by their digest: which they are, and the request with the pictures in it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from msgspec import UNSET, Struct, structs

from contract.mqtt.conversation import ImagePart, ImageUrl, Message
from contract.mqtt.pictures import DIGEST_SCHEME, picture_bytes, picture_digest, picture_url, referenced_digest
from contract.mqtt.requests import GenerateRequest


class Reference(Struct, frozen=True):
    """A picture of a request that travels apart; ``field`` is where it stands."""

    digest: str
    field: str


def references(request: GenerateRequest) -> Iterator[Reference]:
    """Pictures that are named by their digest, in their order."""
    for field, url in _urls(request):
        if (digest := referenced_digest(url, field)) is not None:
            yield Reference(digest, field)


def with_pictures(request: GenerateRequest, found: Mapping[str, bytes]) -> GenerateRequest:
    """``request`` with the pictures in ``found``, by digest, in the place of their names."""

    def put(url: str) -> str:
        digest = referenced_digest(url, "")
        return url if digest is None or digest not in found else picture_url(found[digest])

    return _with_urls(request, put)


def with_digests(request: GenerateRequest) -> GenerateRequest:
    """``request`` with every picture named by its digest: the same however the picture travelled."""

    def name(url: str) -> str:
        known = referenced_digest(url, "")
        return url if known is not None else DIGEST_SCHEME + picture_digest(picture_bytes(url, ""))

    return _with_urls(request, name)


def _urls(request: GenerateRequest) -> Iterator[tuple[str, str]]:
    messages = [] if request.messages is UNSET else request.messages
    for number, message in enumerate(messages):
        for index, part in enumerate(message.parts):
            if isinstance(part, ImagePart):
                yield f"messages[{number}].content[{index}].image_url.url", part.image_url.url


def _with_urls(request: GenerateRequest, change: Callable[[str], str]) -> GenerateRequest:
    if request.messages is UNSET or not any(True for _ in _urls(request)):
        return request
    return structs.replace(request, messages=[_changed(message, change) for message in request.messages])


def _changed(message: Message, change: Callable[[str], str]) -> Message:
    if not isinstance(message.content, list):
        return message
    parts = [
        structs.replace(part, image_url=ImageUrl(change(part.image_url.url), part.image_url.detail))
        if isinstance(part, ImagePart)
        else part
        for part in message.content
    ]
    return structs.replace(message, content=parts)
