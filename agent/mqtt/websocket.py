"""MQTT over websockets (RFC 6455), as much of it as a client needs: one handshake, then bytes in binary frames.

paho has a wrapper of its own, which reads its handshake byte by byte from a blocking socket and masks byte by byte.
"""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import ssl

from contract.errors import SourceUnavailable

_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

MAX_HEAD_BYTES = 16 << 10
"""Of an answer to our handshake; web servers themselves take 8 kB."""

MAX_CONTROL_BYTES = 125
"""RFC 6455, 5.5."""

READ_BYTES = 64 << 10

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def handshake_request(host: str, path: str, key: bytes) -> bytes:
    """What a client says first; ``host`` with its port where that is not the usual one, ``key``: 16 random bytes."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {base64.b64encode(key).decode()}\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Protocol: mqtt\r\n\r\n"
    ).encode()


def check_handshake(head: bytes, key: bytes) -> None:
    """Check the head of the answer to ``key``.

    Raises:
        SourceUnavailable: no websocket was opened.
    """
    first, *lines = head.decode("latin-1").split("\r\n")
    version, _, status = first.partition(" ")
    if not version.startswith("HTTP/"):
        raise SourceUnavailable("it does not answer as a web server does")
    if not status.startswith("101"):
        status_text = "".join(each for each in status if each.isprintable())[:60]
        raise SourceUnavailable(
            f"the web server there answers {status_text!r} and opens no websocket: check broker.path"
        )
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    accept = base64.b64encode(hashlib.sha1(base64.b64encode(key) + _MAGIC, usedforsecurity=False).digest()).decode()
    if fields.get("sec-websocket-accept") != accept or fields.get("upgrade", "").lower() != "websocket":
        raise SourceUnavailable("its answer to the websocket handshake is none")
    if fields.get("sec-websocket-protocol", "mqtt") != "mqtt":
        raise SourceUnavailable("its websocket speaks another protocol than mqtt: check broker.path")


def frame(kind: int, payload: bytes) -> bytes:
    """One whole frame, masked as a client's must be."""
    size = len(payload)
    head = bytes([0x80 | kind])
    if size < 126:  # RFC 6455, 5.2
        head += bytes([0x80 | size])
    elif size < 1 << 16:
        head += bytes([0x80 | 126]) + size.to_bytes(2, "big")
    else:
        head += bytes([0x80 | 127]) + size.to_bytes(8, "big")
    key = os.urandom(4)
    # As one large number: byte by byte, a megabyte would hold up the event loop.
    mask = (key * (size // 4 + 1))[:size]
    masked = (int.from_bytes(payload, "big") ^ int.from_bytes(mask, "big")).to_bytes(size, "big")
    return head + key + masked


class Frames:
    """What comes in: bytes of data frames, in order, and what control frames ask for. Pure."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.replies = bytearray()
        self.closed = False
        self._raw = bytearray()
        self._left = 0

    def feed(self, raw: bytes) -> None:
        """Take what was read.

        Raises:
            ConnectionError: it is no websocket's.
        """
        self._raw += raw
        while self._raw and not self.closed:
            if self._left:
                part = self._raw[: self._left]
                self.data += part
                self._left -= len(part)
                del self._raw[: len(part)]
            elif not self._begin():
                return

    def _begin(self) -> bool:
        """Read the head of a frame, and all of it if it is a control frame; False: more has to come first."""
        raw = self._raw
        if len(raw) < 2:
            return False
        kind, size, at = raw[0] & 0x0F, raw[1] & 0x7F, 2
        if raw[0] & 0x70 or raw[1] & 0x80 or kind not in (CONTINUATION, BINARY, CLOSE, PING, PONG):
            raise ConnectionError("it sent something that is no websocket frame for MQTT")
        if size > MAX_CONTROL_BYTES:
            width = 2 if size == 126 else 8
            if len(raw) < at + width:
                return False
            size, at = int.from_bytes(raw[at : at + width], "big"), at + width
        if kind in (CONTINUATION, BINARY):
            self._left = size
            del raw[:at]
            return True
        if size > MAX_CONTROL_BYTES:
            raise ConnectionError("it sent a control frame that is too long")
        if len(raw) < at + size:
            return False
        payload = bytes(raw[at : at + size])
        del raw[: at + size]
        if kind == CLOSE:
            self.closed = True
            self.replies += frame(CLOSE, payload[:2])
        elif kind == PING:
            self.replies += frame(PONG, payload)
        return True


class WebSocket:
    """A connected, non-blocking socket as paho uses one: what it sends goes out in frames."""

    def __init__(self, sock: socket.socket, leftover: bytes) -> None:
        self._sock = sock
        self._frames = Frames()
        self._out = bytearray()
        self._frames.feed(leftover)

    @property
    def unsent(self) -> bool:
        """Bytes wait for the socket to take more."""
        return bool(self._out)

    def pending(self) -> int:
        """Bytes that can be read without the socket announcing them."""
        below = self._sock.pending() if isinstance(self._sock, ssl.SSLSocket) else 0
        return len(self._frames.data) + below

    def recv(self, size: int) -> bytes:
        """At most ``size`` bytes; none at the end.

        Raises:
            BlockingIOError: nothing is there yet. OSError: as sockets do.
        """
        frames = self._frames
        if not frames.data and not frames.closed:
            raw = self._sock.recv(READ_BYTES)
            if not raw:
                return b""
            frames.feed(raw)
            if frames.replies:
                self._out += frames.replies
                frames.replies.clear()
                self.flush()
        if frames.data:
            found = bytes(frames.data[:size])
            del frames.data[:size]
            return found
        if frames.closed:
            return b""
        raise BlockingIOError

    def send(self, data: bytes) -> int:
        """Take all of ``data``, or raise BlockingIOError."""
        self.flush()
        if self._out:
            raise BlockingIOError
        self._out += frame(BINARY, bytes(data))
        self.flush()
        return len(data)

    def flush(self) -> None:
        """Hand what waits to the socket, as far as it takes it."""
        try:
            while self._out:
                sent = self._sock.send(self._out)
                del self._out[:sent]
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return

    def fileno(self) -> int:
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:
        self._sock.setblocking(flag)

    def setsockopt(self, level: int, option: int, value: int) -> None:
        self._sock.setsockopt(level, option, value)

    def close(self) -> None:
        self._sock.close()
