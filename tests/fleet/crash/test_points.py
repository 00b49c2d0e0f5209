"""Some of the points at which a controller can die; all of them: ``make fleet-crash``."""

from __future__ import annotations

import pytest

from tests.broker import Broker
from tests.fleet.crash.__main__ import Theatre
from tests.fleet.crash.controller import Point
from tests.fleet.crash.scene import Outcome, Story
from tests.postgres import Postgres

pytestmark = pytest.mark.broker

SCENES: list[tuple[Story, Point]] = [
    ("good", Point(0, "before")),  # leads, but for the commit that says so
    ("good", Point(1, "after")),  # has decided to open a wave, and sent nothing
    ("good", Point(2, "after")),  # has sent a wish that is not marked as sent
    ("good", Point(5, "before")),
    ("bad", Point(3, "before")),
    ("bad", Point(4, "after")),
]


def test_whenever_one_of_two_dies_the_other_ends_the_rollout(postgres: Postgres, broker: Broker) -> None:
    outcomes = Theatre(broker, postgres).play_all(SCENES)
    failures = {scene: outcome for scene, outcome in outcomes.items() if not isinstance(outcome, Outcome)}
    assert not failures
    assert [scene for scene, outcome in outcomes.items() if isinstance(outcome, Outcome) and not outcome.reached] == []
