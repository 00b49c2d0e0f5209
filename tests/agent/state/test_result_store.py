"""The ledger: one result for each request, kept as long as promised, and remembered longer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.state import result_store, result_writer
from agent.state.database import Database
from agent.state.result_store import KEEP_SECONDS, KEEP_TOMBSTONES_SECONDS, Key, Verdict
from agent.state.result_writer import ResultWriter
from agent.state.schema import SCHEMA
from contract.errors import StoreBroken

KEY = Key("c", "one")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "state.db", SCHEMA)
    yield opened
    opened.close()


def accept(database: Database, key: Key = KEY, fingerprint: str = "f", now: float = 0.0, **options: bool) -> Verdict:
    with database.transaction("test") as connection:
        return result_store.accept(connection, key, fingerprint, b"request", now=now, **options)  # type: ignore[arg-type]


def answer(database: Database, last: bytes, now: float = 0.0, key: Key = KEY) -> bytes:
    with database.transaction("test") as connection:
        return result_store.mark_answered(connection, key, last, now=now)


def test_life_of_a_request(database: Database) -> None:
    assert accept(database).kind == "new"
    assert accept(database).kind == "running"
    assert answer(database, b"last") == b"last"
    assert accept(database) == Verdict("answered", b"last")
    assert accept(database, fingerprint="other").kind == "conflict"


def test_same_id_of_another_client_is_another_request(database: Database) -> None:
    accept(database)
    assert accept(database, Key("d", "one")).kind == "new"


def test_first_stored_answer_counts(database: Database) -> None:
    accept(database)
    answer(database, b"first")
    assert answer(database, b"second") == b"first"


def test_no_room_turns_away_new_ones_only(database: Database) -> None:
    assert accept(database, may_insert=False).kind == "refused"
    accept(database)
    assert accept(database, may_insert=False).kind == "running"


def test_old_answers_are_gone_and_much_older_ones_forgotten(database: Database) -> None:
    accept(database)
    answer(database, b"last", now=0.0)
    with database.transaction("test") as connection:
        assert result_store.expire(connection, now=KEEP_SECONDS - 1) == 0
        assert result_store.expire(connection, now=KEEP_SECONDS) == 1
    assert accept(database).kind == "gone"
    stored = database.query("SELECT request, last FROM answers")[0]
    assert (stored["request"], stored["last"]) == (None, None)
    with database.transaction("test") as connection:
        result_store.expire(connection, now=KEEP_SECONDS + KEEP_TOMBSTONES_SECONDS - 1)
    assert accept(database).kind == "gone"
    with database.transaction("test") as connection:
        result_store.expire(connection, now=KEEP_SECONDS + KEEP_TOMBSTONES_SECONDS)
    assert accept(database).kind == "new"


def test_a_clock_that_was_set_forward_by_years_frees_no_id_at_once(database: Database) -> None:
    accept(database)
    answer(database, b"last", now=0.0)
    years = 55 * 365 * 86400.0
    for later in (0.0, 30.0, KEEP_TOMBSTONES_SECONDS - 1.0):
        with database.transaction("test") as connection:
            result_store.expire(connection, now=years + later)
        assert accept(database).kind == "gone"
    with database.transaction("test") as connection:
        result_store.expire(connection, now=years + KEEP_TOMBSTONES_SECONDS)
    assert accept(database).kind == "new"


def test_budget_keeps_the_newest(database: Database) -> None:
    for number in range(5):
        key = Key("c", str(number))
        accept(database, key)
        answer(database, b"x" * 10, now=float(number), key=key)
    with database.transaction("test") as connection:
        assert result_store.expire(connection, now=5.0, keep_bytes=25) == 3
    kinds = [accept(database, Key("c", str(number))).kind for number in range(5)]
    assert kinds == ["gone", "gone", "gone", "answered", "answered"]


def test_turned_away_is_told_and_asked_again_is_new(database: Database) -> None:
    accept(database)
    with database.transaction("test") as connection:
        result_store.mark_rejected(connection, KEY, b"again later", now=0.0)
        assert result_store.undelivered(connection) == [(KEY, b"again later", None)]
        assert result_store.unfinished(connection) == []
        assert result_store.look_up(connection, KEY).last == b"again later"
    assert accept(database, may_insert=False).kind == "refused"
    assert accept(database, fingerprint="other").kind == "new"
    with database.transaction("test") as connection:
        # The broker acknowledges what turned it away only now.
        result_store.mark_delivered(connection, KEY)
    answer(database, b"last")
    with database.transaction("test") as connection:
        assert result_store.undelivered(connection) == [(KEY, b"last", None)]
    assert accept(database, fingerprint="other") == Verdict("answered", b"last")


def test_turned_away_is_forgotten_like_an_answer_and_keeps_no_prompt(database: Database) -> None:
    accept(database)
    with database.transaction("test") as connection:
        result_store.mark_rejected(connection, KEY, b"again later", now=0.0)
    assert database.query("SELECT request FROM answers")[0]["request"] is None
    with database.transaction("test") as connection:
        result_store.expire(connection, now=KEEP_SECONDS)
    assert database.query("SELECT COUNT(*) FROM answers")[0][0] == 0


def test_unfinished_requests_come_back_with_what_is_known_of_them(database: Database) -> None:
    accept(database, Key("c", "silent"), now=1.0)
    accept(database, Key("c", "streamed"), now=2.0)
    accept(database, Key("c", "done"), now=3.0)
    with database.transaction("test") as connection:
        result_store.mark_streaming(connection, Key("c", "streamed"), 1)
        result_store.mark_answered(connection, Key("c", "done"), b"last", now=4.0)
    with database.transaction("test") as connection:
        left = result_store.unfinished(connection)
    assert [(one.key.id, one.streamed, one.attempt) for one in left] == [("silent", False, 2), ("streamed", True, 2)]
    assert left[0].request == b"request"


def test_undelivered_answers_are_known(database: Database) -> None:
    accept(database)
    answer(database, b"last")
    with database.transaction("test") as connection:
        assert result_store.undelivered(connection) == [(KEY, b"last", None)]
        result_store.mark_delivered(connection, KEY)
        assert result_store.undelivered(connection) == []


def test_writer_groups_commits_and_keeps_their_order(tmp_path: Path) -> None:
    commits: list[str] = []

    class Counting(Database):
        def transaction(self, name: str):  # type: ignore[no-untyped-def]
            commits.append(name)
            return super().transaction(name)

    async def scenario() -> tuple[list[Verdict], bytes]:
        database = Counting(tmp_path / "state.db", SCHEMA)
        commits.clear()
        writer = ResultWriter(database)
        verdicts = await asyncio.gather(
            *(
                writer.accept(
                    Key("c", str(number % 100)), "f", b"", deadline_at=None, correlation=None, may_insert=True
                )
                for number in range(200)
            )
        )
        stored = await writer.answered(Key("c", "0"), b"last")
        writer.delivered(Key("c", "0"))
        await writer.close()
        database.close()
        return verdicts, stored

    verdicts, stored = asyncio.run(scenario())
    assert [verdict.kind for verdict in verdicts] == ["new"] * 100 + ["running"] * 100
    assert stored == b"last"
    assert len(commits) < 50
    reopened = Database(tmp_path / "state.db", SCHEMA)
    assert reopened.query("SELECT delivered FROM answers WHERE id = '0'")[0][0] == 1
    reopened.close()


def test_answer_that_the_disk_does_not_take_is_held_until_it_does(database: Database, tmp_path: Path) -> None:
    async def ask(writer: ResultWriter, name: str) -> Verdict:
        return await writer.accept(Key("c", name), "f", b"request", deadline_at=None, correlation=None, may_insert=True)

    async def scenario() -> tuple[bytes, Verdict]:
        writer = ResultWriter(database)
        await ask(writer, "one")
        await ask(writer, "two")
        database.query("PRAGMA query_only = 1")
        held = [writer.answered(Key("c", name), b"last") for name in ("one", "two")]
        with pytest.raises(StoreBroken):
            await ask(writer, "three")
        with pytest.raises(StoreBroken):
            await writer.flush()
        assert writer.holding == 2
        assert not any(future.done() for future in held)
        database.query("PRAGMA query_only = 0")
        stored = await held[0]
        assert writer.holding == 0
        again = await ask(writer, "two")
        await writer.close()
        return stored, again

    stored, again = asyncio.run(scenario())
    assert stored == b"last"
    assert again == Verdict("answered", b"last")


def test_what_was_held_to_the_end_is_unfinished_afterwards(database: Database) -> None:
    async def scenario() -> bool:
        writer = ResultWriter(database)
        await writer.accept(KEY, "f", b"request", deadline_at=None, correlation=None, may_insert=True)
        database.query("PRAGMA query_only = 1")
        held = writer.answered(KEY, b"last")
        await writer.close()
        await asyncio.sleep(0)
        return held.done()

    assert not asyncio.run(scenario())
    database.query("PRAGMA query_only = 0")
    with database.transaction("test") as connection:
        assert [left.key for left in result_store.unfinished(connection)] == [KEY]


def test_deleted_texts_leave_the_disk_and_their_room_goes_back(database: Database, tmp_path: Path) -> None:
    def on_disk() -> bytes:
        return b"".join(path.read_bytes() for path in sorted(tmp_path.iterdir()))

    for number in range(40):
        key = Key("c", str(number))
        with database.transaction("test") as connection:
            result_store.accept(connection, key, "f", b"a private prompt" * 4096, now=0.0)
            result_store.mark_answered(connection, key, b"a private answer" * 4096, now=0.0)
    full = len(on_disk())
    assert b"private" in on_disk()
    with database.transaction("test") as connection:
        result_store.expire(connection, now=2.0 * KEEP_SECONDS)
    database.tidy()
    assert b"private" not in on_disk()
    assert len(on_disk()) < full / 10


def test_the_ledger_tidies_up_after_itself(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_writer, "SWEEP_SECONDS", 0.01)
    now = 0.0

    async def live() -> None:
        nonlocal now
        writer = ResultWriter(database, lambda: now)
        await writer.accept(KEY, "f", b"a private prompt", deadline_at=None, correlation=None, may_insert=True)
        await writer.answered(KEY, b"a private answer")
        now = 2.0 * KEEP_SECONDS
        while any(b"private" in path.read_bytes() for path in tmp_path.iterdir()):
            await asyncio.sleep(0.01)
        await writer.close()

    asyncio.run(asyncio.wait_for(live(), 120))
    assert answers_left(database) == [("one", None)]


def answers_left(database: Database) -> list[tuple[str, bytes | None]]:
    return [(row["id"], row["last"]) for row in database.query("SELECT id, last FROM answers")]
