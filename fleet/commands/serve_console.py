"""The role ``web`` of ``edge-fleet serve``: its options, and what they make."""

from __future__ import annotations

import argparse
import ipaddress
import os
from pathlib import Path
from typing import TYPE_CHECKING

from contract.errors import UsageError
from edge_bundle.broker import BrokerAddress
from fleet.commands.rollout_plan import DEPOT_ENVIRONMENT, ROOT_ENVIRONMENT
from fleet.store import accounts
from fleet.store.database import Database

if TYPE_CHECKING:
    from fleet.web.app import Console

URL_ENVIRONMENT = "EDGE_FLEET_URL"
OIDC_ENVIRONMENT = "EDGE_FLEET_OIDC"


def add_console(parser: argparse.ArgumentParser) -> None:
    """Options of the console and its API."""
    web = parser.add_argument_group("console and API (the role web)")
    web.add_argument(
        "--url", default=os.environ.get(URL_ENVIRONMENT), metavar="URL",
        help="what people write in their browsers, where that is a name or leads through a proxy; with https:// its "
        f"cookies are for HTTPS alone (default: {URL_ENVIRONMENT})",
    )  # fmt: skip
    web.add_argument(
        "--proxy", action="append", default=[], metavar="ADDRESS",
        help="a proxy in front, whose X-Forwarded-For is believed; may be given several times",
    )  # fmt: skip
    web.add_argument(
        "--depot", default=os.environ.get(DEPOT_ENVIRONMENT), metavar="SOURCE",
        help=f"repository: its bundles are shown, and rollouts looked up in it (default: {DEPOT_ENVIRONMENT})",
    )  # fmt: skip
    web.add_argument(
        "--root", type=Path, default=os.environ.get(ROOT_ENVIRONMENT), metavar="ROOT_JSON",
        help=f"the root of trust that devices have; goes with --depot (default: {ROOT_ENVIRONMENT})",
    )  # fmt: skip
    web.add_argument(
        "--oidc", type=Path, default=os.environ.get(OIDC_ENVIRONMENT), metavar="FILE",
        help=f"TOML: an OpenID provider that people sign in with, docs/FLEET.md (default: {OIDC_ENVIRONMENT})",
    )  # fmt: skip


def make_console(arguments: argparse.Namespace, broker: BrokerAddress, database: Database) -> Console:
    """The part that answers.

    Raises:
        UsageError: an option is wrong.
    """
    from fleet.web.app import Console
    from fleet.web.guard import check_url
    from fleet.web.oidc_file import read_oidc
    from fleet.web.settings import Settings

    if (arguments.depot is None) != (arguments.root is None):
        raise UsageError(
            "--depot and --root go together: a repository is read with the root of trust that devices have"
        )
    return Console(
        Settings(
            database=database,
            broker=broker,
            topic_root=arguments.topic_root,
            url=None if arguments.url is None else check_url(arguments.url),
            encrypted=arguments.tls_cert is not None,
            proxies=frozenset(_address(each) for each in arguments.proxy),
            depot=arguments.depot,
            root=None if arguments.root is None else Path(arguments.root),
            oidc=None if arguments.oidc is None else read_oidc(Path(arguments.oidc)),
        )
    )


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError as error:
        raise UsageError(f"--proxy {text[:80]!r} is no address of a proxy: write 10.0.0.2 or ::1") from error


def sign_in_hint(database: Database) -> str:
    """What is still to be done before anybody can sign in."""
    with database.read() as connection:
        count = accounts.count(connection)
    return "" if count else "; nobody can sign in yet: `edge-fleet user create NAME --role admin`"
