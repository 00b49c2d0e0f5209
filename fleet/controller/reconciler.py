"""Decides about every rollout that has not ended, whenever it is asked: reads how things are, decides, and stores what
comes of it with its wishes in one transaction.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from msgspec import structs
from sqlalchemy import Connection

from contract.errors import EdgeBundleError
from fleet.rollout.actions import IllegalMove
from fleet.rollout.decide import decide
from fleet.rollout.facts import Facts, Newcomer
from fleet.rollout.model import Rollout
from fleet.rollout.selector import parse_selector
from fleet.store import audit, canary, devices, rollouts
from fleet.store.database import Database
from fleet.store.leader import Leader

log = logging.getLogger("edge_fleet.controller")

ACTOR = "controller"

MAX_ROUNDS = 20
"""Decisions in a row about one rollout: opening a wave, asking, and so on each need one."""


class Reconciler:
    """``clock`` gives Unix seconds; ``look`` is shown every rollout that has not ended, with what is known."""

    def __init__(
        self,
        database: Database,
        leader: Leader,
        clock: Callable[[], float],
        look: Callable[[Rollout, Facts], object] = lambda rollout, facts: None,
    ) -> None:
        self._database = database
        self._leader = leader
        self._clock = clock
        self._look = look

    def run(self) -> bool:
        """Bring every rollout on; whether anything changed.

        Raises:
            LeadershipLost: another controller leads. StoreBroken, StoreFull, SourceUnavailable: the database.
        """
        with self._database.read() as connection:
            found = rollouts.numbers(connection, unfinished=True)
        changed = False
        for number in found:
            changed = self._bring_on(number) or changed
        return changed

    def _bring_on(self, number: int) -> bool:
        now = self._clock()
        with self._database.read() as connection:
            before = rollouts.load(connection, number)
            facts = self._facts(connection, before, now)
        self._look(before, facts)
        if not decide(before, facts, now):
            return False
        with self._database.write() as connection:
            self._leader.fence(connection)
            before = rollouts.load(connection, number, lock=True)
            facts = self._facts(connection, before, now)
            try:
                after = self._settle(connection, before, facts, now)
            except IllegalMove:
                # A fault of ours: this rollout stays as it is, and the others go on.
                log.exception("rollout %d cannot be brought on", number)
                return False
            _record(connection, before, after, now)
        return after is not before

    def _settle(self, connection: Connection, before: Rollout, facts: Facts, now: float) -> Rollout:
        after = before
        for _ in range(MAX_ROUNDS):
            actions = decide(after, facts, now)
            if not actions:
                break
            after = rollouts.save(connection, after, actions, now)
            facts = structs.replace(facts, slots=rollouts.slots(connection, now))
        return after

    def _facts(self, connection: Connection, rollout: Rollout, now: float) -> Facts:
        dynamic = rollout.spec.mode == "dynamic"
        return Facts(
            devices.facts(connection, now, None if dynamic else rollout.targets),
            rollouts.held_slots(connection, now),
            _newcomers(connection, rollout) if dynamic else (),
            canary.scores(connection, rollout.id) if rollout.spec.canary is not None else {},
        )


def _newcomers(connection: Connection, rollout: Rollout) -> tuple[Newcomer, ...]:
    try:
        selector = parse_selector(rollout.spec.where)
    except EdgeBundleError:
        # It was read when it was stored; of another version's language nobody is selected.
        return ()
    return tuple(
        Newcomer(row.traits.device, row.traits.hardware, row.traits.site)
        for row in devices.rows(connection)
        if row.traits.device not in rollout.targets and selector.matches(row.traits)
    )


def _record(connection: Connection, before: Rollout, after: Rollout, now: float) -> None:
    """What a rollout did by itself, in the log that says who did what."""
    subject = f"rollout {after.id}"
    known = {wave.number: wave for wave in before.waves}
    for wave in after.waves:
        was = known.get(wave.number)
        if was is None or was.state is not wave.state:
            detail = {"wave": wave.number, "verdict": wave.verdict}
            audit.record(connection, at=now, actor=ACTOR, action=f"wave.{wave.state}", subject=subject, detail=detail)
            log.info("rollout %d: wave %d is %s %s", after.id, wave.number, wave.state, wave.verdict)
    if before.state is not after.state:
        detail = {"reason": after.reason}
        audit.record(connection, at=now, actor=ACTOR, action=f"rollout.{after.state}", subject=subject, detail=detail)
        log.info("rollout %d is %s: %s", after.id, after.state, after.reason)
