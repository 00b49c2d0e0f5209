"""``edge-agent trust``: provision a device, look at what it trusts, look what its sources say now, and the common TUF
client command line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from agent.commands.context import act_as_owner, add_context_options
from agent.commands.trust_facts import read_facts
from agent.state.audit import AuditLog
from agent.state.database import Database
from agent.state.installation import InstallationState
from agent.state.layout import StateDirectory
from agent.state.lock import FileLock
from agent.state.migrations import MIGRATIONS
from contract.errors import EdgeBundleError, UsageError
from contract.system.command_line import report
from contract.system.durable import Disk

_EXAMPLES = """\
examples:
  edge-agent trust provision root.json --config /etc/edge-agent/agent.toml
  edge-agent trust provision root.json --state-dir /var/lib/edge-agent --replace   # forget the old repository
  edge-agent trust show --state-dir /var/lib/edge-agent
  sudo edge-agent trust refresh                           # from the configured sources; by the agent, if it runs
  edge-agent trust refresh /media/usb/smollm2.edgebundle  # or from a stick

exit status of refresh: 0 trust is up to date, whatever it means for what is installed; 2 the command line; 3 the
sources' metadata is refused, or no root of trust is provisioned; 4 no source could be used; 5 disk full or broken;
78 configuration

as a plain TUF client (exit status 0 on success, 1 on any failure):
  edge-agent trust --metadata-dir D init ROOT_JSON
  edge-agent trust --metadata-dir D --metadata-url U refresh
  edge-agent trust --metadata-dir D --metadata-url U --target-name T --target-base-url B --target-dir DIR download
"""


CLIENT_ACTIONS = ("init", "download")


def usage_status(argv: Sequence[str]) -> int:
    """Exit status for a command line that cannot be read: for a plain TUF client that is a failure like any other."""
    as_client = any(word in CLIENT_ACTIONS or word.startswith(("--metadata-", "--target-")) for word in argv)
    return 1 if as_client else UsageError.exit_status


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of the TUF client command line come before the action, as test suites give them."""
    parser.epilog = _EXAMPLES
    parser.add_argument("--metadata-dir", type=Path, metavar="D", help="TUF client: where trusted metadata is kept")
    parser.add_argument("--metadata-url", metavar="U", help="TUF client: where metadata comes from")
    parser.add_argument("--target-name", action="append", default=[], metavar="T", help="TUF client: repeatable")
    parser.add_argument("--target-base-url", metavar="B", help="TUF client: where artifacts come from")
    parser.add_argument("--target-dir", type=Path, metavar="DIR", help="TUF client: where artifacts go")
    parser.add_argument("--any-key", action="store_true", help="TUF client: admit keys other than Ed25519 (tests only)")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, help_line in (
        ("provision", "give this device the root that it shall trust"),
        ("show", "show what this device trusts"),
    ):
        action = actions.add_parser(name, help=help_line, description=help_line)
        context = action.add_mutually_exclusive_group(required=True)
        context.add_argument("--state-dir", type=Path, metavar="DIR")
        context.add_argument("--config", type=Path, metavar="FILE", help="take the state directory from there")
        if name == "provision":
            action.add_argument("root", type=Path, metavar="ROOT_JSON")
            action.add_argument("--replace", action="store_true", help="forget the repository trusted until now")
        action.add_argument("--json", action="store_true")
    init = actions.add_parser("init", help="TUF client: trust ROOT_JSON")
    init.add_argument("root", type=Path, metavar="ROOT_JSON")
    refresh = actions.add_parser(
        "refresh",
        help="refresh trust from the sources: revocations, new metadata",
        description="Refresh trust from the sources. With --metadata-dir before it: the TUF client's refresh.",
    )
    refresh.add_argument("source", nargs="?", metavar="SOURCE", help="ask this one (default: all that are configured)")
    add_context_options(refresh)
    refresh.add_argument("--json", action="store_true")
    actions.add_parser("download", help="TUF client: download artifacts")


def run(arguments: argparse.Namespace) -> int:
    """Do it; the exit status."""
    if arguments.action == "provision":
        return _provision(arguments)
    if arguments.action == "show":
        return _show(arguments)
    if arguments.action == "refresh" and arguments.metadata_dir is None and arguments.metadata_url is None:
        from agent.commands.trust_refresh import refresh_now

        return refresh_now(arguments)
    try:
        _act_as_client(arguments)
    except EdgeBundleError as error:
        report("edge-agent", error, as_json=False)
        return 1
    return 0


def _act_as_client(arguments: argparse.Namespace) -> None:
    needed = {"init": (), "refresh": ("metadata_url",)}.get(
        arguments.action, ("metadata_url", "target_name", "target_base_url", "target_dir")
    )
    for name in ("metadata_dir", *needed):
        if not getattr(arguments, name):
            raise UsageError(f"{arguments.action} needs --{name.replace('_', '-')}")
    from contract.trust.client import Client

    client = Client(arguments.metadata_dir, any_key=arguments.any_key)
    if arguments.action == "init":
        client.init(_read(arguments.root))
    elif arguments.action == "refresh":
        client.refresh(arguments.metadata_url)
    else:
        client.download(arguments.metadata_url, arguments.target_name, arguments.target_base_url, arguments.target_dir)


def _read(path: Path) -> bytes:
    from contract.trust.refresh import ROOT_MAX_BYTES

    try:
        with path.open("rb") as file:
            return file.read(ROOT_MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def _state_directory(arguments: argparse.Namespace) -> StateDirectory:
    if arguments.state_dir is not None:
        return StateDirectory(arguments.state_dir)
    from agent.config import load_config

    return StateDirectory(load_config(arguments.config).state_dir)


def _provision(arguments: argparse.Namespace) -> int:
    from agent.install.trust.refresh import expiry_times
    from contract.trust.store import TrustStore

    root = _read(arguments.root)
    directory = _state_directory(arguments)
    act_as_owner(directory)
    disk = Disk()
    disk.make_directory(directory.root, 0o700)
    with FileLock(directory.installer_lock, "an installation", wait_seconds=30):
        database = Database(directory.database, MIGRATIONS)
        try:
            store, floor = TrustStore(directory.trust, disk), InstallationState(database)
            version = store.reprovision(root, floor) if arguments.replace else store.provision(root, floor)
            AuditLog(directory.audit, disk, "operator").record(
                "reprovisioned" if arguments.replace else "provisioned",
                message=f"{arguments.root} (root version {version})",
            )
            floor.warning_store.note_expiry(expiry_times(store.load(floor)))
        finally:
            database.close()
    if arguments.json:
        print(json.dumps({"root_version": version}))
    else:
        print(f"this device now trusts {arguments.root} (root version {version})")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    directory = _state_directory(arguments)
    if not directory.database.exists():
        raise UsageError(f"{directory.root} is not the state directory of an agent")
    facts = read_facts(directory)
    if arguments.json:
        document = {
            "roles": {
                role: {"version": state.version, "expires": state.expires.isoformat()}
                for role, state in facts.roles.items()
            },
            "bundles": facts.bundles,
            "revoked": facts.revoked,
        }
        json.dump(document, sys.stdout)
        print()
        return 0
    for role, state in facts.roles.items():
        print(f"{role:<10} version {state.version:<6} expires {state.expires:%Y-%m-%d %H:%M}")
    for reference in facts.bundles:
        print(f"bundle     {reference}")
    for reference in facts.revoked:
        print(f"revoked    {reference}")
    return 0
