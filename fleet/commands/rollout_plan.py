"""``edge-fleet rollout plan`` and ``start``: what would happen, and the same as it begins."""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from contract.errors import RequestInvalid, UsageError
from contract.windows import next_opening
from fleet import operations
from fleet.catalogue import Listed, look_up
from fleet.commands.context import operator, print_json, print_table, size, when
from fleet.describe import describe_plan
from fleet.operations import Actor
from fleet.rollout.durations import describe_duration
from fleet.rollout.model import Rollout
from fleet.rollout.plan import WavePlan, describe
from fleet.rollout.spec import MAX_SPEC_BYTES, Spec, parse_spec, read_spec
from fleet.rollout.states import RolloutState
from fleet.store.database import Database

DEPOT_ENVIRONMENT = "EDGE_FLEET_DEPOT"
ROOT_ENVIRONMENT = "EDGE_FLEET_ROOT"


def add_specification(parser: argparse.ArgumentParser) -> None:
    """Options that say what is rolled out, and how."""
    parser.add_argument("bundle", nargs="?", metavar="NAME@VERSION", help="what to roll out")
    parser.add_argument("--spec", type=Path, metavar="FILE", help="TOML; the options below override it")
    parser.add_argument("--where", metavar="SELECTION", help="to which devices, as for `edge-fleet devices`; * for all")
    parser.add_argument("--waves", metavar="LIST", help="such as 1,10%%,100%%, each from the first device on")
    parser.add_argument("--holdout", metavar="N", help="devices that are left out as control group: 5 or 5%%")
    parser.add_argument("--bake", metavar="DURATION", help="how long a wave runs before it is judged")
    parser.add_argument("--deadline", metavar="DURATION", help="for one device, until the bundle is active")
    parser.add_argument("--rollback", metavar="WHAT", help="when it halts: none, wave (the default) or all")
    parser.add_argument("--source", metavar="S", help="name of a source in the devices' configuration")
    parser.add_argument("--approval", action="store_true", help="another person has to approve it")
    parser.add_argument(
        "--depot", default=os.environ.get(DEPOT_ENVIRONMENT), metavar="SOURCE",
        help=f"look the bundle up there: directory, .edgebundle file or URL (default: {DEPOT_ENVIRONMENT})",
    )  # fmt: skip
    parser.add_argument(
        "--root", type=Path, default=os.environ.get(ROOT_ENVIRONMENT), metavar="ROOT_JSON",
        help=f"the root of trust that devices have; goes with --depot (default: {ROOT_ENVIRONMENT})",
    )  # fmt: skip


def read_specification(arguments: argparse.Namespace) -> Spec:
    """The specification that file and options make together.

    Raises:
        RequestInvalid: it is wrong, with all its faults. UsageError: the file cannot be read.
    """
    document: dict[str, Any] = {}
    if arguments.spec is not None:
        try:
            with arguments.spec.open("rb") as file:
                document = parse_spec(file.read(MAX_SPEC_BYTES + 1))
        except OSError as error:
            raise UsageError(f"the specification {arguments.spec} cannot be read: {error.strerror}") from error
    for name in ("bundle", "where", "holdout", "bake", "deadline", "rollback", "source"):
        if getattr(arguments, name) is not None:
            document[name] = getattr(arguments, name)
    if arguments.waves is not None:
        document["waves"] = [part.strip() for part in arguments.waves.split(",")]
    if arguments.approval:
        document["approval"] = True
    return read_spec(document)


def _look_up(arguments: argparse.Namespace, spec: Spec) -> Listed | None:
    if (arguments.depot is None) != (arguments.root is None):
        raise UsageError(
            "--depot and --root go together: a repository is read with the root of trust that devices have"
        )
    if arguments.depot is None:
        return None
    return look_up(spec.name, spec.version, depot=arguments.depot, root=Path(arguments.root))


def plan_or_start(database: Database, arguments: argparse.Namespace) -> int:
    """Print the plan; with ``start`` store and begin it."""
    try:
        spec = read_specification(arguments)
    except RequestInvalid as error:
        if not arguments.json:
            for fault in error.details[1:]:
                print(f"  {fault.field}: {fault.message}")
        raise
    listed = _look_up(arguments, spec)
    starting = arguments.action == "start"
    by, now = operator(), time.time()
    if starting:
        with database.write() as connection:
            made, known = operations.start(connection, spec, listed, Actor(by), now)
    else:
        with database.read() as connection:
            made, known = operations.plan(connection, spec, listed, by=by, now=now)
    waves = describe(made, known, None if listed is None else listed.bytes)
    if arguments.json:
        plan = describe_plan(made, waves, looked_up=listed is not None, started=starting)
        print_json(msgspec.to_builtins(plan))
    else:
        _print_plan(made, waves, listed is not None, starting)
    return 0


def _print_plan(made: Rollout, waves: list[WavePlan], checked: bool, starting: bool) -> None:
    spec = made.spec
    print(
        f"{made.bundle.reference} where {spec.where}" + (f"  {made.bundle.digest[:12]}" if made.bundle.digest else "")
    )
    if not checked:
        print("  not looked up in a repository (--depot and --root do that); devices do so themselves")
    rows = [
        [
            f"{wave.number}", f"{len(wave.devices)}", f"{wave.offline}", _counts(wave.sites), _counts(wave.hardware),
            size(wave.bytes), f"{_hours(wave.hours_least)} to {_hours(wave.hours_most)}", _names(wave.devices),
        ]
        for wave in waves
    ]  # fmt: skip
    print_table(["WAVE", "DEVICES", "OFFLINE", "SITES", "HARDWARE", "AT MOST", "TAKES", "FIRST"], rows)
    left_out = Counter(target.reason for target in made.targets.values() if target.wave == 0)
    for reason, count in left_out.items():
        print(f"  {count} left out: {reason}")
    least, most = sum(wave.hours_least for wave in waves), sum(wave.hours_most for wave in waves)
    sizes = [wave.bytes for wave in waves if wave.bytes is not None]
    print(f"  {size(sum(sizes)) if sizes else 'unknown bytes'} at most, {_hours(least)} to {_hours(most)}")
    if spec.canary is not None:
        prompts, tokens = sum(wave.prompts for wave in waves), spec.canary.max_tokens
        each = spec.canary.requests(spec.gates.min_requests)
        print(
            f"  quality canary: {len(spec.canary.prompts)} prompts, {each} requests a device before and {each} after, "
            f"{prompts:,} in all, of {tokens} tokens at most"
        )
    if spec.windows:
        opens = when(next_opening(spec.windows, made.created_at))
        print(f"  and as much longer as its maintenance windows are closed; the next one is open from {opens}")
    if spec.prefetch:
        print("  prefetch: devices fetch as soon as they are asked, and activate within the windows")
    if starting:
        hint = (
            "edge-fleet rollout approve" if made.state is RolloutState.WAITING_APPROVAL else "edge-fleet rollout watch"
        )
        print(f"rollout {made.id} is {made.state}; {hint} {made.id}")


def _hours(hours: float) -> str:
    return describe_duration(hours * 3600)


def _counts(counts: Any) -> str:
    shown = [f"{name or 'unknown'} {count}" for name, count in sorted(counts.items(), key=lambda each: -each[1])[:3]]
    return ", ".join(shown) + (", …" if len(counts) > len(shown) else "")


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
