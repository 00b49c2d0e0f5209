"""Pictures by their digest: parts, references, and requests that are the same however their pictures travelled."""

from __future__ import annotations

import json
from random import Random

import pytest

from contract.errors import RequestInvalid
from contract.mqtt.picture_references import Reference, references, with_pictures
from contract.mqtt.pictures import (
    MAX_PICTURE_BYTES,
    MAX_PICTURE_PARTS,
    PART_BYTES,
    picture_digest,
    picture_url,
    split_picture,
)
from contract.mqtt.reading import parse_request, request_fingerprint
from contract.mqtt.requests import GenerateRequest
from tests.seeing import png

RED = png(255, 0, 0)
DIGEST = picture_digest(RED)


def request(*urls: str) -> GenerateRequest:
    content = [{"type": "image_url", "image_url": {"url": url, "detail": "low"}} for url in urls]
    return parse_request(json.dumps({"id": "q", "messages": [{"role": "user", "content": content}]}).encode())[1]


def test_a_request_is_the_same_with_its_picture_in_it_or_apart() -> None:
    apart, within = request(f"sha256:{DIGEST}"), request(picture_url(RED))
    assert request_fingerprint(apart) == request_fingerprint(within)
    assert with_pictures(apart, {DIGEST: RED}) == within
    assert request_fingerprint(request(picture_url(png(0, 255, 0)))) != request_fingerprint(within)


def test_what_is_named_is_told_with_its_place() -> None:
    asked = request(picture_url(RED), f"sha256:{'0' * 64}")
    assert list(references(asked)) == [Reference("0" * 64, "messages[0].content[1].image_url.url")]
    assert with_pictures(asked, {DIGEST: RED}) == asked


@pytest.mark.parametrize(
    "url", ["sha256:", f"sha256:{DIGEST[:-1]}", f"sha256:{DIGEST.upper()}", f"SHA256:{DIGEST}", f"sha256:{DIGEST}0"]
)
def test_a_name_that_is_no_digest_is_refused(url: str) -> None:
    with pytest.raises(RequestInvalid, match="sha256: and 64 digits") as caught:
        request(url)
    assert caught.value.field == "messages[0].content[0].image_url.url"


def test_seventeen_pictures_are_refused_however_they_travel() -> None:
    for url in (picture_url(RED), f"sha256:{DIGEST}"):
        with pytest.raises(RequestInvalid, match="8 pictures at most") as caught:
            request(*[url] * 17)
        assert caught.value.field == "messages[0].content[8].image_url"


def test_parts_are_the_whole() -> None:
    data = Random(5).randbytes(3 * PART_BYTES + 7)
    parts = split_picture(data)
    assert b"".join(piece for _, piece in parts) == data
    assert [(part.digest, part.level) for part, _ in parts] == [(picture_digest(data), f"{n}-4") for n in range(1, 5)]
    assert len(split_picture(bytes(MAX_PICTURE_BYTES))) <= MAX_PICTURE_PARTS
    with pytest.raises(RequestInvalid, match="too large"):
        split_picture(bytes(MAX_PICTURE_BYTES + 1))
