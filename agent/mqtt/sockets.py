"""A connected socket to a broker, TLS and websocket handshakes included, without blocking the event loop."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from typing import TypeVar

from agent.mqtt.settings import BrokerSettings, Endpoint, open_tls
from agent.mqtt.websocket import MAX_HEAD_BYTES, WebSocket, check_handshake, handshake_request
from contract.errors import SourceUnavailable

UNSENT_BYTES = 128 << 10
"""The kernel takes no more than this before the socket counts as backed up; then frames are merged."""

T = TypeVar("T")

Stream = socket.socket | WebSocket
"""What packets go through."""


class WrongProtocol(SourceUnavailable):
    """Somebody is there, and does not speak as we do: worth finding out what."""


async def open_socket(settings: BrokerSettings, endpoint: Endpoint) -> Stream:
    """A connected, non-blocking socket, handshakes included.

    Raises:
        SourceUnavailable: with the reason of the last address tried; WrongTongue if a handshake failed.
    """
    loop = asyncio.get_running_loop()
    try:
        addresses = await loop.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "it is no name"
        raise SourceUnavailable(f"the name {endpoint.host!r} cannot be resolved: {why}") from error
    failure: SourceUnavailable | None = None
    for family, kind, protocol, _, address in addresses:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            # Without it small frames wait for acknowledgements: 40 ms stalls.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_NOTSENT_LOWAT"):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
            await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            # asyncio's own words name the address once more.
            failure = SourceUnavailable(os.strerror(error.errno) if error.errno else str(error))
            continue
        except BaseException:
            sock.close()
            raise
        try:
            return await _shake_hands(sock, settings, endpoint)
        except SourceUnavailable as error:
            failure = error
    assert failure is not None
    raise failure


async def _shake_hands(sock: socket.socket, settings: BrokerSettings, endpoint: Endpoint) -> Stream:
    try:
        if settings.tls is not None:
            sock = open_tls(settings).wrap_socket(sock, server_hostname=endpoint.host, do_handshake_on_connect=False)
            await _when_ready(sock, sock.do_handshake)
        return sock if settings.transport == "tcp" else await _upgrade(sock, settings, endpoint)
    except ssl.SSLCertVerificationError as error:
        sock.close()
        raise SourceUnavailable(f"its certificate is not accepted: {error.verify_message}") from error
    except ssl.SSLError as error:
        sock.close()
        raise WrongProtocol(f"the TLS handshake failed: {error.reason or error}") from error
    except OSError as error:
        sock.close()
        raise WrongProtocol(error.strerror or str(error) or type(error).__name__) from error
    except BaseException:
        sock.close()
        raise


async def _upgrade(sock: socket.socket, settings: BrokerSettings, endpoint: Endpoint) -> WebSocket:
    key = os.urandom(16)
    waiting = memoryview(handshake_request(endpoint.address, settings.path, key))
    while waiting:
        waiting = waiting[await _when_ready(sock, lambda left=waiting: sock.send(left), writing=True) :]  # type: ignore[misc]
    head = bytearray()
    while b"\r\n\r\n" not in head:
        part = await _when_ready(sock, lambda: sock.recv(MAX_HEAD_BYTES))
        head += part
        if not part or len(head) > MAX_HEAD_BYTES:
            raise WrongProtocol("it closed the connection in the websocket handshake")
    first, _, leftover = bytes(head).partition(b"\r\n\r\n")
    check_handshake(first, key)
    return WebSocket(sock, leftover)


async def _when_ready(sock: socket.socket, action: Callable[[], T], *, writing: bool = False) -> T:
    """Do ``action`` once the socket lets it be done."""
    loop = asyncio.get_running_loop()
    while True:
        ready = asyncio.Event()
        try:
            return action()
        except ssl.SSLWantReadError:
            loop.add_reader(sock, ready.set)
        except ssl.SSLWantWriteError:
            loop.add_writer(sock, ready.set)
        except BlockingIOError:
            (loop.add_writer if writing else loop.add_reader)(sock, ready.set)
        try:
            await ready.wait()
        finally:
            forget(sock)


def forget(sock: Stream) -> None:
    """Stop watching it."""
    loop = asyncio.get_running_loop()
    loop.remove_reader(sock)
    loop.remove_writer(sock)
