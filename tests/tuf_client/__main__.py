"""``python -m tests.tuf_client``: the command line that independent TUF suites drive; exit status 1 is any failure.

The options come before the action: ``--metadata-dir D init ROOT_JSON``; ``--metadata-dir D --metadata-url U refresh``;
``--metadata-dir D --metadata-url U --target-name T --target-base-url B --target-dir DIR download``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from contract.errors import EdgeBundleError, UsageError
from contract.system.command_line import report
from contract.trust.refresh import ROOT_MAX_BYTES
from tests.tuf_client.client import Client

PROGRAM = "tuf_client"
NEEDED = {
    "init": (),
    "refresh": ("metadata_url",),
    "download": ("metadata_url", "target_name", "target_base_url", "target_dir"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """A command line that cannot be read is a failure like any other."""
        self.exit(1, f"{PROGRAM}: {message}\n")


def parser() -> argparse.ArgumentParser:
    """The options come before the action, as suites give them."""
    found = _Parser(prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--metadata-dir", type=Path, required=True, metavar="D", help="where trusted metadata is kept")
    found.add_argument("--metadata-url", metavar="U", help="where metadata comes from")
    found.add_argument("--target-name", action="append", default=[], metavar="T", help="repeatable")
    found.add_argument("--target-base-url", metavar="B", help="where artifacts come from")
    found.add_argument("--target-dir", type=Path, metavar="DIR", help="where artifacts go")
    found.add_argument("--any-key", action="store_true", help="admit keys other than Ed25519")
    actions = found.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("init", help="trust ROOT_JSON").add_argument("root", type=Path, metavar="ROOT_JSON")
    actions.add_parser("refresh", help="bring the metadata up to date")
    actions.add_parser("download", help="download artifacts")
    return found


def act(arguments: argparse.Namespace) -> None:
    """Do what the command line says.

    Raises:
        EdgeBundleError: it failed.
    """
    for name in NEEDED[arguments.action]:
        if not getattr(arguments, name):
            raise UsageError(f"{arguments.action} needs --{name.replace('_', '-')}")
    client = Client(arguments.metadata_dir, any_key=arguments.any_key)
    if arguments.action == "init":
        client.init(_read(arguments.root))
    elif arguments.action == "refresh":
        client.refresh(arguments.metadata_url)
    else:
        client.download(arguments.metadata_url, arguments.target_name, arguments.target_base_url, arguments.target_dir)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(ROOT_MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def main(argv: Sequence[str]) -> int:
    """The exit status."""
    arguments = parser().parse_args(argv)
    try:
        act(arguments)
    except EdgeBundleError as error:
        report(PROGRAM, error, as_json=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
