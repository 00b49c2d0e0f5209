"""What people do to rollouts and devices, each with its line in the audit log, for commands, API and console alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

from contract.errors import RequestInvalid
from fleet.catalogue import Listed
from fleet.rollout import operate
from fleet.rollout.actions import Action
from fleet.rollout.model import Bundle, Rollout
from fleet.rollout.plan import draft
from fleet.rollout.selector import Traits
from fleet.rollout.spec import Spec
from fleet.store import audit, devices, rollouts
from fleet.store.database import Transaction

Steering = Literal["pause", "resume", "halt", "abort", "retry", "approve"]
STEERING: tuple[Steering, ...] = get_args(Steering)

MAX_WHY = 500
"""Characters of a reason that somebody gives."""

_LABEL = re.compile(r"[A-Za-z0-9_.-]{1,64}=[^\x00-\x1f]{0,128}")


class Actor(NamedTuple):
    """Who does it, for the audit log; ``via``: with what, where it was not the command line."""

    name: str
    via: str = ""

    def detail(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """``values`` that say something, and how it came."""
        found = {name: value for name, value in values.items() if value not in (None, "", {}, ())}
        return found | ({"via": self.via} if self.via else {})


class Planned(NamedTuple):
    """A draft, and the devices that were known then."""

    rollout: Rollout
    devices: dict[str, Traits]


def plan(
    connection: Transaction, spec: Spec, listed: Listed | None, *, by: str, now: float, number: int = 0
) -> Planned:
    """The rollout as it would be; nothing is changed.

    Raises:
        RequestInvalid: the selection is empty, or its windows never open.
    """
    known = {each.device: each for each in devices.traits(connection)}
    bundle = Bundle(spec.name, spec.version) if listed is None else listed.bundle
    needs = None if listed is None else listed.needs
    return Planned(draft(spec, list(known.values()), number=number, bundle=bundle, by=by, now=now, needs=needs), known)


def start(connection: Transaction, spec: Spec, listed: Listed | None, actor: Actor, now: float) -> Planned:
    """Store the plan and begin it, or let it wait for its approval.

    Raises:
        RequestInvalid: as for :func:`plan`.
    """
    known: dict[str, Traits] = {}

    def make(number: int) -> Rollout:
        made, traits = plan(connection, spec, listed, by=actor.name, now=now, number=number)
        known.update(traits)
        return made

    made = rollouts.start_rollout(connection, rollouts.add(connection, make).id, now)
    detail = {"bundle": spec.bundle, "where": spec.where, "devices": len(made.targets), "state": made.state}
    audit.record(
        connection, at=now, actor=actor.name, action="rollout.start", subject=f"rollout {made.id}",
        detail=actor.detail(detail),
    )  # fmt: skip
    return Planned(made, known)


def steer(
    connection: Transaction,
    number: int,
    action: Steering,
    actor: Actor,
    now: float,
    *,
    accept: str | None = None,
    check: Callable[[Rollout], None] = lambda rollout: None,
) -> Rollout:
    """Pause, resume, halt, abort, retry or approve the rollout ``number``; ``check`` may refuse what it is by now.

    Raises:
        RequestInvalid: there is none, or it is in no state for it.
    """
    if accept is not None and not 0 < len(accept.strip()) <= MAX_WHY:
        raise RequestInvalid(f"say in 1 to {MAX_WHY} characters why the wave is accepted", field="accept")
    by = actor.name
    simple: dict[Steering, Callable[[Rollout], list[Action]]] = {
        "pause": lambda found: operate.pause(found, by, now),
        "halt": lambda found: operate.halt(found, by, now),
        "abort": lambda found: operate.abort(found, by, now),
        "retry": lambda found: operate.retry(found, by, now),
        "resume": lambda found: operate.resume(found, by, now, accept),
    }

    def approve(found: Rollout, at: float) -> list[Action]:
        check(found)
        return operate.approve(found, by, at)

    if action == "approve":
        after = rollouts.begin(connection, number, approve, now)
    else:
        before = rollouts.load(connection, number, lock=True)
        check(before)
        after = rollouts.save(connection, before, simple[action](before), now)
    audit.record(
        connection, at=now, actor=by, action=f"rollout.{action}", subject=f"rollout {after.id}",
        detail=actor.detail({"state": after.state, "accept": accept}),
    )  # fmt: skip
    return after


def change_device(
    connection: Transaction,
    name: str,
    actor: Actor,
    now: float,
    *,
    labels: Mapping[str, str] | None = None,
    pinned: bool | None = None,
    clear_trouble: bool = False,
) -> None:
    """What an operator says of a device.

    Raises:
        RequestInvalid: it was never heard, or a label is none.
    """
    for label, value in (labels or {}).items():
        check_label(f"{label}={value}")
    changes = {"labels": labels or None, "pinned": pinned, "clear_trouble": clear_trouble or None}
    if all(value is None for value in changes.values()):
        devices.find(connection, name)
        return
    devices.change(connection, name, labels=labels, pinned=pinned, reliable=clear_trouble or None)
    audit.record(
        connection, at=now, actor=actor.name, action="device.change", subject=name, detail=actor.detail(changes)
    )


def check_label(text: str) -> str:
    """``text`` as NAME=VALUE.

    Raises:
        RequestInvalid: it is not.
    """
    if _LABEL.fullmatch(text) is None:
        raise RequestInvalid(
            f"{text[:80]!r} is not NAME=VALUE: a name has 1 to 64 of A-Z a-z 0-9 _ . -", field="labels"
        )
    return text
