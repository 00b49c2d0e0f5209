"""The state table of installation: pure, so that every path through it can be walked in a test.

``(state, event) -> (state, actions)``. Whoever drives it records the new state first and performs the actions after,
so that a restart finds what was meant; :data:`Event.RESTARTED` says from every state how to go on. An event that a
state does not know raises :class:`IllegalEvent` and changes nothing.

Only COMMIT changes what is active. Whatever goes wrong before it ends in IDLE with the old bundle serving.
"""

from __future__ import annotations

from enum import StrEnum


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


class Action(StrEnum):
    """What the update runner has to do next; every action may be repeated after a restart."""

    OBTAIN = "obtain"
    """Run the installer: RESOLVE to SEAL."""
    STOP_INSTALLER = "stop_installer"
    SCHEDULE_RETRY = "schedule_retry"
    RUN_CANARY = "run_canary"
    SWAP = "swap"
    WATCH = "watch"
    QUARANTINE = "quarantine"
    RESTORE = "restore"
    """Serve the active bundle again, if it is not the one being served."""
    COMMIT = "commit"
    COLLECT = "collect"
    """Collect garbage."""


class IllegalEvent(Exception):
    """The table has no entry: a fault in the update runner, never caused by input."""


_Entry = tuple[State, tuple[Action, ...]]

_DOWNLOADING = (State.RESOLVE, State.CHECK, State.RESERVE, State.FETCH, State.VERIFY, State.SEAL)

TABLE: dict[tuple[State, Event], _Entry] = {
    (State.IDLE, Event.WANTED): (State.RESOLVE, (Action.OBTAIN,)),
    (State.IDLE, Event.RESTARTED): (State.IDLE, (Action.RESTORE,)),
    (State.RESOLVE, Event.RESOLVED): (State.CHECK, ()),
    (State.CHECK, Event.CHECKED): (State.RESERVE, ()),
    (State.CHECK, Event.PRESENT): (State.VERIFY, ()),
    (State.RESERVE, Event.RESERVED): (State.FETCH, ()),
    (State.FETCH, Event.FETCHED): (State.VERIFY, ()),
    (State.VERIFY, Event.VERIFIED): (State.SEAL, ()),
    (State.SEAL, Event.SEALED): (State.CANARY, (Action.RUN_CANARY,)),
    (State.CANARY, Event.CANARY_PASSED): (State.SWITCH, (Action.SWAP,)),
    (State.CANARY, Event.FAILED): (State.ROLLBACK, (Action.QUARANTINE, Action.RESTORE)),
    (State.CANARY, Event.SUPERSEDED): (State.IDLE, ()),
    (State.CANARY, Event.UNAVAILABLE): (State.IDLE, (Action.SCHEDULE_RETRY,)),
    (State.CANARY, Event.RESTARTED): (State.IDLE, (Action.RESTORE,)),
    (State.SWITCH, Event.SWITCHED): (State.PROBATION, (Action.WATCH,)),
    (State.SWITCH, Event.FAILED): (State.ROLLBACK, (Action.QUARANTINE, Action.RESTORE)),
    # Killed while switching or in probation: not the candidate's fault for sure, so it is tried again; the attempt
    # counter ends that when it is.
    (State.SWITCH, Event.RESTARTED): (State.ROLLBACK, (Action.RESTORE,)),
    (State.PROBATION, Event.HELD): (State.COMMIT, (Action.COMMIT,)),
    (State.PROBATION, Event.FAILED): (State.ROLLBACK, (Action.QUARANTINE, Action.RESTORE)),
    (State.PROBATION, Event.SUPERSEDED): (State.ROLLBACK, (Action.RESTORE,)),
    (State.PROBATION, Event.RESTARTED): (State.ROLLBACK, (Action.RESTORE,)),
    (State.COMMIT, Event.COMMITTED): (State.IDLE, (Action.COLLECT,)),
    (State.COMMIT, Event.RESTARTED): (State.COMMIT, (Action.COMMIT, Action.RESTORE)),
    (State.ROLLBACK, Event.RESTORED): (State.IDLE, (Action.COLLECT,)),
    (State.ROLLBACK, Event.RESTARTED): (State.ROLLBACK, (Action.QUARANTINE, Action.RESTORE)),
}
for _state in _DOWNLOADING:
    TABLE[_state, Event.REFUSED] = (State.IDLE, ())
    TABLE[_state, Event.UNAVAILABLE] = (State.IDLE, (Action.SCHEDULE_RETRY,))
    TABLE[_state, Event.SUPERSEDED] = (State.IDLE, (Action.STOP_INSTALLER,))
    TABLE[_state, Event.RESTARTED] = (State.IDLE, (Action.RESTORE,))


def step(state: State, event: Event) -> _Entry:
    """The next state and what to do on entering it.

    Raises:
        IllegalEvent: ``state`` does not know ``event``.
    """
    entry = TABLE.get((state, event))
    if entry is None:
        raise IllegalEvent(f"{event} cannot happen in {state}")
    return entry
