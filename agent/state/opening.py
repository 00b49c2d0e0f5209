"""The state of a device whose disk may be full, read-only or broken: then a copy of it in memory, until there is room.

What is active is served from it. Answers are kept in the copy alone, and carried over to the disk once that takes them;
everything that must not be forgotten (what is installed, the floors of trust) is refused instead.
"""

from __future__ import annotations

from agent.host.disk_space import check_free_space, explain
from agent.state import result_store
from agent.state.database import Database, is_unwritable
from agent.state.layout import StateDirectory
from agent.state.schema import SCHEMA
from contract.errors import StoreBroken, StoreFull
from contract.system.durable import Effects


class State:
    """``installing`` for what installation records, ``answering`` for the ledger of answers."""

    def __init__(self, directory: StateDirectory, effects: Effects | None = None) -> None:
        """Raises StoreBroken, StoreFull: it can be read neither from the disk nor into memory."""
        self._directory = directory
        opened: list[Database] = []
        try:
            for _ in range(2):
                opened.append(Database(directory.database, SCHEMA, effects))
            check_free_space(directory.root)
            opened[0].probe()
        except (StoreFull, StoreBroken) as error:
            for database in opened:
                database.close()
            if not is_unwritable(error):
                raise
            self.answering = Database.recall(directory.database, SCHEMA, explain(directory.root, error), effects)
            with self.answering.transaction("track changes") as connection:
                result_store.track_changes(connection)
            self.installing = self.answering.refusing_writes()
        else:
            self.installing, self.answering = opened

    @property
    def unwritable(self) -> StoreFull | StoreBroken | None:
        """Why this is a copy in memory; None when it is the disk."""
        return self.answering.unwritable or self.installing.unwritable

    def restore(self) -> None:
        """Go on with the disk.

        Raises:
            StoreBroken, StoreFull: it cannot be written yet; what is in memory stays there.
        """
        check_free_space(self._directory.root)
        self.installing.restore()
        self.answering.restore(result_store.carry_over)

    def close(self) -> None:
        self.installing.close()
        self.answering.close()


def open_to_read(directory: StateDirectory) -> Database:
    """The state for somebody who only looks: also where the disk cannot be written.

    Raises:
        StoreBroken, StoreFull.
    """
    try:
        return Database(directory.database, SCHEMA)
    except (StoreFull, StoreBroken) as error:
        if not is_unwritable(error):
            raise
        return Database.recall(directory.database, SCHEMA, explain(directory.root, error)).refusing_writes()
