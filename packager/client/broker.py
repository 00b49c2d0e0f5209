"""Where the broker is: ``mqtt://[user@]host[:port]`` or ``mqtts://…``, from the command line or ``EDGE_BROKER``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from contract.errors import UsageError

ENVIRONMENT = "EDGE_BROKER"
PASSWORD_ENVIRONMENT = "EDGE_BROKER_PASSWORD"  # noqa: S105 # the name of a variable, not a password
DEFAULT = "mqtt://localhost:1883"


class BrokerAddress(Struct, frozen=True):
    """``ca`` replaces the system's trusted authorities; ``cert`` and ``key`` identify this client."""

    host: str
    port: int
    tls: bool = False
    username: str | None = None
    password: str | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    @property
    def name(self) -> str:
        """Host and port, for people; never credentials."""
        return f"{self.host}:{self.port}"


def add_broker(parser: argparse.ArgumentParser) -> None:
    """Options that say which broker, and as whom."""
    parser.add_argument(
        "--broker",
        metavar="URL",
        default=os.environ.get(ENVIRONMENT, DEFAULT),
        help=f"mqtt://[user@]host[:port] or mqtts://… (default: {ENVIRONMENT}, else {DEFAULT})",
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
    if address.tls:
        return BrokerAddress(
            address.host, address.port, True, address.username, address.password,
            arguments.ca, arguments.cert, arguments.key,
        )  # fmt: skip
    if arguments.ca or arguments.cert or arguments.key:
        raise UsageError("--ca, --cert and --key need a mqtts:// broker")
    return address


def parse_broker(url: str, password: str | None = None) -> BrokerAddress:
    """Read a broker's URL; ``password`` serves where the URL has none.

    Raises:
        UsageError: it is none. The message never contains a password.
    """
    parts = urlsplit(url if "://" in url else f"mqtt://{url}")
    try:
        port = parts.port
    except ValueError as error:
        raise UsageError("the broker's port must be a number from 1 to 65535") from error
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or parts.path.strip("/") or parts.query:
        raise UsageError("write the broker as mqtt://host:1883 or mqtts://host:8883")
    tls = parts.scheme == "mqtts"
    return BrokerAddress(
        host=parts.hostname,
        port=port or (8883 if tls else 1883),
        tls=tls,
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else password,
    )
