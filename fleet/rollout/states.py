"""States of rollouts, waves and targets, and which may follow which. What is not in a table cannot happen."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class RolloutState(StrEnum):
    """``HALTED`` is a rollout that stopped itself; what was rolled out is turned back in ``ROLLING_BACK``."""

    DRAFT = "draft"
    WAITING_APPROVAL = "waiting_approval"
    RUNNING = "running"
    PAUSED = "paused"
    HALTED = "halted"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    DONE = "done"
    ABORTED = "aborted"


class WaveState(StrEnum):
    """``INCONCLUSIVE``: there was too little to judge by, and the rollout is paused; it never counts as passed."""

    PENDING = "pending"
    OPEN = "open"
    BAKING = "baking"
    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"


class TargetState(StrEnum):
    """One device of one rollout. ``DEFERRED`` waits for something that its reason names: :class:`Deferral`."""

    PENDING = "pending"
    DEFERRED = "deferred"
    ASKED = "asked"
    INSTALLING = "installing"
    PROBATION = "probation"
    ACTIVE = "active"
    BAKED = "baked"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    SKIPPED = "skipped"
    ROLLED_BACK = "rolled_back"
    SUPERSEDED = "superseded"


class Deferral(StrEnum):
    """What a deferred target waits for."""

    OFFLINE = "offline"
    WINDOW = "window"
    SLOT = "slot"
    PINNED = "pinned"
    CANARY = "canary"


class TurnBack(StrEnum):
    """How far a target is turned back to what it ran before. ``IMPOSSIBLE``: it ran nothing before."""

    REQUESTED = "requested"
    DONE = "done"
    REFUSED = "refused"
    TIMED_OUT = "timed_out"
    IMPOSSIBLE = "impossible"
    SUPERSEDED = "superseded"


_R, _W, _T = RolloutState, WaveState, TargetState

ROLLOUT: Mapping[RolloutState, frozenset[RolloutState]] = {
    _R.DRAFT: frozenset({_R.WAITING_APPROVAL, _R.RUNNING, _R.ABORTED}),
    _R.WAITING_APPROVAL: frozenset({_R.RUNNING, _R.ABORTED}),
    _R.RUNNING: frozenset({_R.PAUSED, _R.HALTED, _R.ROLLING_BACK, _R.DONE, _R.ABORTED}),
    _R.PAUSED: frozenset({_R.RUNNING, _R.HALTED, _R.ROLLING_BACK, _R.DONE, _R.ABORTED}),
    _R.HALTED: frozenset({_R.RUNNING, _R.ROLLING_BACK, _R.ABORTED}),
    _R.ROLLING_BACK: frozenset({_R.ROLLED_BACK, _R.ABORTED}),
    _R.ROLLED_BACK: frozenset(),
    _R.DONE: frozenset(),
    _R.ABORTED: frozenset(),
}

WAVE: Mapping[WaveState, frozenset[WaveState]] = {
    _W.PENDING: frozenset({_W.OPEN}),
    _W.OPEN: frozenset({_W.BAKING, _W.PASSED, _W.FAILED, _W.INCONCLUSIVE}),
    _W.BAKING: frozenset({_W.PASSED, _W.FAILED, _W.INCONCLUSIVE}),
    _W.PASSED: frozenset(),
    _W.FAILED: frozenset({_W.OPEN}),
    _W.INCONCLUSIVE: frozenset({_W.OPEN, _W.BAKING, _W.PASSED, _W.FAILED}),
}
"""A wave opens again by ``retry``; an inconclusive one bakes again by ``resume``, or passes on a person's word."""

_ENDS = {_T.FAILED, _T.TIMED_OUT, _T.ROLLED_BACK, _T.SUPERSEDED}

TARGET: Mapping[TargetState, frozenset[TargetState]] = {
    _T.PENDING: frozenset({_T.DEFERRED, _T.ASKED, _T.SKIPPED, _T.SUPERSEDED}),
    _T.DEFERRED: frozenset({_T.DEFERRED, _T.ASKED, _T.SKIPPED, _T.SUPERSEDED}),
    _T.ASKED: frozenset({_T.INSTALLING, _T.PROBATION, _T.ACTIVE, _T.DEFERRED, *_ENDS}),
    _T.INSTALLING: frozenset({_T.PROBATION, _T.ACTIVE, *_ENDS}),
    _T.PROBATION: frozenset({_T.ACTIVE, *_ENDS}),
    _T.ACTIVE: frozenset({_T.BAKED, _T.FAILED, _T.SKIPPED, _T.ROLLED_BACK, _T.SUPERSEDED}),
    _T.BAKED: frozenset({_T.ROLLED_BACK}),
    _T.FAILED: frozenset({_T.PENDING, _T.ROLLED_BACK}),
    _T.TIMED_OUT: frozenset({_T.PENDING, _T.ROLLED_BACK}),
    _T.SKIPPED: frozenset(),
    _T.ROLLED_BACK: frozenset(),
    _T.SUPERSEDED: frozenset(),
}

ENDED = frozenset({_R.ROLLED_BACK, _R.DONE, _R.ABORTED})
"""Rollouts of which nothing more comes."""

LIVE = frozenset({_R.RUNNING, _R.PAUSED, _R.HALTED, _R.ROLLING_BACK})
"""Rollouts that hold their devices: a device is the open target of one of them at most."""

IN_PROGRESS = frozenset({_T.ASKED, _T.INSTALLING, _T.PROBATION})
"""What ``max_in_progress`` bounds."""

WAITING = frozenset({_T.PENDING, _T.DEFERRED})

OPEN = WAITING | IN_PROGRESS | {_T.ACTIVE}
"""Targets that are not settled."""

FAILURES = frozenset({_T.FAILED, _T.TIMED_OUT})

EXECUTED = FAILURES | {_T.ACTIVE, _T.BAKED}
"""The denominator of every rate: who got the wish and was there since. Who was off is neither."""
