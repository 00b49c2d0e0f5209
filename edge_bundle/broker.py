"""Where the broker is: ``mqtt://[user@]host[:port]``, ``mqtts://…``, ``ws://…`` or ``wss://…``, from the command line
or ``EDGE_BROKER``.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from msgspec import Struct, structs

from contract.errors import UsageError

ENVIRONMENT = "EDGE_BROKER"
PASSWORD_ENVIRONMENT = "EDGE_BROKER_PASSWORD"  # noqa: S105 # the name of a variable, not a password
DEFAULT = "mqtt://localhost:1883"


SCHEMES = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
"""And the port where the URL names none."""

FORM = "write the broker as mqtt://host:1883 or mqtts://host:8883, over websockets as ws://host/mqtt or wss://host/mqtt"


class BrokerAddress(Struct, frozen=True):
    """``ca`` replaces the system's trusted authorities; ``cert`` and ``key`` identify this client.

    ``others`` are further nodes of the same broker, tried in turn. ``websockets`` with ``path`` goes through web
    servers. ``protocol``: ``auto`` takes MQTT 5, and 3.1.1 where the broker knows no newer one.
    """

    host: str
    port: int
    tls: bool = False
    username: str | None = None
    password: str | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    others: tuple[tuple[str, int], ...] = ()
    websockets: bool = False
    path: str = "/mqtt"
    protocol: Literal["auto", "5", "3.1.1"] = "auto"

    @property
    def endpoints(self) -> tuple[tuple[str, int], ...]:
        """Hosts and ports, the first choice first."""
        return ((self.host, self.port), *self.others)

    @property
    def name(self) -> str:
        """Hosts and ports, for people; never credentials."""
        return ", ".join(endpoint_name(*endpoint) for endpoint in self.endpoints)


def endpoint_name(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def add_broker(parser: argparse.ArgumentParser) -> None:
    """Options that say which broker, and as whom."""
    parser.add_argument(
        "--broker",
        metavar="URL",
        default=os.environ.get(ENVIRONMENT, DEFAULT),
        help="mqtt://[user@]host[:port][,host[:port]…] or mqtts://…, over websockets ws://host[:port][/path] or "
        f"wss://… "
        f"(default: {ENVIRONMENT}, else {DEFAULT})",
    )
    parser.add_argument(
        "--protocol",
        choices=["auto", "5", "3.1.1"],
        default="auto",
        help="version of MQTT; default auto: 5, and 3.1.1 where the broker knows no newer one",
    )
    parser.add_argument("--topic-root", default="edge/v1", metavar="ROOT", help="default edge/v1")
    parser.add_argument("--ca", type=Path, metavar="PEM", help="authorities that may sign the broker's certificate")
    parser.add_argument("--cert", type=Path, metavar="PEM", help="our own certificate")
    parser.add_argument("--key", type=Path, metavar="PEM", help="the key of --cert")


def find_broker(arguments: argparse.Namespace) -> BrokerAddress:
    """The broker that the options name.

    Raises:
        UsageError: the URL cannot be one of a broker.
    """
    address = parse_broker(arguments.broker, os.environ.get(PASSWORD_ENVIRONMENT))
    address = structs.replace(address, protocol=arguments.protocol)
    if address.tls:
        return structs.replace(address, ca=arguments.ca, cert=arguments.cert, key=arguments.key)
    if arguments.ca or arguments.cert or arguments.key:
        raise UsageError("--ca, --cert and --key need a mqtts:// or wss:// broker")
    return address


def parse_broker(url: str, password: str | None = None) -> BrokerAddress:
    """Read a broker's URL; ``password`` serves where the URL has none.

    Raises:
        UsageError: it is none. The message never contains a password.
    """
    first, *more = (url if "://" in url else f"mqtt://{url}").split(",")
    parts = urlsplit(first)
    scheme = parts.scheme
    # The path follows the last host.
    last = urlsplit(f"{scheme}://{more[-1].rpartition('://')[2]}") if more else parts
    if scheme not in SCHEMES or not parts.hostname or parts.query or parts.fragment or (more and parts.path.strip("/")):
        raise UsageError(FORM)
    websockets = scheme in ("ws", "wss")
    if (last.path.strip("/") and not websockets) or last.query or last.fragment:
        raise UsageError(FORM)
    endpoints = [_endpoint(first, scheme), *(_endpoint(f"{scheme}://{_bare(each, scheme)}", scheme) for each in more)]
    if len(set(endpoints)) < len(endpoints):
        raise UsageError("the broker's URL names a host twice")
    return BrokerAddress(
        host=endpoints[0][0],
        port=endpoints[0][1],
        tls=scheme in ("mqtts", "wss"),
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else password,
        others=tuple(endpoints[1:]),
        websockets=websockets,
        path=last.path if websockets and last.path.strip("/") else "/mqtt",
    )


def _bare(text: str, scheme: str) -> str:
    """A further host; it may repeat the scheme of the first."""
    bare = text.removeprefix(f"{scheme}://")
    if "://" in bare or "@" in bare:
        raise UsageError("further hosts of a broker have the first one's scheme and user")
    return bare


def _endpoint(url: str, scheme: str) -> tuple[str, int]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise UsageError("the broker's port must be a number from 1 to 65535") from error
    if not parts.hostname or port == 0:
        raise UsageError(FORM)
    return parts.hostname, port or SCHEMES[scheme]
