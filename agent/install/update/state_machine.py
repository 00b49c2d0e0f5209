"""The state table of an update: pure, so that every path through it can be walked in a test.

``(state, event) -> state, actions``. The update runner records the new state first and performs the actions after, so
that a restart finds what was meant; :data:`Event.RESTARTED` says from every state how to go on. An event that a state
does not know raises :class:`IllegalEvent` and changes nothing. The diagram in ``docs/ARCHITECTURE.md`` is written from
this table (:mod:`agent.install.update.diagram`).

Exactly one entry commits. Whatever goes wrong before it ends in IDLE with the old bundle serving.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class State(StrEnum):
    """Where an installation stands; the names are the phases of ``reported``."""

    IDLE = "IDLE"
    RESOLVE = "RESOLVE"
    CHECK = "CHECK"
    RESERVE = "RESERVE"
    FETCH = "FETCH"
    VERIFY = "VERIFY"
    SEAL = "SEAL"
    CANARY = "CANARY"
    SWITCH = "SWITCH"
    PROBATION = "PROBATION"
    COMMIT = "COMMIT"
    ROLLBACK = "ROLLBACK"


class Event(StrEnum):
    """What happened."""

    WANTED = "wanted"
    """A bundle other than the active one is to be run."""
    RESOLVED = "resolved"
    CHECKED = "checked"
    PRESENT = "present"
    """The bundle lies sealed on this disk already; its bytes are to be verified, nothing is to be fetched."""
    RESERVED = "reserved"
    FETCHED = "fetched"
    VERIFIED = "verified"
    SEALED = "sealed"
    PREFETCHED = "prefetched"
    """It lies sealed on this disk, and may not be made active yet."""
    REFUSED = "refused"
    """The bundle or the target cannot be accepted; no retry until it changes."""
    UNAVAILABLE = "unavailable"
    """Source or store failed for now; retried later."""
    SUPERSEDED = "superseded"
    """Another target arrived, or the target was withdrawn."""
    CANARY_PASSED = "canary_passed"
    SWITCHED = "switched"
    FAILED = "failed"
    """The candidate did not hold in canary, switch or probation."""
    HELD = "held"
    """Probation is over and the candidate held."""
    COMMITTED = "committed"
    RESTORED = "restored"
    RESTARTED = "restarted"
    """The process was started and finds this state recorded."""
    RESTARTED_FAILED = "restarted_failed"
    """As RESTARTED, and why the candidate failed is recorded with the state."""
    WITHDRAWN = "withdrawn"
    """Nothing is desired any more."""
    REVOKED = "revoked"
    """What is active was revoked, is to leave service, and nothing else here is acceptable."""
    ADAPTER_REVOKED = "adapter_revoked"
    """An adapter beside what is active was revoked and is to leave service."""


class Action(StrEnum):
    """What the update runner has to do next; every action may be repeated after a restart."""

    OBTAIN = "obtain"
    """Run the installer: RESOLVE to SEAL."""
    RUN_CANARY = "run_canary"
    SWAP = "swap"
    WATCH = "watch"
    REPORT_COMMIT = "report_commit"
    """Say that the candidate is active now: ``audit.jsonl``, event, log."""
    REPORT_ROLLBACK = "report_rollback"
    """Say what was gone back to, from what, and why."""
    QUARANTINE = "quarantine"
    FORGIVE_ATTEMPT = "forgive_attempt"
    """The attempt was given up for something else, which says nothing about the candidate."""
    RESTORE = "restore"
    """Serve the active bundle again, if it is not the one being served."""
    RETIRE = "retire"
    """Nothing is active from now on, and nothing is served."""
    DROP_ADAPTER = "drop_adapter"
    COLLECT = "collect"
    """Collect garbage: bundles, prepacked weights, partial downloads."""
    TIDY = "tidy"
    """Remove what a power cut left half removed; partial downloads stay."""


class IllegalEvent(Exception):
    """The table has no entry: a fault in the update runner, never caused by input."""


class Entry(NamedTuple):
    """The state to enter, and what to do then. ``commits``: the candidate becomes active in the transaction that
    records the state.
    """

    state: State
    actions: tuple[Action, ...] = ()
    commits: bool = False


DOWNLOADING = (State.RESOLVE, State.CHECK, State.RESERVE, State.FETCH, State.VERIFY, State.SEAL)
"""The states in which the installer runs."""

_TO_OLD = (Action.RESTORE, Action.REPORT_ROLLBACK)

TABLE: dict[tuple[State, Event], Entry] = {
    (State.IDLE, Event.WANTED): Entry(State.RESOLVE, (Action.OBTAIN,)),
    (State.IDLE, Event.WITHDRAWN): Entry(State.IDLE, (Action.COLLECT,)),
    (State.IDLE, Event.REVOKED): Entry(State.IDLE, (Action.RETIRE,)),
    (State.IDLE, Event.ADAPTER_REVOKED): Entry(State.IDLE, (Action.DROP_ADAPTER, Action.RESTORE, Action.COLLECT)),
    (State.IDLE, Event.RESTARTED): Entry(State.IDLE, (Action.RESTORE, Action.TIDY)),
    (State.RESOLVE, Event.RESOLVED): Entry(State.CHECK),
    (State.CHECK, Event.CHECKED): Entry(State.RESERVE),
    (State.CHECK, Event.PRESENT): Entry(State.VERIFY),
    (State.RESERVE, Event.RESERVED): Entry(State.FETCH),
    (State.FETCH, Event.FETCHED): Entry(State.VERIFY),
    (State.VERIFY, Event.VERIFIED): Entry(State.SEAL),
    (State.SEAL, Event.SEALED): Entry(State.CANARY, (Action.RUN_CANARY,)),
    (State.CANARY, Event.CANARY_PASSED): Entry(State.SWITCH, (Action.SWAP,)),
    (State.CANARY, Event.FAILED): Entry(State.ROLLBACK, (Action.QUARANTINE, *_TO_OLD)),
    (State.CANARY, Event.SUPERSEDED): Entry(State.IDLE, (Action.FORGIVE_ATTEMPT,)),
    (State.CANARY, Event.UNAVAILABLE): Entry(State.IDLE),
    (State.CANARY, Event.RESTARTED): Entry(State.IDLE, (Action.RESTORE, Action.TIDY)),
    (State.SWITCH, Event.SWITCHED): Entry(State.PROBATION, (Action.WATCH,)),
    (State.SWITCH, Event.FAILED): Entry(State.ROLLBACK, (Action.QUARANTINE, *_TO_OLD)),
    # Killed while switching or in probation: not the candidate's fault for sure, so it is tried again; the attempt
    # counter ends that when it is.
    (State.SWITCH, Event.RESTARTED): Entry(State.ROLLBACK, _TO_OLD),
    (State.PROBATION, Event.HELD): Entry(State.COMMIT, (Action.REPORT_COMMIT,), commits=True),
    (State.PROBATION, Event.FAILED): Entry(State.ROLLBACK, (Action.QUARANTINE, *_TO_OLD)),
    (State.PROBATION, Event.SUPERSEDED): Entry(State.ROLLBACK, (Action.FORGIVE_ATTEMPT, *_TO_OLD)),
    (State.PROBATION, Event.RESTARTED): Entry(State.ROLLBACK, _TO_OLD),
    (State.COMMIT, Event.COMMITTED): Entry(State.IDLE, (Action.COLLECT,)),
    (State.COMMIT, Event.RESTARTED): Entry(State.COMMIT, (Action.RESTORE, Action.REPORT_COMMIT)),
    (State.ROLLBACK, Event.RESTORED): Entry(State.IDLE, (Action.COLLECT,)),
    (State.ROLLBACK, Event.RESTARTED): Entry(State.ROLLBACK, _TO_OLD),
    (State.ROLLBACK, Event.RESTARTED_FAILED): Entry(State.ROLLBACK, (Action.QUARANTINE, *_TO_OLD)),
}
for _state in DOWNLOADING:
    TABLE[_state, Event.REFUSED] = Entry(State.IDLE)
    TABLE[_state, Event.UNAVAILABLE] = Entry(State.IDLE)
    TABLE[_state, Event.PREFETCHED] = Entry(State.IDLE)
    TABLE[_state, Event.SUPERSEDED] = Entry(State.IDLE)
    TABLE[_state, Event.RESTARTED] = Entry(State.IDLE, (Action.RESTORE, Action.TIDY))

STEPS = frozenset({
    Event.RESOLVED, Event.CHECKED, Event.PRESENT, Event.RESERVED, Event.FETCHED, Event.VERIFIED, Event.SEALED,
})  # fmt: skip
"""What the installer reports while it runs."""

RESULTS: dict[Action, frozenset[Event]] = {
    Action.OBTAIN: STEPS | {Event.REFUSED, Event.UNAVAILABLE, Event.SUPERSEDED, Event.PREFETCHED},
    Action.RUN_CANARY: frozenset({Event.CANARY_PASSED, Event.FAILED, Event.UNAVAILABLE, Event.SUPERSEDED}),
    Action.SWAP: frozenset({Event.SWITCHED, Event.FAILED}),
    Action.WATCH: frozenset({Event.HELD, Event.FAILED, Event.SUPERSEDED}),
    Action.REPORT_COMMIT: frozenset({Event.COMMITTED}),
    Action.REPORT_ROLLBACK: frozenset({Event.RESTORED}),
}
"""The events that an action may end with; an action that is not here ends with none."""


def step(state: State, event: Event) -> Entry:
    """The next state and what to do on entering it.

    Raises:
        IllegalEvent: ``state`` does not know ``event``.
    """
    entry = TABLE.get((state, event))
    if entry is None:
        raise IllegalEvent(f"{event} cannot happen in {state}")
    return entry


def restart_event(state: State, *, failed: bool) -> Event:
    """What a restart is in ``state``; ``failed``: why the candidate failed is known."""
    return Event.RESTARTED_FAILED if state is State.ROLLBACK and failed else Event.RESTARTED


def recorded_state(phase: str, *, candidate_known: bool, candidate_in_force: bool) -> State:
    """The state to go on from, of what is recorded: a state without the candidate that it is about is none, and only a
    candidate that is in force was committed.
    """
    state = State(phase)
    if state in (State.SWITCH, State.PROBATION, State.ROLLBACK) and not candidate_known:
        return State.IDLE
    return State.IDLE if state is State.COMMIT and not candidate_in_force else state
