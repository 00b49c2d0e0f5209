"""A state that cannot be written: read into memory, answers carried over later, everything else refused."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from agent.state import result_store
from agent.state.database import SCHEMA_VERSION, Database
from agent.state.installation import InstallationState, InstalledBundle
from agent.state.layout import StateDirectory
from agent.state.opening import State, open_to_read
from agent.state.result_store import Key
from agent.state.schema import SCHEMA
from contract.errors import StoreBroken, StoreFull
from contract.identifiers import Digest

DIGEST = Digest("a" * 64)

SCRIPT = """
import resource, sys
from pathlib import Path
from agent.state import result_store
from agent.state.result_store import Key
from agent.state.installation import InstallationState
from agent.state.layout import StateDirectory
from agent.state.opening import State
from contract.errors import EdgeBundleError

resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))  # every write to a file fails now
state = State(StateDirectory(Path(sys.argv[1])))
assert state.unwritable is not None
installation = InstallationState(state.installing)
assert installation.snapshot().active == "a" * 64, "committed, and only in the log so far"
assert installation.epoch() == 3
for write in (
    installation.retire_active,
    lambda: installation.raise_clock_floor(9),
    lambda: installation.record_desired(b"x"),
):
    try:
        write()
    except EdgeBundleError:
        pass
    else:
        raise AssertionError("it must not be forgotten, so it must not be taken")
with state.answering.transaction("answers") as connection:
    assert result_store.accept(connection, Key("me", "old"), "f", b"q", now=1.0).last == b"kept"
    assert result_store.accept(connection, Key("me", "new"), "f", b"q", now=1.0).kind == "new"
    result_store.mark_answered(connection, Key("me", "new"), b"said meanwhile", now=2.0)
    result_store.accept(connection, Key("me", "open"), "f", b"q", now=1.0)
    result_store.mark_delivered(connection, Key("me", "old"))
try:
    state.restore()
except EdgeBundleError:
    pass
else:
    raise AssertionError("it cannot be written yet")
assert state.unwritable is not None
with state.answering.transaction("answers") as connection:
    assert result_store.look_up(connection, Key("me", "new")).last == b"said meanwhile"
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
if sys.argv[2] == "restore":
    state.restore()
    assert state.unwritable is None
    installation.record_desired(b"wanted")
state.close()
"""


@pytest.fixture
def directory(tmp_path: Path) -> StateDirectory:
    """What an agent that was killed left behind: everything it committed is in the log."""
    directory = StateDirectory(tmp_path)
    # Without a goodbye, which would empty the log.
    script = "import os, sys\nfrom tests.agent.state.test_opening import fill\nfill(sys.argv[1])\nos._exit(0)\n"
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    assert (tmp_path / "state.db-wal").stat().st_size > 0
    return directory


def fill(place: str) -> None:
    state = State(StateDirectory(Path(place)))
    installation = InstallationState(state.installing)
    installation.add_bundle(InstalledBundle(DIGEST, "n", "1.0.0", 3, 10, 1))
    installation.commit_candidate(DIGEST)
    with state.answering.transaction("answers") as connection:
        result_store.accept(connection, Key("me", "old"), "f", b"q", now=1.0)
        result_store.mark_answered(connection, Key("me", "old"), b"kept", now=1.0)


def run(directory: StateDirectory, what: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(directory.root), what], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_cannot_be_written_is_read_and_answers_are_carried_over(directory: StateDirectory) -> None:
    run(directory, "restore")
    state = State(directory)
    assert state.unwritable is None
    snapshot = InstallationState(state.installing).snapshot()
    assert (snapshot.active, snapshot.epoch, snapshot.desired) == (DIGEST, 3, b"wanted")
    with state.answering.transaction("answers") as connection:
        assert result_store.look_up(connection, Key("me", "new")).last == b"said meanwhile"
        assert result_store.look_up(connection, Key("me", "open")).kind == "running"
        assert [key.id for key, _, _ in result_store.undelivered(connection)] == ["new"]
    state.close()


def test_without_room_until_the_end_nothing_has_changed(directory: StateDirectory) -> None:
    run(directory, "end")
    state = State(directory)
    with state.answering.transaction("answers") as connection:
        assert result_store.look_up(connection, Key("me", "old")).last == b"kept"
        assert result_store.look_up(connection, Key("me", "new")).kind == "refused", "memory alone had it"
    state.close()


def test_a_disk_with_less_room_than_a_request_counts_as_full(
    directory: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 1000
    monkeypatch.setattr("agent.host.facts.disk_available", lambda _path: free)
    state = State(directory)
    assert isinstance(state.unwritable, StoreFull)
    with pytest.raises(StoreFull):
        state.restore()
    free = 1 << 30
    state.restore()
    assert state.unwritable is None
    state.close()


def test_damage_is_no_full_disk(directory: StateDirectory) -> None:
    """What is wrong with the file itself is not hidden behind a copy."""
    (directory.root / "state.db-wal").unlink()
    directory.database.write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreBroken, match="not a database"):
        State(directory)
    with pytest.raises(StoreBroken):
        open_to_read(directory)


def test_a_reader_never_writes_what_it_was_given_in_memory(
    directory: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = StoreBroken("state.db cannot be used: disk I/O error")
    broken.__cause__ = OSError(5, "Input/output error")

    def fail(*_: object) -> None:
        raise broken

    monkeypatch.setattr(Database, "__init__", fail)
    database = open_to_read(directory)
    assert InstallationState(database).snapshot().active == DIGEST
    with pytest.raises(StoreBroken), database.transaction("anything"):
        pass


def test_a_newer_schema_is_refused_from_memory_as_well(directory: StateDirectory) -> None:
    with closing(sqlite3.connect(directory.database)) as connection:
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    with pytest.raises(StoreBroken, match="newer agent"):
        Database.recall(directory.database, SCHEMA, StoreFull("full"))
