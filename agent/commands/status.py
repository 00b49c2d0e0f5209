"""``edge-agent status``: phase, progress, bundles and the last error, from the running agent or from its records."""

from __future__ import annotations

import argparse

import msgspec
from msgspec import UNSET

from agent.commands.context import CliContext, add_context_options, existing_context, format_size, print_table
from agent.diagnosis.readiness import last_failure
from agent.install.desired import revision_in
from agent.install.reporter import Reporter
from agent.install.status import BundleStatus, InstallStatus, collect_status
from agent.operator.control import Order, call_agent
from agent.state.installation import InstallationState
from agent.state.opening import open_to_read
from contract.mqtt.device import BrokerState, Health


def configure(parser: argparse.ArgumentParser) -> None:
    add_context_options(parser)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.epilog = (
        "examples:\n"
        "  edge-agent status --config /etc/edge-agent/agent.toml\n"
        "  edge-agent status --state-dir ./state --json"
    )


def run(arguments: argparse.Namespace) -> int:
    context = existing_context(arguments)
    overview = call_agent(context.directory, Order(op="status"), lambda reported: None) or read_overview(context)
    if arguments.json:
        print(msgspec.json.encode(overview).decode())
    else:
        show(overview)
        if overview.reported.error is None:
            for finding in last_failure(context.directory, overview):
                print(f"\n{finding.detail}")
    return 0


def read_overview(context: CliContext) -> InstallStatus:
    """What is recorded, while no agent runs."""
    database = open_to_read(context.directory)
    try:
        state = InstallationState(database)
        snapshot = state.snapshot()
        reporter = Reporter(state, lambda reported: None, lambda kind, detail: None, lambda: 0.0)
        reporter.revision = revision_in(snapshot.desired) if snapshot.desired is not None else None
        reported = msgspec.structs.replace(reporter.current, phase=snapshot.phase)
        return collect_status(state, context.directory, reported, running=False)
    finally:
        database.close()


def show(overview: InstallStatus) -> None:
    """A table that a person can read."""
    reported = overview.reported
    print(f"agent     {'running' if overview.running else 'not running'}")
    if overview.health is not None:
        print(f"health    {health_text(overview.health)}")
    if overview.broker is not None:
        show_broker(overview.broker)
    print(f"phase     {reported.phase}")
    if reported.progress is not None:
        done, total = reported.progress.done, reported.progress.total
        share = 100 * done // total if total else 100
        left = reported.progress.seconds_left
        tail = "" if left is UNSET else f", {left:.0f} s left"
        reused = format_size(reported.progress.reused)
        print(f"progress  {share} % ({format_size(done)} of {format_size(total)}, {reused} reused{tail})")
    print(f"desired   {desired_text(overview)}")
    if overview.engine is not None:
        print(f"engine    {overview.engine.summary}")
    print(f"epoch     {overview.security_epoch}")
    print(f"disk      {format_size(overview.used_bytes)} used")
    if reported.waiting is not UNSET:
        here = "fetched and verified" if reported.waiting.prefetched else "not fetched yet"
        print(f"waiting   {reported.waiting.message} ({here})")
    if reported.error is not None:
        print(f"error     {reported.error.message} [{reported.error.reason}]")
    for warning in [] if reported.warnings is UNSET else reported.warnings:
        print(f"warning   {warning.message} [{warning.reason}]")
    print()
    show_bundles(overview.bundles)


def health_text(health: Health) -> str:
    """Whether prompts are answered, and how many are."""
    state = "ready" if health.ready else "not ready"
    if health.reasons:
        state += f": {', '.join(health.reasons)}"
    return f"{state}; {health.active} being answered, {health.queue} waiting"


def show_broker(broker: BrokerState) -> None:
    """Where it is, and what is wrong with it."""
    state = (
        f"connected, MQTT {broker.protocol}" if broker.connected else f"no connection: {broker.problem or 'not yet'}"
    )
    print(f"broker    {broker.address}, {state}")
    for warning in broker.warnings:
        print(f"warning   {warning.message} [{warning.reason}]")


def desired_text(overview: InstallStatus) -> str:
    """What is wished for, and whether that still counts."""
    revision = overview.reported.revision
    if overview.desired is None:
        return f"revision {revision}" if revision else "-"
    text = overview.desired if revision is None else f"{overview.desired}, revision {revision}"
    return f"{text} (overridden: another bundle was chosen on this device since)" if overview.overridden else text


def show_bundles(bundles: list[BundleStatus]) -> None:
    """One line for each bundle."""
    if not bundles:
        print("no bundles")
        return
    rows = [("BUNDLE", "STATE", "SIZE", "EPOCH", "SPEED", "DIGEST", "REASON")]
    for bundle in bundles:
        speed = "-" if bundle.tokens_per_second is None else f"{bundle.tokens_per_second:.1f} tok/s"
        rows.append(
            (
                f"{bundle.name}@{bundle.version}" if bundle.name else "(downloading)",
                bundle.state,
                format_size(bundle.bytes) if bundle.present else "gone" if bundle.name else "-",
                "-" if bundle.security_epoch is None else str(bundle.security_epoch),
                speed,
                bundle.digest[:12],
                bundle.reason or "",
            )
        )
    print_table(rows)
