"""``python -m tests.fleet.crash``: both stories at every point; exit status 1 if anything did not hold."""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.broker import Broker
from tests.fleet.crash.controller import Place, Point, Side
from tests.fleet.crash.scene import Outcome, Story, play
from tests.postgres import Postgres

AT_A_TIME = 6
MOST_POINTS = 60
SIDES: tuple[Side, ...] = ("before", "after")
STORIES: tuple[Story, ...] = ("good", "bad")

_numbers = itertools.count()


class Theatre:
    """A broker and a PostgreSQL for many rollouts, each with topics and a database of its own."""

    def __init__(self, broker: Broker, postgres: Postgres) -> None:
        self._broker = broker
        self._postgres = postgres

    def play(self, story: Story, point: Point | None) -> Outcome:
        number = next(_numbers)
        place = Place(self._postgres.create(f"crash_{number}"), self._broker.url, f"edge/crash{number}")
        return play(place, self._broker.address, story, point)

    def play_all(self, scenes: Sequence[tuple[Story, Point]]) -> dict[tuple[Story, Point], Outcome | BaseException]:
        """All of ``scenes``, some at a time; what came of each."""

        def attempt(scene: tuple[Story, Point]) -> Outcome | BaseException:
            try:
                return self.play(*scene)
            except BaseException as failure:
                return failure

        with ThreadPoolExecutor(AT_A_TIME) as pool:
            return dict(zip(scenes, pool.map(attempt, scenes), strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fleet.crash", description=__doc__)
    parser.add_argument("--points", type=int, default=MOST_POINTS, help=f"effects to try; default {MOST_POINTS}")
    arguments = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as directory:
        broker, postgres = Broker(Path(directory) / "broker"), Postgres()
        broker.start()
        postgres.start()
        try:
            theatre = Theatre(broker, postgres)
            for story in STORIES:
                failed += _try_all(theatre, story, arguments.points)
        finally:
            broker.stop()
            postgres.remove()
    return 1 if failed else 0


def _try_all(theatre: Theatre, story: Story, most: int) -> int:
    """Every point until none is reached any more; how many did not hold."""
    tried = failed = 0
    for number in range(0, most, AT_A_TIME // 2):
        scenes = [(story, Point(number + each, side)) for each in range(AT_A_TIME // 2) for side in SIDES]
        outcomes = theatre.play_all(scenes)
        for (_, point), outcome in outcomes.items():
            if isinstance(outcome, BaseException):
                failed += 1
                print(f"{story}, {point.side} effect {point.number}:", flush=True)
                traceback.print_exception(outcome)
            else:
                tried += outcome.reached
        if not any(isinstance(each, Outcome) and each.reached for each in outcomes.values()) and not failed:
            break
    print(f"{story}: killed at {tried} points, {failed} did not hold", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
