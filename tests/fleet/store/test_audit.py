"""The audit log: whole, in order, and not to be rewritten."""

from __future__ import annotations

import pytest

from contract.errors import EdgeBundleError, StoreBroken
from fleet.store import audit
from fleet.store.database import Database


def fill(database: Database) -> None:
    for number in range(4):
        with database.write() as connection:
            audit.record(
                connection, at=float(number), actor="ann", action="rollout.pause", subject=f"rollout {number}",
                detail={"why": "näh\x1b"},
            )  # fmt: skip


def test_lines_are_kept_in_order_and_verify(database: Database) -> None:
    fill(database)
    with database.read() as connection:
        assert audit.verify(connection) == 4
        assert [each.id for each in audit.entries(connection, limit=2)] == [3, 4]
        assert audit.entries(connection, subject="rollout 1")[0].detail == {"why": "näh\x1b"}


@pytest.mark.parametrize("statement", ["UPDATE audit SET actor = 'eve' WHERE id = 2", "DELETE FROM audit WHERE id = 2"])
def test_the_database_itself_refuses_changes(database: Database, statement: str) -> None:
    fill(database)
    with pytest.raises(EdgeBundleError, match="append-only"), database.write() as connection:
        connection.exec_driver_sql(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET actor = 'eve' WHERE id = 2",
        "DELETE FROM audit WHERE id = 2",
        "UPDATE audit SET id = 9 WHERE id = 4",
    ],
)
def test_whoever_gets_around_that_is_found(database: Database, statement: str) -> None:
    fill(database)
    with database.write() as connection:
        if database.is_sqlite:
            connection.exec_driver_sql("DROP TRIGGER audit_no_update")
            connection.exec_driver_sql("DROP TRIGGER audit_no_delete")
        else:
            connection.exec_driver_sql("ALTER TABLE audit DISABLE TRIGGER USER")
        connection.exec_driver_sql(statement)
    with pytest.raises(StoreBroken, match="not as it was written"), database.read() as connection:
        audit.verify(connection)
