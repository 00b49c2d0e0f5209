"""The log: fields in the journal's protocol, one line elsewhere, floods cut, private words apart."""

from __future__ import annotations

import io
import logging
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.systemd.journal import (
    BURST,
    MAX_KINDS,
    MAX_VALUE_BYTES,
    PER_SECOND,
    JournalHandler,
    LineFormatter,
    RateLimit,
    fields,
    listens,
    sentence,
)

PAIR = r'(\w+)=("(?:[^"\\]|\\.)*"|[^" ]+)'
"""Of logfmt."""


def record(text: str = "said", *values: object, level: int = logging.INFO, **extra: object) -> logging.LogRecord:
    found = logging.LogRecord("edge_agent.serving", level, __file__, 1, text, values, None)
    found.__dict__.update(fields(**extra) if "private" not in extra else extra)  # type: ignore[arg-type]
    return found


def parse(datagram: bytes) -> dict[str, str]:
    """The native protocol, as its page describes it."""
    found = {}
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if equals:
            datagram = rest
        else:
            size = int.from_bytes(rest[:8], "little")
            value, datagram = rest[8 : 8 + size], rest[8 + size :]
            assert datagram[:1] == b"\n"
            datagram = datagram[1:]
        found[name.decode()] = value.decode()
    return found


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(tmp_path / "journal"))
    listener.settimeout(10)
    yield listener
    listener.close()


def test_a_record_reaches_the_journal_as_fields(journal: socket.socket, tmp_path: Path) -> None:
    handler = JournalHandler(tmp_path / "journal")
    handler.handle(record("request ended", level=logging.WARNING, request="q1", client="me", bundle=None))
    found = parse(journal.recv(1 << 16))
    assert found == {
        "MESSAGE": "request ended request=q1 client=me",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "edge-agent",
        "EDGE_COMPONENT": "serving",
        "EDGE_REQUEST": "q1",
        "EDGE_CLIENT": "me",
    }
    handler.close()


def test_a_traceback_is_one_entry(journal: socket.socket, tmp_path: Path) -> None:
    handler = JournalHandler(tmp_path / "journal")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        found = record("it broke", level=logging.ERROR)
        found.exc_info = sys.exc_info()
    handler.handle(found)
    assert parse(journal.recv(1 << 16))["MESSAGE"].endswith("ValueError: two\nlines")
    handler.close()


def test_private_words_stay_out_of_the_message_and_of_what_the_journal_did_not_take(tmp_path: Path) -> None:
    said = logging.LogRecord("edge_agent", logging.INFO, __file__, 1, "request ended", (), None)
    said.__dict__.update(fields({"prompt": "my secret"}, request="q1"))
    assert "secret" not in sentence(said)
    lines = io.StringIO()
    handler = JournalHandler(tmp_path / "nobody", lines)
    datagram = parse(handler.datagram(said))
    assert datagram["EDGE_PROMPT"] == "my secret"
    assert "secret" not in datagram["MESSAGE"]
    handler.handle(said)
    assert "request=q1" in lines.getvalue()
    assert "secret" not in lines.getvalue()
    handler.close()


@settings(max_examples=50, deadline=None)
@given(st.text(), st.text())
def test_any_text_makes_one_line_and_one_readable_datagram(text: str, value: str) -> None:
    made = record("%s", text, request=value)
    line = LineFormatter().format(made)
    assert line.isprintable()
    pairs = re.findall(PAIR, line)
    assert re.fullmatch(rf"{PAIR}( {PAIR})*", line)
    assert [name for name, _ in pairs] == ["time", "level", "component", "msg", "request"]
    handler = JournalHandler(Path("/nonexistent"), io.StringIO())
    found = parse(handler.datagram(made))
    assert set(found) == {"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "EDGE_COMPONENT", "EDGE_REQUEST"}
    assert len(found["EDGE_REQUEST"].encode()) <= MAX_VALUE_BYTES + 3
    handler.close()


def test_a_flood_is_cut_and_counted_and_leaves_other_kinds_alone() -> None:
    now = 0.0
    limit = RateLimit(lambda: now)
    passed = sum(limit.filter(record("again %s", number)) for number in range(1000))
    assert passed == BURST
    assert limit.filter(record("something else"))
    now += 1.0
    later = record("again %s", 1001)
    assert limit.filter(later)
    assert later.edge_fields["suppressed"] == str(1000 - int(BURST))
    passed = sum(limit.filter(record("again %s", number)) for number in range(1000))
    assert passed == PER_SECOND - 1


def test_kinds_without_end_do_not_fill_the_memory() -> None:
    limit = RateLimit(lambda: 0.0)
    for number in range(2 * MAX_KINDS):
        limit.filter(record(f"kind {number}"))
    assert len(limit._kinds) <= MAX_KINDS


def test_the_journal_is_used_where_stderr_goes_there(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        facts = os.fstat(file.fileno())
        assert listens({"JOURNAL_STREAM": f"{facts.st_dev}:{facts.st_ino}"}, file.fileno())
        assert not listens({"JOURNAL_STREAM": "1:2"}, file.fileno())
        assert not listens({}, file.fileno())
