"""``edge-agent verify``: hash everything that is installed or derived here and compare it with what was recorded."""

from __future__ import annotations

import argparse
import json
import sys

from agent.commands.context import CliContext, add_context_options, existing_context, format_size
from agent.install.prepack import is_intact
from agent.install.verify.adapters import check_fits
from agent.install.verify.content_policy import check_contents
from agent.state.installation import InstallationState, InstalledBundle
from agent.state.opening import open_to_read
from contract.bundle.verifier import find_faults, read_manifest
from contract.errors import BundleRefused
from contract.reasons import Reason

EXIT_REFUSED = BundleRefused.exit_status


def configure(parser: argparse.ArgumentParser) -> None:
    add_context_options(parser)
    parser.add_argument("--json", action="store_true", help="print every fault as JSON")
    parser.epilog = (
        "Exit status 0 when every byte is as it was signed, 3 when something is not.\n\n"
        "examples:\n"
        "  edge-agent verify --config /etc/edge-agent/agent.toml\n"
        "  edge-agent verify --state-dir ./state --json"
    )


def run(arguments: argparse.Namespace) -> int:
    context = existing_context(arguments)
    database = open_to_read(context.directory)
    try:
        bundles = InstallationState(database).bundles()
    finally:
        database.close()
    report = []
    for bundle in bundles:
        faults = faults_of(context, bundle)
        report.append(
            {
                "bundle": bundle.reference,
                "digest": bundle.digest,
                "ok": not faults,
                "faults": [{"reason": each.reason, "message": each.message, "field": each.field} for each in faults],
            }
        )
        if not arguments.json:
            show(bundle, faults)
    if arguments.json:
        print(json.dumps({"ok": all(entry["ok"] for entry in report), "bundles": report}))
    elif not bundles:
        print("no bundles are installed")
    return 0 if all(entry["ok"] for entry in report) else EXIT_REFUSED


def faults_of(context: CliContext, bundle: InstalledBundle) -> list[BundleRefused]:
    """Everything that is wrong with one bundle on this disk."""
    directory = context.directory.bundle(bundle.digest)
    try:
        manifest = read_manifest(directory, bundle.digest).manifest
        faults = list(find_faults(directory, manifest))
        if not faults:
            check_contents(manifest, lambda path: directory / path)
            check_fits(manifest, lambda path: directory / path, context.directory)
        faults += derived_faults(context, bundle)
    except BundleRefused as fault:
        return [fault]
    return faults


def derived_faults(context: CliContext, bundle: InstalledBundle) -> list[BundleRefused]:
    """Derived weights that are not what this device made; the agent would not load them, either."""
    home = context.directory.derived_of(bundle.digest)
    return [
        BundleRefused(
            Reason.DIGEST_MISMATCH,
            f"the derived weights in {path} were changed on this disk; they are made again at the next start",
            field=f"derived/{path.name}",
        )
        for path in (sorted(home.iterdir()) if home.is_dir() else [])
        if not path.name.startswith(".") and not is_intact(path)
    ]


def show(bundle: InstalledBundle, faults: list[BundleRefused]) -> None:
    """The verdict on one bundle."""
    if not faults:
        print(f"{bundle.reference}  {bundle.digest[:12]}  ok, {format_size(bundle.bytes)}")
    for fault in faults:
        print(f"{bundle.reference}  {bundle.digest[:12]}  {fault.message} [{fault.reason}]", file=sys.stderr)
