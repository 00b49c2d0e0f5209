"""What devices answered to the quality canary of a rollout."""

from __future__ import annotations

from sqlalchemy import Connection, select

from fleet.rollout.canary import Score
from fleet.store.schema import canary_score
from fleet.store.upsert import upsert


def note(connection: Connection, rollout: int, device: str, attempt: int, score: Score) -> None:
    """The latest of an attempt is what counts."""
    values = {"asked": score.asked, "answered": score.answered, "expected": score.expected, "at": score.at}
    upsert(connection, canary_score, [{"rollout": rollout, "device": device, "attempt": attempt, **values}])


def scores(connection: Connection, rollout: int) -> dict[str, dict[int, Score]]:
    """By device and attempt."""
    found: dict[str, dict[int, Score]] = {}
    for row in connection.execute(select(canary_score).where(canary_score.c.rollout == rollout)):
        found.setdefault(row.device, {})[row.attempt] = Score(row.asked, row.answered, row.expected, row.at)
    return found
