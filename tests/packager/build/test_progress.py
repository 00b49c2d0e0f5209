"""How a build tells how far it is: lines where nobody sees a bar, bars on a terminal."""

from __future__ import annotations

import io
from pathlib import Path

from packager.build.progress import WORD_SECONDS, BarProgress, LineProgress, written_bytes


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_long_stage_says_every_minute_how_far_it_is(tmp_path: Path) -> None:
    said, clock = io.StringIO(), Clock()
    (tmp_path / "before").write_bytes(bytes(5_000_000))
    progress = LineProgress(said, clock)
    progress.stage(2, 6, "building int4 for cpu", tmp_path)
    for second in range(0, 181, 10):
        clock.now = 100.0 + second
        (tmp_path / "growing").write_bytes(bytes(10_000 * second))
        progress.advance(second, 600)
    progress.stage(3, 6, "reading the graph back")
    progress.close()
    assert said.getvalue().splitlines() == [
        "[2/6] building int4 for cpu: 10%, 600.0 kB, 9 min left",
        "[2/6] building int4 for cpu: 20%, 1.2 MB, 8 min left",
        "[2/6] building int4 for cpu: 30%, 1.8 MB, 7 min left",
        "[2/6] building int4 for cpu (180.0 s, 1.8 MB)",
        "[3/6] reading the graph back (0.0 s)",
    ]


def test_a_stage_that_cannot_say_how_much_there_is_guesses_no_time() -> None:
    said, clock = io.StringIO(), Clock()
    progress = LineProgress(said, clock)
    progress.stage(1, 6, "reading the source")
    clock.now += WORD_SECONDS
    progress.advance(0, 0)
    progress.close()
    assert said.getvalue().splitlines() == [
        "[1/6] reading the source: 1 min so far",
        "[1/6] reading the source (60.0 s)",
    ]


def test_what_is_left_of_a_stages_second_piece_of_work_goes_by_its_own_pace() -> None:
    said, clock = io.StringIO(), Clock()
    progress = LineProgress(said, clock)
    progress.stage(3, 7, "building int4 for cpu")
    for share in (0.5, 1.0, 0.05, 0.1, 0.15):
        clock.now += WORD_SECONDS
        progress.advance(share, 1)
    assert said.getvalue().splitlines() == [
        "[3/7] building int4 for cpu: 50%, 1 min left",
        "[3/7] building int4 for cpu: 100%, 0 min left",
        "[3/7] building int4 for cpu: 5%, 3 min so far",
        "[3/7] building int4 for cpu: 10%, 18 min left",
        "[3/7] building int4 for cpu: 15%, 17 min left",
    ]


def test_the_bar_shows_the_bytes_of_its_own_stage(tmp_path: Path) -> None:
    said = io.StringIO()
    progress = BarProgress(said)
    progress.stage(1, 2, "first", tmp_path)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(bytes(3_000_000))
    progress.advance(1, 2)
    progress.stage(2, 2, "second", tmp_path)
    (tmp_path / "deep" / "file").unlink()
    progress.close()
    lines = said.getvalue().splitlines()
    assert any("[1/2] first" in line and "3.0 MB" in line for line in lines)
    assert all("MB" not in line for line in lines if "[2/2] second" in line)


def test_what_vanishes_while_it_is_counted_counts_nothing(tmp_path: Path) -> None:
    assert written_bytes(None) == written_bytes(tmp_path / "missing") == 0
