"""``edge-agent trust``: provision a device, look at what it trusts, and look what its sources say now."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from agent.commands.context import act_as_owner, add_context_options
from agent.commands.trust_facts import read_facts
from agent.state.audit import AuditLog
from agent.state.database import Database
from agent.state.installation import InstallationState
from agent.state.layout import StateDirectory
from agent.state.lock import FileLock
from agent.state.schema import SCHEMA
from contract.errors import UsageError
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
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the actions, each with its options."""
    parser.epilog = _EXAMPLES
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
    help_line = "refresh trust from the sources: revocations, new metadata"
    refresh = actions.add_parser("refresh", help=help_line, description=help_line)
    refresh.add_argument("source", nargs="?", metavar="SOURCE", help="ask this one (default: all that are configured)")
    add_context_options(refresh)
    refresh.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace) -> int:
    """Do it; the exit status."""
    if arguments.action == "provision":
        return _provision(arguments)
    if arguments.action == "show":
        return _show(arguments)
    from agent.commands.trust_refresh import refresh_now

    return refresh_now(arguments)


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
        database = Database(directory.database, SCHEMA)
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
