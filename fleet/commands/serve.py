"""``edge-fleet serve``: the service."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import logging
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from contract.errors import UsageError
from contract.mqtt.topics import Topics
from contract.schema_faults import nearest
from edge_bundle.broker import BrokerAddress, add_broker, find_broker
from fleet.commands.context import add_database, find_database
from fleet.commands.serve_console import add_console, make_console, sign_in_hint
from fleet.service import LOOP_ROLES, ROLES, Role, Service
from fleet.store.database import Database

if TYPE_CHECKING:
    from fleet.gateway.gateway import Gateway
    from fleet.http.server import Server

DEFAULT_LISTEN = "127.0.0.1:8080"


def configure(parser: argparse.ArgumentParser) -> None:
    """See :class:`contract.system.command_line.Command`."""
    add_database(parser)
    add_broker(parser)
    parser.add_argument(
        "--roles",
        default=",".join(LOOP_ROLES),
        metavar="ROLE,…",
        help=f"what this process does, of {', '.join(ROLES)}; default {','.join(LOOP_ROLES)}",
    )
    http = parser.add_argument_group("HTTP (the roles web and gateway)")
    http.add_argument(
        "--listen", default=DEFAULT_LISTEN, metavar="HOST:PORT", help=f"where it listens; default {DEFAULT_LISTEN}"
    )
    http.add_argument("--tls-cert", type=Path, metavar="PEM", help="its certificate, and those above it")
    http.add_argument("--tls-key", type=Path, metavar="PEM", help="the key of --tls-cert")
    http.add_argument("--without-keys", action="store_true", help="let everybody ask; on loopback alone")
    http.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="web pages of this origin may ask, too (https://chat.example.org); may be given several times",
    )
    add_console(parser)
    parser.epilog = (
        "It needs nothing but a broker: a database that is not there is made. Whatever is away is waited for. On\n"
        "PostgreSQL any number of processes may serve: one of them decides, and another one does when it is gone.\n"
        "SIGTERM or Ctrl-C ends it; devices finish what they were asked for.\n\n"
        "examples:\n"
        "  edge-fleet serve --broker mqtts://fleet@broker.example.org\n"
        "  edge-fleet serve --database postgresql://fleet@db.example.org/fleet --roles ingest\n"
        "  edge-fleet serve --roles controller,ingest,web,gateway --listen 127.0.0.1:8080\n"
        "  edge-fleet serve --roles controller,ingest,web --listen 0.0.0.0:443 --url https://fleet.example.org \\\n"
        "    --tls-cert fleet.pem --tls-key fleet.key"
    )


def run(arguments: argparse.Namespace) -> int:
    """See :class:`contract.system.command_line.Command`."""
    roles = read_roles(arguments.roles)
    address = find_broker(arguments)
    Topics("any", arguments.topic_root)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    database = find_database(arguments)
    stopping = threading.Event()
    with contextlib.ExitStack() as stack:
        stack.callback(database.close)
        database.create()
        service = Service(database, address, arguments.topic_root, roles)

        def stop() -> None:
            stopping.set()
            service.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop())
        where = ""
        if set(roles) - set(LOOP_ROLES):
            server = _http_server(arguments, address, database, roles, service=service, stop=stop)
            server.start()
            stack.callback(server.stop)
            where = f", answers at {server.url}" + (sign_in_hint(database) if "web" in roles else "")
        print(f"edge-fleet serves {', '.join(roles)} on {address.name} with {database.name}{where}", flush=True)
        if set(roles) & set(LOOP_ROLES):
            service.run()
        else:
            stopping.wait()
    return 0


def _http_server(
    arguments: argparse.Namespace,
    address: BrokerAddress,
    database: Database,
    roles: Sequence[Role],
    *,
    service: Service,
    stop: Callable[[], object],
) -> Server:
    """What answers HTTP, not started yet.

    Raises:
        UsageError: the options contradict each other, or the port is taken.
    """
    # Whoever does not serve HTTP does not pay for it.
    from fleet.http.app import Part, make_app
    from fleet.http.server import Server, listen
    from fleet.service_health import ServiceHealth

    host, port = read_listen(arguments.listen)
    if (arguments.tls_cert is None) != (arguments.tls_key is None):
        raise UsageError("--tls-cert and --tls-key go together")
    parts: list[Part] = [ServiceHealth(service)] if set(roles) & set(LOOP_ROLES) else []
    if "gateway" in roles:
        parts.append(_gateway(arguments, address, database, host))
    if "web" in roles:
        # Its routes take every path that is nobody else's.
        parts.append(make_console(arguments, address, database))
    app = make_app(parts, origins=arguments.cors_origin)
    return Server(app, listen(host, port), certificate=arguments.tls_cert, key=arguments.tls_key, on_end=stop)


def _gateway(arguments: argparse.Namespace, address: BrokerAddress, database: Database, host: str) -> Gateway:
    from fleet.gateway.access import Anybody
    from fleet.gateway.gateway import Gateway
    from fleet.gateway.keys import KeyRing
    from fleet.store.key_store import KeyStore

    if arguments.without_keys and not _is_loopback(host):
        raise UsageError(f"--without-keys would let everybody ask who reaches {host}: listen on 127.0.0.1, or use keys")
    for origin in arguments.cors_origin:
        if not re.fullmatch(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?", origin):
            raise UsageError(f"{origin!r} is no origin: write https://chat.example.org, without a path")
    access = Anybody() if arguments.without_keys else KeyRing(KeyStore(database))
    return Gateway(address, arguments.topic_root, access)


def read_listen(text: str) -> tuple[str, int]:
    """Host and port.

    Raises:
        UsageError: it is no address.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"{text!r} is no address: write HOST:PORT, 127.0.0.1:8080 or [::1]:8080")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_roles(text: str) -> list[Role]:
    """The roles that are named.

    Raises:
        UsageError: one is none.
    """
    found = [part.strip() for part in text.split(",") if part.strip()]
    for part in found:
        if part not in ROLES:
            near = nearest(part, list(ROLES))
            hint = "" if near is None else f"; did you mean {near}?"
            raise UsageError(f"{part!r} is no role; roles are {', '.join(ROLES)}{hint}")
    if not found:
        raise UsageError(f"name a role at least: {', '.join(ROLES)}")
    return cast(list[Role], found)
