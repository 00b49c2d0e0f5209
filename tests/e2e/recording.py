"""Records ``make demo`` in a terminal and draws it as an animated SVG: ``make recording``.

``python -m tests.e2e.recording [--cast FILE] [--svg FILE]`` runs the demo and writes both (the cast in asciinema's
format, version 2). With ``--from FILE`` nothing is run, and the picture is drawn from a cast that is there.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

from msgspec import Struct

from tests.e2e.terminal_svg import render

ROOT = Path(__file__).resolve().parents[2]
SVG = ROOT / "docs" / "demo.svg"
CAST = ROOT / "build" / "demo.cast"

COMMAND = ("make", "--no-print-directory", "demo")
COLUMNS, ROWS = 112, 30


class Output(Struct, frozen=True, array_like=True):
    """What a program wrote, ``seconds`` after its start."""

    seconds: float
    text: str


def record(command: tuple[str, ...], columns: int = COLUMNS, rows: int = ROWS) -> tuple[int, list[Output]]:
    """Run ``command`` in a terminal of its own; its exit status and all that it wrote, with the times."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": str(rows)}
    started = time.monotonic()
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=environment, start_new_session=True
    ) as process:
        os.close(theirs)
        outputs, rest = [], b""
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # EIO: the last one that held the other end is gone
                break
            if not data:
                break
            text, rest = _decode(rest + data)
            outputs.append(Output(round(time.monotonic() - started, 3), text))
    os.close(ours)
    return process.returncode, outputs


def _decode(data: bytes) -> tuple[str, bytes]:
    """Text, and the bytes of a character that has not arrived whole."""
    for tail in range(min(4, len(data) + 1)):
        try:
            return data[: len(data) - tail].decode(), data[len(data) - tail :]
        except UnicodeDecodeError:
            continue
    return data.decode("utf-8", "replace"), b""


def write_cast(path: Path, outputs: list[Output], columns: int = COLUMNS, rows: int = ROWS) -> None:
    """https://docs.asciinema.org/manual/asciicast/v2/"""
    lines = [json.dumps({"version": 2, "width": columns, "height": rows, "command": "make demo"})]
    lines += [json.dumps([each.seconds, "o", each.text]) for each in outputs]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_cast(path: Path) -> list[Output]:
    events = [json.loads(line) for line in path.read_text("utf-8").splitlines()[1:]]
    return [Output(seconds, text) for seconds, kind, text in events if kind == "o"]


def main(arguments: list[str]) -> int:
    """Exit status of the demo; nothing is drawn of one that failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.recording")
    parser.add_argument("--cast", type=Path, default=CAST, help="where the recording goes")
    parser.add_argument("--svg", type=Path, default=SVG, help="where the picture goes")
    parser.add_argument("--from", type=Path, dest="source", help="draw this cast, and run nothing")
    options = parser.parse_args(arguments)
    if options.source is not None:
        outputs = read_cast(options.source)
    else:
        status, outputs = record(COMMAND)
        sys.stdout.write("".join(each.text for each in outputs))
        write_cast(options.cast, outputs)
        if status != 0:
            print(f"the demo ended with {status}: nothing was drawn", file=sys.stderr)
            return status
    picture = render([(each.seconds, each.text) for each in outputs], COLUMNS, ROWS, prompt="make demo")
    options.svg.write_text(picture, encoding="utf-8")
    print(f"{options.svg}: {len(picture.encode()) / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
