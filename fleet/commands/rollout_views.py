"""``edge-fleet rollout list``, ``show`` and ``watch``."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from contract.errors import BundleRefused, SourceUnavailable, UsageError
from contract.reasons import Reason
from fleet.commands.context import print_json, print_table, when
from fleet.describe import count_targets, describe_rollout, describe_rollout_wholly
from fleet.rollout.durations import parse_duration
from fleet.rollout.model import Rollout, Target
from fleet.rollout.states import ENDED, IN_PROGRESS, WAITING, RolloutState
from fleet.store import rollouts
from fleet.store.database import Database

_MAY_WAIT = WAITING | IN_PROGRESS

LOOK_SECONDS = 0.5
"""Between two looks at the database while watching."""


def list_all(database: Database, arguments: argparse.Namespace) -> int:
    """All rollouts, the oldest first."""
    with database.read() as connection:
        found = [rollouts.load(connection, number) for number in rollouts.numbers(connection)]
    if arguments.json:
        print_json({"rollouts": [summary(each) for each in found]})
        return 0
    rows = [
        [
            f"{each.id}",
            each.bundle.reference,
            each.state,
            _progress(each),
            each.created_by,
            when(each.created_at),
            each.reason,
        ]
        for each in found
    ]
    print_table(["ID", "BUNDLE", "STATE", "DEVICES", "BY", "MADE", "REASON"], rows)
    return 0


def _progress(found: Rollout) -> str:
    counts = Counter(str(target.state) for target in found.targets.values() if target.wave > 0)
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))


def summary(found: Rollout) -> dict[str, Any]:
    """A rollout, for scripts."""
    return _builtins(describe_rollout(found, count_targets(found)))


def _builtins(document: Struct) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(document)
    return found


def show_one(database: Database, arguments: argparse.Namespace) -> int:
    """Waves, and the devices of which there is something to say."""
    with database.read() as connection:
        found = rollouts.load(connection, arguments.id)
    if arguments.json:
        print_json(_builtins(describe_rollout_wholly(found)))
        return 0
    print("\n".join(describe_lines(found)))
    shown = [each for each in found.targets.values() if each.reason or each.turn_back]
    if shown:
        rows = [[t.device, f"{t.wave}", t.state, t.reason, t.turn_back or "", t.message] for t in shown]
        print_table(["DEVICE", "WAVE", "STATE", "REASON", "TURNED BACK", "MESSAGE"], rows)
    return 0


def describe_lines(found: Rollout) -> list[str]:
    """A rollout and its waves, for people."""
    reason = f": {found.reason}" if found.reason else ""
    lines = [f"rollout {found.id} of {found.bundle.reference} is {found.state}{reason}"]
    for wave in found.waves:
        states = _states(list(found.wave_targets(wave.number)))
        lines.append(f"  wave {wave.number} is {wave.state}: {states}" + (f"; {wave.verdict}" if wave.verdict else ""))
    return lines


def _states(targets: Sequence[Target]) -> str:
    """How many are in which state, and what those wait for that wait."""
    counts = Counter(str(target.state) for target in targets)
    waits = Counter((str(each.state), each.reason) for each in targets if each.reason and each.state in _MAY_WAIT)
    found = []
    for state, count in sorted(counts.items()):
        why = [f"{reason} {number}" for (waiting, reason), number in sorted(waits.items()) if waiting == state]
        found.append(f"{count} {state}" + (f" ({', '.join(why)})" if why else ""))
    return ", ".join(found)


def watch_one(database: Database, arguments: argparse.Namespace) -> int:
    """Print what changes until it has ended.

    Raises:
        BundleRefused: it was halted, rolled back or aborted. SourceUnavailable: it takes longer than we may wait.
    """
    try:
        end = time.monotonic() + parse_duration(arguments.timeout)
    except ValueError as error:
        raise UsageError(f"--timeout: {error}") from error
    said: list[str] = []
    while True:
        with database.read() as connection:
            found = rollouts.load(connection, arguments.id)
        lines = describe_lines(found)
        if lines != said:
            if arguments.json:
                print_json(summary(found))
            else:
                print("\n".join(line for line in lines if line not in said), flush=True)
            said = lines
        if found.state is RolloutState.DONE:
            return 0
        if found.state in ENDED or found.state is RolloutState.HALTED:
            raise BundleRefused(Reason.OPERATOR if found.state is RolloutState.ABORTED else _reason(found), lines[0])
        if time.monotonic() >= end:
            raise SourceUnavailable(f"rollout {found.id} is still {found.state}")
        time.sleep(LOOK_SECONDS)


def _reason(found: Rollout) -> Reason:
    """The reason that most devices gave, where it is one of the codes."""
    reasons = Counter(target.reason for target in found.targets.values() if target.attempt and target.reason)
    known = [reason for reason, _ in reasons.most_common() if reason in set(Reason)]
    return Reason(known[0]) if known else Reason.PROBATION_ERRORS
