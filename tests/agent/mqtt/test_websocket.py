"""Frames and handshakes of websockets (RFC 6455), whatever pieces they come in."""

from __future__ import annotations

import base64
import hashlib
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.mqtt.websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Frames,
    WebSocket,
    check_handshake,
    frame,
    handshake_request,
)
from contract.errors import SourceUnavailable

KEY = bytes(range(16))


def from_server(kind: int, payload: bytes, *, final: bool = True) -> bytes:
    """A frame as servers send them: without a mask."""
    size = len(payload)
    if size < 126:
        length = bytes([size])
    elif size < 65536:
        length = b"\x7e" + size.to_bytes(2, "big")
    else:
        length = b"\x7f" + size.to_bytes(8, "big")
    return bytes([(0x80 if final else 0) | kind]) + length + payload


def unmasked(raw: bytes) -> tuple[int, bytes]:
    """Kind and payload of one of our own frames."""
    size, at = raw[1] & 0x7F, 2
    assert raw[1] & 0x80, "a client's frames are masked"
    if size > 125:
        width = 2 if size == 126 else 8
        size, at = int.from_bytes(raw[2 : 2 + width], "big"), 2 + width
    key, payload = raw[at : at + 4], raw[at + 4 :]
    assert len(payload) == size
    return raw[0] & 15, bytes(each ^ key[index % 4] for index, each in enumerate(payload))


@given(st.binary(max_size=70_000).filter(bool) | st.just(b""))
def test_what_we_send_can_be_read(payload: bytes) -> None:
    assert unmasked(frame(BINARY, payload)) == (BINARY, payload)


@given(st.lists(st.binary(max_size=300), max_size=8), st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_bytes_arrive_in_order_in_whatever_pieces(payloads: list[bytes], cuts: list[int]) -> None:
    raw = b"".join(
        from_server(BINARY if number % 3 else PING, payload[:125] if number % 3 == 0 else payload)
        for number, payload in enumerate(payloads)
    )
    frames, at = Frames(), 0
    for number in range(len(raw) + 1):
        cut = cuts[number % len(cuts)]
        frames.feed(raw[at : at + cut])
        at += cut
        if at >= len(raw):
            break
    assert bytes(frames.data) == b"".join(each for number, each in enumerate(payloads) if number % 3)
    pings = [each[:125] for number, each in enumerate(payloads) if number % 3 == 0]
    replies, found = bytes(frames.replies), []
    while replies:
        size = 6 + (replies[1] & 0x7F)
        found.append(unmasked(replies[:size]))
        replies = replies[size:]
    assert found == [(PONG, each) for each in pings]


def test_fragments_are_one_stream_and_close_ends_it() -> None:
    frames = Frames()
    frames.feed(from_server(BINARY, b"ab", final=False) + from_server(PING, b"x"))
    frames.feed(from_server(CONTINUATION, b"cd") + from_server(CLOSE, b"\x03\xe8bye") + from_server(BINARY, b"late"))
    assert bytes(frames.data) == b"abcd"
    assert frames.closed


@pytest.mark.parametrize(
    "raw",
    [from_server(TEXT, b"x"), from_server(3, b""), b"\xc2\x00", b"\x82\x80", from_server(PING, b"x" * 126)],
    ids=["text", "unknown kind", "reserved bit", "masked", "long ping"],
)
def test_what_is_no_frame_for_mqtt_ends_the_connection(raw: bytes) -> None:
    with pytest.raises(ConnectionError):
        Frames().feed(raw)


def test_a_full_socket_takes_the_rest_later() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        web = WebSocket(ours, from_server(BINARY, b"early"))
        assert web.pending() == 5
        assert web.recv(3) + web.recv(100) == b"early"
        with pytest.raises(BlockingIOError):
            web.recv(1)
        payload = b"x" * (4 << 20)
        assert web.send(payload) == len(payload)
        assert web.unsent
        with pytest.raises(BlockingIOError):
            web.send(b"y")
        theirs.settimeout(20)
        got = bytearray()
        while len(got) < len(payload) + 14:
            got += theirs.recv(1 << 20)
            web.flush()
        assert unmasked(bytes(got)) == (BINARY, payload)
        assert not web.unsent
        theirs.sendall(from_server(CLOSE, b""))
        assert web.recv(1) == b""


def answer(**fields: str) -> bytes:
    accept = base64.b64encode(
        hashlib.sha1(base64.b64encode(KEY) + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    ).decode()
    lines = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": accept, **fields}
    return "\r\n".join(["HTTP/1.1 101 Switching", *(f"{name}: {value}" for name, value in lines.items())]).encode()


def test_the_handshake_is_checked() -> None:
    request = handshake_request("a:1", "/mqtt", KEY)
    assert request.startswith(b"GET /mqtt HTTP/1.1\r\nHost: a:1\r\n")
    assert b"Sec-WebSocket-Protocol: mqtt\r\n" in request
    check_handshake(answer(), KEY)
    check_handshake(answer(**{"sec-websocket-protocol": "mqtt"}), KEY)
    for head, words in (
        (b"\x20\x02\0\0", "does not answer as a web server"),
        (b"HTTP/1.1 404 Not Found\r\nServer: x", "'404 Not Found'"),
        (answer(**{"Sec-WebSocket-Accept": "other"}), "websocket handshake is none"),
        (answer(Upgrade="h2c"), "websocket handshake is none"),
        (answer(**{"Sec-WebSocket-Protocol": "wamp"}), "another protocol than mqtt"),
    ):
        with pytest.raises(SourceUnavailable) as caught:
            check_handshake(head, KEY)
        assert words in caught.value.message
