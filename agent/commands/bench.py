"""``edge-agent bench``: how fast the active bundle is here, beside the one before it and the budget it came with."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
from msgspec import Struct

from agent.commands.context import CliContext, add_context_options, existing_context, format_size, print_table
from agent.commands.verify import faults_of
from agent.diagnosis.benchmark import Measurement, measure
from agent.install.prepack import cpu_id, intact_weights
from agent.state.installation import InstallationState, InstalledBundle
from agent.state.lock import is_held
from agent.state.opening import open_to_read
from agent.worker.supervisor import WorkerProcess
from contract.bundle.manifest import Budget
from contract.bundle.verifier import read_manifest
from contract.errors import UsageError

MAX_TOKENS = 4096
MAX_ROUNDS = 100

EXAMPLES = """examples:
  sudo edge-agent bench
  sudo edge-agent bench --tokens 256 --rounds 5
  edge-agent bench --state-dir ./state --json

Each bundle is checked byte by byte, loaded into a worker of its own, asked once to warm up and then --rounds times;
medians are shown. Times mean nothing while the agent serves on the same cores: stop it first for numbers that count.
The budget is what the build host measured; it is evidence of how the bundle was built, not a promise for this device.
exit status: 0 measured, 2 nothing is installed, 3 a bundle was changed on this disk, 6 the runtime failed
"""


class Measured(Struct, frozen=True):
    """A bundle with what was measured here and what its build host measured."""

    bundle: str
    digest: str
    state: str
    measured: Measurement
    budget: Budget


class Report(Struct, frozen=True):
    """What ``--json`` prints; ``agent_running``: the times were taken beside a serving agent. ``load_average`` of the
    last minute, before anything was measured.
    """

    agent_running: bool
    load_average: float
    bundles: list[Measured]


def configure(parser: argparse.ArgumentParser) -> None:
    """See :class:`contract.system.command_line.Command`."""
    add_context_options(parser)
    parser.add_argument("--tokens", type=int, default=128, metavar="N", help="length of each answer (default 128)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how often each is asked (default 3)")
    parser.add_argument("--active-only", action="store_true", help="leave the previous bundle alone")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.epilog = EXAMPLES


def run(arguments: argparse.Namespace) -> int:
    """See :class:`contract.system.command_line.Command`."""
    for name, most in (("tokens", MAX_TOKENS), ("rounds", MAX_ROUNDS)):
        if not 1 <= getattr(arguments, name) <= most:
            raise UsageError(f"--{name} must be between 1 and {most}")
    context = existing_context(arguments)
    bundles = _bundles(context)
    if "active" not in bundles:
        raise UsageError("no bundle is active on this device; install or deploy one first")
    if arguments.active_only:
        bundles.pop("previous", None)
    running = is_held(context.directory.lock)
    if running and not arguments.json:
        print("the agent is running: what it does on the same cores counts against these numbers", file=sys.stderr)
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if load > cores and not arguments.json:
        print(f"load is {load:.1f} on {cores} cores already: the times mean little", file=sys.stderr)
    found = []
    for where, bundle in bundles.items():
        found.append(_measure(context, where, bundle, arguments))
    if arguments.json:
        print(msgspec.json.encode(Report(running, round(load, 2), found)).decode())
    else:
        show(found)
    return 0


def _bundles(context: CliContext) -> dict[str, InstalledBundle]:
    """``active`` and ``previous``, as far as there are any."""
    database = open_to_read(context.directory)
    try:
        state = InstallationState(database)
        snapshot = state.snapshot()
        named = {"active": state.bundle(snapshot.active), "previous": state.bundle(snapshot.previous)}
    finally:
        database.close()
    return {where: bundle for where, bundle in named.items() if bundle is not None}


def _measure(context: CliContext, where: str, bundle: InstalledBundle, arguments: argparse.Namespace) -> Measured:
    # Whoever runs this may be root: nothing is loaded that is not what was signed.
    faults = [fault for fault in faults_of(context, bundle) if not (fault.field or "").startswith("derived/")]
    if faults:
        raise faults[0]
    directory = context.directory.bundle(bundle.digest)
    manifest = read_manifest(directory, bundle.digest).manifest
    derived = context.directory.derived_of(bundle.digest) / cpu_id()
    measuring = measure(
        WorkerProcess.start,
        context.worker,
        directory,
        derived=intact_weights(derived),
        tokens=arguments.tokens,
        rounds=arguments.rounds,
        on_round=_progress(bundle.reference),
    )
    measured = asyncio.run(measuring)
    return Measured(bundle.reference, bundle.digest, where, measured, manifest.budget)


def _progress(reference: str) -> Callable[[int, int], None]:
    """One line that counts, where somebody looks on."""
    if not sys.stderr.isatty():
        return lambda done, of: None

    def show(done: int, of: int) -> None:
        print(f"\r{reference}: {done} of {of}", end="\n" if done == of else "", file=sys.stderr, flush=True)

    return show


def show(found: Sequence[Measured]) -> None:
    """A table: the active bundle, its budget, the previous one, each with the active one's ratio to it."""
    active, *others = found
    before = others[0] if others else None
    measured = active.measured
    how = f"engine {measured.engine}, {measured.threads} threads, {measured.isolation}"
    print(f"{active.bundle}  {active.digest[:12]}  {how}")
    print(f"budget: {active.budget.threads} threads on {active.budget.host}\n")
    rows = [["", "MEASURED", "BUDGET", "", before.bundle if before else "PREVIOUS", ""]]
    past = before.measured if before is not None else None
    seconds = _form("{:.2f} s")
    rows.append(seconds("load", measured.load_seconds, active.budget.load_seconds, past.load_seconds if past else None))
    for speed in measured.speeds:
        old = next((each for each in past.speeds if each.streams == speed.streams), None) if past else None
        name = "1 stream" if speed.streams == 1 else f"{speed.streams} streams"
        budget = active.budget.tokens_per_second if speed.streams == 1 else None
        rate, wait = _form("{:.1f} tok/s"), _form("{:.0f} ms")
        rows.append(rate(name, speed.tokens_per_second, budget, old.tokens_per_second if old else None))
        rows.append(wait("  first token", speed.first_token_ms, None, old.first_token_ms if old else None))
    memory = (measured.peak_rss_bytes, active.budget.peak_rss_bytes, past.peak_rss_bytes if past else None)
    rows.append(_row(lambda count: format_size(int(count)), "peak memory", *memory))
    print_table(rows)


def _form(text: str) -> Callable[..., list[str]]:
    return partial(_row, text.format)


def _row(
    form: Callable[[float], str], name: str, measured: float, budget: float | None, before: float | None
) -> list[str]:
    """A number, and what it is compared with, each followed by the ratio."""
    cells = [name, form(measured)]
    for other in (budget, before):
        cells += ["-", ""] if not other else [form(other), f"{measured / other:.2f}×"]
    return cells
