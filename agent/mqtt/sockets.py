"""A connected socket to a broker, TLS handshake included, without blocking the event loop."""

from __future__ import annotations

import asyncio
import socket
import ssl

from agent.broker_settings import BrokerSettings, open_tls
from contract.errors import SourceUnavailable

UNSENT_BYTES = 128 << 10
"""The kernel takes no more than this before the socket counts as backed up; then frames are merged."""


async def open_socket(settings: BrokerSettings) -> socket.socket:
    """A connected, non-blocking socket, TLS handshake included.

    Raises:
        SourceUnavailable: with the reason of the last address tried.
    """
    loop = asyncio.get_running_loop()
    try:
        addresses = await loop.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise SourceUnavailable(f"the name {settings.host!r} cannot be resolved: {error.strerror}") from error
    failure: OSError | None = None
    for family, kind, protocol, _, address in addresses:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            # Without it small frames wait for acknowledgements: 40 ms stalls.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_NOTSENT_LOWAT"):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
            await loop.sock_connect(sock, address)
            return await _handshake(sock, settings) if settings.tls is not None else sock
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    assert failure is not None
    raise SourceUnavailable(_explain(failure)) from failure


def _explain(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"the TLS handshake failed: {error.reason or error}"
    return error.strerror or str(error) or type(error).__name__


async def _handshake(sock: socket.socket, settings: BrokerSettings) -> ssl.SSLSocket:
    loop = asyncio.get_running_loop()
    wrapped = open_tls(settings).wrap_socket(sock, server_hostname=settings.host, do_handshake_on_connect=False)
    try:
        while True:
            ready = asyncio.Event()
            try:
                wrapped.do_handshake()
                return wrapped
            except ssl.SSLWantReadError:
                loop.add_reader(wrapped, ready.set)
            except ssl.SSLWantWriteError:
                loop.add_writer(wrapped, ready.set)
            try:
                await ready.wait()
            finally:
                forget(wrapped)
    except BaseException:
        wrapped.close()
        raise


def forget(sock: socket.socket) -> None:
    """Stop watching it."""
    loop = asyncio.get_running_loop()
    loop.remove_reader(sock)
    loop.remove_writer(sock)
