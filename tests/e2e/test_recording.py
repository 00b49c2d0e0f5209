"""The recording of the demo: what a terminal shows, when, and the picture that README has of it."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path

from tests.e2e.recording import SVG, Output, read_cast, record, write_cast
from tests.e2e.terminal_svg import LEAST_BETWEEN, LONGEST_WAIT, Terminal, draw, film

LARGEST_BYTES = 300_000
"""Of a picture that a page loads at once."""


def shown(*texts: str, columns: int = 20) -> list[str]:
    terminal = Terminal(columns)
    for text in texts:
        terminal.feed(text)
    return ["".join(cell[0] for cell in line) for line in terminal.lines]


def test_terminal_does_what_programs_ask_of_it() -> None:
    assert shown("one\r\ntwo") == ["one", "two"]
    assert shown("12345678901234567890wrapped") == ["12345678901234567890", "wrapped"]
    assert shown("half done", "\r\x1b[2Kdone") == ["done"]
    assert shown("first\r\nsecond\x1b[1A\rF") == ["First", "second"]
    assert shown("abcdef\x1b[3D\x1b[K") == ["abc"]
    assert shown("\x1b[?25l\x1b[1;38;5;70mgreen\x1b[0m\x1b]0;title\x07") == ["green"]


def test_waits_are_shortened_and_bars_thinned() -> None:
    bar = [(1 + 0.01 * number, f"\rstep {number:3}") for number in range(100)]
    made = film([*bar, (500.0, "\r\nend")], 20, 5, prompt="go")
    assert made.seconds < 20
    begins = [version.begin for version in made.lines[1]]
    assert 1 < len(begins) < 10
    assert all(after - before >= LEAST_BETWEEN for before, after in pairwise(begins[:-1]))
    assert made.lines[2][0].begin - begins[0] <= LONGEST_WAIT + 1
    assert made.screen_at(made.seconds, 5) == ["$ go", "step  99", "end"]


def test_line_that_is_drawn_again_does_not_vanish_meanwhile() -> None:
    made = film([(1.0, "\r\x1b[2Kone"), (2.0, "\r\x1b[2K"), (2.01, "two"), (3.0, "\r\nend")], 20, 5, prompt="go")
    assert ["".join(cell[0] for cell in version.cells) for version in made.lines[1]] == ["one", "two"]


def test_screen_follows_the_last_line() -> None:
    made = film([(0.1 * number, f"line {number}\r\n") for number in range(30)], 20, 5, prompt="")
    assert made.screen_at(made.seconds, 5) == ["line 26", "line 27", "line 28", "line 29"]


def test_picture_is_one_document_with_what_was_written() -> None:
    picture = draw(film([(0.0, "a < b & \x1b[1mc\x1b[0m\r\n")], 20, 3, prompt="p"), 20, 3)
    texts = [element.text for element in ElementTree.fromstring(picture).iter() if element.tag.endswith("tspan")]
    assert texts[-2:] == ["a < b &", "c"]
    assert "<script" not in picture and "http" not in picture.replace("http://www.w3.org/2000/svg", "")


def test_what_runs_in_a_terminal_is_recorded(tmp_path: Path) -> None:
    program = "import sys; print(sys.stdout.isatty(), 'é'); sys.exit(3)"
    status, outputs = record((sys.executable, "-c", program), columns=40, rows=5)
    assert (status, "".join(each.text for each in outputs)) == (3, "True é\r\n")
    assert all(isinstance(each, Output) for each in outputs)
    write_cast(tmp_path / "cast", outputs)
    assert read_cast(tmp_path / "cast") == outputs


def test_picture_in_the_readme_is_a_recording_of_the_whole_demo() -> None:
    text = SVG.read_text("utf-8")
    assert len(text.encode()) < LARGEST_BYTES
    written = " ".join(
        "".join(element.itertext()) for element in ElementTree.fromstring(text).iter() if "text" in element.tag
    )
    for number in range(1, 7):
        assert re.search(rf"\b{number}\. [A-Z]", written), f"chapter {number} is not there"
    assert (
        "make demo" in written and "Paris" in written and "digest_mismatch" in written and "All of it held" in written
    )
