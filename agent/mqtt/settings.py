"""The ``[broker]`` table of the configuration: where the broker is and how it may be talked to."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from contract.errors import ConfigInvalid

Protocol = Literal["5", "3.1.1"]

MAX_PORT = 65535

NO_CONTROLS = r"^[^\x00-\x1f\x7f]+$(?!\n)"
"""Brokers cut whoever sends control characters in a name."""

MAX_PASSWORD_BYTES = 65535
"""MQTT writes the length of a password in two bytes."""


class TlsSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """``[broker.tls]``, even empty, turns TLS on. Files are PEM."""

    ca: Annotated[Path | None, Meta(description="authorities to trust instead of the system's")] = None
    cert: Annotated[Path | None, Meta(description="this device's certificate, for brokers that want one")] = None
    key: Annotated[Path | None, Meta(description="the key of `cert`, where it is not in the same file")] = None
    alpn: Annotated[
        list[Annotated[str, Meta(pattern=r"^[!-~]{1,255}$(?!\n)")]],
        Meta(description="protocols to announce (ALPN), for brokers that share a port with something else"),
    ] = []


Host = Annotated[str, Meta(pattern=r"^[^\x00-\x20\x7f]{1,253}$(?!\n)")]

DEFAULT_HOST = "localhost"
MAX_HOSTS = 16
"""Nodes of one cluster: a round through more of them takes minutes when all are silent."""


class Endpoint(Struct, frozen=True):
    """Where a broker listens."""

    host: str
    port: int

    @property
    def address(self) -> str:
        """Host and port, for people."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class BrokerSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """``[broker]``: where the broker is and how it may be talked to. Without ``[broker.tls]`` only a broker on this
    machine is allowed, unless ``allow_plaintext`` is true.
    """

    host: Annotated[
        Host | None, Meta(description="name or address of the broker; left out, and without `hosts`: `localhost`")
    ] = None
    hosts: Annotated[
        list[Host] | None,
        Meta(
            description="instead of `host`: the nodes of one cluster, `HOST` or `HOST:PORT`, in the order to try them"
        ),
    ] = None
    port: Annotated[
        int, Meta(ge=1, le=65535, description="port of `host`, and of entries of `hosts` that have none")
    ] = 1883
    protocol: Annotated[
        Literal["auto", "5", "3.1.1"],
        Meta(description="`auto`: MQTT 5, and 3.1.1 where the broker knows no newer version"),
    ] = "auto"
    transport: Annotated[
        Literal["tcp", "websockets"], Meta(description="`websockets` goes through web servers and their proxies")
    ] = "tcp"
    path: Annotated[str, Meta(pattern=r"^/[!-~]{0,1023}$(?!\n)", description="path of the URL, for websockets")] = (
        "/mqtt"
    )
    client_id: Annotated[
        Annotated[str, Meta(pattern=NO_CONTROLS, max_length=128)] | None,
        Meta(description="MQTT client id where the broker wants another; left out: `edge-DEVICE`, with `:` for `.`"),
    ] = None
    username: Annotated[
        Annotated[str, Meta(pattern=NO_CONTROLS, max_length=256)] | None, Meta(description="account at the broker")
    ] = None
    password_file: Annotated[
        Path | None, Meta(description="file that holds the password and nothing else; read at every connect")
    ] = None
    keepalive: Annotated[
        int,
        Meta(ge=5, le=3600, extra={"unit": "seconds"}, description="silence after which each side probes the other"),
    ] = 30
    session_expiry_seconds: Annotated[
        int,
        Meta(ge=60, le=30 * 86400, description="how long the broker keeps messages for a device that is away (MQTT 5)"),
    ] = 86400
    allow_plaintext: Annotated[
        bool, Meta(description="allow another machine's broker without TLS: whoever is on the way reads prompts")
    ] = False
    tls: TlsSettings | None = None

    @property
    def identity(self) -> str:
        """What is found out about a broker holds for this."""
        return f"{self.address} {self.protocol} {self.transport}"

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where to connect to, the first choice first; entries that are wrong are left out."""
        if self.hosts is None:
            return (Endpoint(self.host or DEFAULT_HOST, self.port),)
        found = [parse_endpoint(entry, self.port) for entry in self.hosts]
        return tuple(endpoint for endpoint in found if endpoint is not None)

    @property
    def address(self) -> str:
        """Hosts and ports, for people."""
        return ", ".join(endpoint.address for endpoint in self.endpoints)


def parse_endpoint(text: str, port: int) -> Endpoint | None:
    """``HOST``, ``HOST:PORT``, ``[IPv6]``, ``[IPv6]:PORT`` or a bare IPv6 address; None for anything else."""
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        tail = rest.removeprefix(":")
        if not closed or not _is_ipv6(host) or (rest and tail == rest):
            return None
    elif text.count(":") > 1:
        return Endpoint(text, port) if _is_ipv6(text) else None
    else:
        host, _, tail = text.partition(":")
        rest = text[len(host) :]
    if not host or "/" in host or "@" in host:
        return None
    if not rest:
        return Endpoint(host, port)
    if not (tail.isascii() and tail.isdigit() and 1 <= int(tail[:6]) <= MAX_PORT):
        return None
    return Endpoint(host, int(tail))


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


def broker_faults(settings: BrokerSettings) -> Iterator[ConfigInvalid]:
    """What the types cannot say; ``field`` names the key."""
    yield from _host_faults(settings)
    far = next((endpoint.host for endpoint in settings.endpoints if not is_loopback(endpoint.host)), None)
    if settings.tls is None and not settings.allow_plaintext and far is not None:
        key = "broker.host" if settings.hosts is None else "broker.hosts:"
        yield ConfigInvalid(
            f"{key} {far!r} is another machine, and without TLS everybody on the way can read prompts: "
            "add a [broker.tls] table, or set broker.allow_plaintext = true",
            field="broker.tls",
        )
    if settings.password_file is not None:
        if settings.username is None:
            yield ConfigInvalid("broker.password_file needs broker.username", field="broker.username")
        try:
            read_password(settings)
        except ConfigInvalid as error:
            yield error
    if settings.tls is not None:
        if settings.tls.key is not None and settings.tls.cert is None:
            yield ConfigInvalid("broker.tls.key needs broker.tls.cert", field="broker.tls.cert")
        try:
            open_tls(settings)
        except ConfigInvalid as error:
            yield error


def _host_faults(settings: BrokerSettings) -> Iterator[ConfigInvalid]:
    hosts, field = settings.hosts, "broker.hosts"
    if hosts is None:
        if settings.host is not None and (":" in settings.host or "[" in settings.host) and not _is_ipv6(settings.host):
            yield ConfigInvalid(
                f"broker.host {settings.host!r} is no host name or address: the port goes into broker.port",
                field="broker.host",
            )
        return
    if settings.host is not None:
        yield ConfigInvalid("broker.host and broker.hosts are both there: keep one of them", field=field)
    if not 1 <= len(hosts) <= MAX_HOSTS:
        yield ConfigInvalid(f"broker.hosts names {len(hosts)} hosts: name 1 to {MAX_HOSTS}", field=field)
    seen: set[Endpoint] = set()
    for entry in hosts:
        endpoint = parse_endpoint(entry, settings.port)
        if endpoint is None:
            yield ConfigInvalid(
                f"broker.hosts: {entry!r} is no host: write HOST or HOST:PORT, with a port from 1 to 65535, and an "
                "IPv6 address with a port in brackets",
                field=field,
            )
        elif endpoint in seen:
            yield ConfigInvalid(f"broker.hosts names {endpoint.address} twice", field=field)
        else:
            seen.add(endpoint)


def is_loopback(host: str) -> bool:
    """Whether ``host`` can only be this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def open_tls(settings: BrokerSettings) -> ssl.SSLContext:
    """A client context that checks the broker's certificate and name; TLS 1.2 or newer.

    Raises:
        ConfigInvalid: a file cannot be read or is not what it should be.
    """
    assert settings.tls is not None
    tls = settings.tls
    # The broken file is named, its contents never are.
    try:
        context = ssl.create_default_context(cafile=str(tls.ca) if tls.ca else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigInvalid(f"broker.tls.ca {tls.ca} cannot be used: {_why(error)}", field="broker.tls.ca") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.cert is not None:
        try:
            context.load_cert_chain(tls.cert, tls.key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigInvalid(
                f"broker.tls.cert {tls.cert} and its key cannot be used: {_why(error)}", field="broker.tls.cert"
            ) from error
    if tls.alpn:
        context.set_alpn_protocols(tls.alpn)
    return context


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "not a PEM file of that kind"
    return error.strerror or "it cannot be read"


def read_password(settings: BrokerSettings) -> str | None:
    """The password, or None without one.

    Raises:
        ConfigInvalid: the file cannot be read.
    """
    path = settings.password_file
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            secret = file.read(MAX_PASSWORD_BYTES + 2)
    except OSError as error:
        raise ConfigInvalid(
            f"broker.password_file {path} cannot be read: {error.strerror}", field="broker.password_file"
        ) from error
    try:
        text = secret.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise ConfigInvalid(f"broker.password_file {path} is not UTF-8 text", field="broker.password_file") from None
    if not text or len(text.encode()) > MAX_PASSWORD_BYTES:
        raise ConfigInvalid(
            f"broker.password_file {path} holds no password of 1 to {MAX_PASSWORD_BYTES} bytes",
            field="broker.password_file",
        )
    return text
