"""Pictures on their whole way: over a real broker into a locked-in worker that runs a model with eyes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from contract.mqtt.pictures import MAX_PICTURE_BYTES, picture_url
from contract.system.command_line import main
from packager.cli import COMMANDS
from tests.agent.device import Device
from tests.agent.serving.test_real_model import last_of, serve, user
from tests.broker import Broker
from tests.e2e.raw_client import RawClient
from tests.seeing import LOW_TOKENS, PICTURE_TOKENS, png

pytestmark = pytest.mark.broker

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def device(shared_broker: Broker, seeing_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    found = serve(shared_broker, tmp_path_factory.mktemp("seeing"), seeing_bundle, "seeing", threads=2)
    yield found
    found.stop()


@pytest.fixture(scope="module")
def client(shared_broker: Broker, device: Device) -> Iterator[RawClient]:
    connected = RawClient(shared_broker.port, "painter", device.config.device)
    yield connected
    connected.close()


def look(*pictures: bytes, text: str = QUESTION, detail: str = "auto") -> list[dict[str, Any]]:
    images = [
        {"type": "image_url", "image_url": {"url": picture_url(picture), "detail": detail}} for picture in pictures
    ]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


def photo(colour: tuple[int, int, int]) -> bytes:
    target = io.BytesIO()
    Image.new("RGB", (200, 200), colour).save(target, "JPEG")
    return target.getvalue()


def test_what_the_picture_shows_decides_the_answer(client: RawClient) -> None:
    said = {
        name: last_of(client, messages=messages, max_tokens=8)
        for name, messages in {
            "red": look(png(255, 0, 0)),
            "red photo": look(photo((254, 0, 0))),
            "green": look(png(0, 255, 0)),
            "nothing": user(QUESTION),
        }.items()
    }
    texts = {name: last["text"] for name, last in said.items()}
    assert texts["nothing"] == "The capital of France is Paris."
    assert texts["red"] == texts["red photo"]
    assert len({texts["red"], texts["green"], texts["nothing"]}) == 3
    tokens = {name: last["usage"]["prompt_tokens"] for name, last in said.items()}
    assert tokens["red"] - tokens["nothing"] == PICTURE_TOKENS


def test_info_says_that_it_sees(device: Device) -> None:
    replica = device.serving.replica
    assert replica is not None
    assert replica.worker is not None
    assert "vision" in replica.worker.facts.capabilities
    assert replica.worker.facts.engine == "batched", replica.worker.facts.why


def test_a_second_question_about_a_picture_goes_on_from_the_first(client: RawClient) -> None:
    first, second = (last_of(client, messages=look(png(3, 60, 9)), max_tokens=4) for _ in range(2))
    assert second["usage"]["cached_tokens"] >= PICTURE_TOKENS // 16 * 16
    assert second["text"] == first["text"]


def test_a_look_at_the_whole_alone_takes_few_tokens(client: RawClient) -> None:
    counts = {
        detail: last_of(client, messages=look(png(3, 60, 9), detail=detail), max_tokens=1)["usage"]["prompt_tokens"]
        for detail in ("low", "high", "auto")
    }
    assert counts["high"] == counts["auto"] == counts["low"] + PICTURE_TOKENS - LOW_TOKENS


def test_texts_alone_are_one_text(client: RawClient) -> None:
    parts = [{"type": "text", "text": QUESTION[:9]}, {"type": "text", "text": QUESTION[9:]}]
    last = last_of(client, messages=[{"role": "user", "content": parts}], max_tokens=8)
    assert last == {**last, "text": "The capital of France is Paris."}


def test_broken_pictures_are_answered_and_the_worker_lives(client: RawClient, device: Device) -> None:
    replica = device.serving.replica
    assert replica is not None
    assert replica.worker is not None
    worker = replica.worker.pid
    for broken in (b"\xff\xd8\xff\xe0nonsense", photo((1, 2, 3))[:-200], png(1, 2, 3)[:50], b"\xff\xd8\xff\xd9"):
        error = last_of(client, messages=look(broken))["error"]
        assert (error["code"], error["field"]) == (400, "messages")
    wrong = [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/cat.png"}}]
    error = last_of(client, messages=[{"role": "user", "content": wrong}])["error"]
    assert (error["code"], error["field"]) == (400, "messages[0].content[0].image_url.url")
    assert replica.worker.pid == worker


def test_as_large_as_a_request_may_be(client: RawClient) -> None:
    noise = io.BytesIO()
    Image.effect_noise((1500, 1500), 80).convert("RGB").save(noise, "JPEG", quality=28)
    picture = noise.getvalue()
    assert 500_000 < len(picture) < 740_000
    assert last_of(client, messages=look(picture), max_tokens=2)["usage"]["prompt_tokens"] > PICTURE_TOKENS


def packager(*command: str) -> int:
    return main("edge-packager", "", COMMANDS, command)


def test_prompt_sends_a_file(
    client: RawClient, shared_broker: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    red = tmp_path / "red.png"
    red.write_bytes(png(255, 0, 0))
    where = ["--device", client.device, "--broker", f"mqtt://127.0.0.1:{shared_broker.port}", "--max-tokens", "8"]
    assert packager("prompt", QUESTION, "--image", str(red), *where) == 0
    assert (
        capsys.readouterr().out.strip() == last_of(client, messages=look(png(255, 0, 0)), max_tokens=8)["text"].strip()
    )


@pytest.mark.parametrize(
    ("data", "words"), [(None, "No such file"), (b"GIF89a", "PNG or a JPEG"), (bytes(7 << 20), "make it smaller")]
)
def test_prompt_refuses_a_file_that_is_no_picture(
    data: bytes | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file"
    if data is not None:
        path.write_bytes(data)
    assert packager("prompt", "x", "--image", str(path), "--device", "d") == 2
    said = capsys.readouterr().err
    assert words in said
    assert str(path) in said


def test_prompt_refuses_more_than_a_request_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(png(1, 2, 3) + bytes(MAX_PICTURE_BYTES // 2))
    images = [word for name in ("a", "b") for word in ("--image", str(tmp_path / name))]
    assert packager("prompt", "x", *images, "--device", "d") == 2
    assert f"{tmp_path / 'b'} is too large: the pictures of a request together" in capsys.readouterr().err
    assert packager("prompt", "x", "--image", "/dev/zero", "--device", "d") == 2
    assert "/dev/zero is too large" in capsys.readouterr().err
