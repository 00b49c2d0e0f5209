"""What speaks on a port that does not answer as a broker should: asked once, so that a person need not guess.

Nothing secret is said: a TLS greeting, a CONNECT without a name or password, and a request for a web page.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Literal

from msgspec import Struct

SECONDS = 3.0
"""For each of three questions."""

ANSWER_BYTES = 512

_CONNECT = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x0a\x00\x00"
"""MQTT 3.1.1, a new session, no client id: every broker answers with CONNACK, whether it likes us or not."""

Tongue = Literal["", "mqtt", "websockets", "http", "ssh", "other"]


class Spoken(Struct, frozen=True):
    """``tongue`` is empty where nobody answered anything."""

    tongue: Tongue
    tls: bool

    @property
    def name(self) -> str:
        """For people; empty if nothing is known."""
        names = {
            "mqtt": "MQTT", "websockets": "MQTT over websockets", "http": "HTTP (a web server)", "ssh": "SSH",
            "other": "something that is neither MQTT nor HTTP", "": "",
        }  # fmt: skip
        name = names[self.tongue]
        if not self.tls:
            return name
        return f"{name} over TLS" if name else "TLS"


def find_out(host: str, port: int, path: str = "/mqtt") -> Spoken:
    """Ask whoever listens at ``host`` and ``port``; blocks for some seconds at most. Raises nothing."""
    for tls in (True, False):
        # The web first: of what they cannot read, web servers say things that look like nothing.
        for question in (_web_request(host, port, path), _CONNECT):
            answer = _ask(host, port, question, tls=tls)
            if answer is None:
                # No TLS here: the same questions in the clear.
                break
            if (tongue := _recognise(answer)) != "":
                return Spoken(tongue, tls)
        else:
            return Spoken("", tls)
    return Spoken("", False)


def _recognise(answer: bytes) -> Tongue:
    if not answer:
        return ""
    if answer[0] == 0x20:  # CONNACK
        return "mqtt"
    if answer.startswith(b"HTTP/"):
        return "websockets" if answer.split(b" ", 2)[1:2] == [b"101"] else "http"
    return "ssh" if answer.startswith(b"SSH-") else "other"


def _web_request(host: str, port: int, path: str) -> bytes:
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Protocol: mqtt\r\n\r\n"
    ).encode()


def _ask(host: str, port: int, question: bytes, *, tls: bool) -> bytes | None:
    """What comes back first, perhaps nothing; None where TLS was asked for and is not spoken."""
    try:
        with socket.create_connection((host, port), SECONDS) as plain:
            plain.settimeout(SECONDS)
            sock = plain
            if tls:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                # Whom we would trust is another question: nothing secret goes through here.
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                try:
                    sock = context.wrap_socket(plain, server_hostname=host)
                except ssl.SSLError as error:
                    return b"" if "ALERT" in (error.reason or "") else None
                except OSError:
                    return None
            with contextlib.suppress(OSError):
                sock.sendall(question)
                return sock.recv(ANSWER_BYTES)
            return b""
    except (OSError, UnicodeError):
        return None if tls else b""
