"""Opens the database, and says in our errors what is wrong with it. Transactions are short, and whole or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnDefault, Connection, Engine, create_engine, event, inspect, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, SQLAlchemyError

from contract.errors import (
    ConfigInvalid,
    EdgeBundleError,
    RequestInvalid,
    SourceUnavailable,
    StoreBroken,
    StoreFull,
    UsageError,
)
from contract.reasons import Reason
from fleet.store.schema import METADATA, VERSION, device, schema_version

BUSY_SECONDS = 30.0
"""How long one SQLite writer waits for another; transactions take milliseconds."""

CONNECT_SECONDS = 10
STATEMENT_MILLISECONDS = 60_000
"""A statement that takes longer has lost its database."""

OLDER = range(1, VERSION)
"""Versions to which only something has to be added."""

Transaction = Connection
"""What is read and changed together."""

FORM = "write the database as sqlite:///fleet.db or postgresql://user@host/database"

_WRITES = "edge_fleet_writes"


def parse_database(text: str) -> URL:
    """A database's URL.

    Raises:
        UsageError: it is none that can be used; the message has no password.
    """
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise UsageError(FORM) from error
    if url.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg")
    if url.drivername == "sqlite" and url.database and url.database != ":memory:":
        return url
    raise UsageError(FORM)


class Database:
    """One database with its connections; ``name`` is for people and has no password.

    Raises:
        StoreBroken, StoreFull, SourceUnavailable: from every method, and from what is done within a transaction.
    """

    def __init__(self, url: URL) -> None:
        self.url = url
        self.name = url.render_as_string(hide_password=True).replace("+psycopg", "")
        self.is_sqlite = url.drivername == "sqlite"
        self.engine = _make_engine(url)

    @property
    def file(self) -> Path | None:
        """Where SQLite keeps it."""
        return Path(str(self.url.database)) if self.is_sqlite else None

    def create(self) -> bool:
        """Make what is missing; False if it was all there.

        Raises:
            ConfigInvalid: it is of another version of this program, or somebody else's.
        """
        with self.write() as connection:
            if not self.is_sqlite:
                # Two that begin at once.
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7218310934)")
            present = set(inspect(connection).get_table_names())
            if "schema_version" in present:
                if (connection.execute(select(schema_version.c.version)).scalar() or 0) in OLDER:
                    METADATA.create_all(connection)
                    _add_columns(connection)
                    connection.execute(schema_version.update().values(version=VERSION))
                self._check(connection)
                return False
            if strange := present & set(METADATA.tables):
                raise ConfigInvalid(
                    f"{self.name} has a table {min(strange)!r} that is not ours: name another database",
                    field="database",
                )
            METADATA.create_all(connection)
            connection.execute(schema_version.insert().values(version=VERSION))
        return True

    def check(self) -> None:
        """See that it is there and of our version.

        Raises:
            ConfigInvalid: it is not.
        """
        if self.file is not None and not self.file.exists():
            raise ConfigInvalid(f"there is no database {self.name}: `edge-fleet init` makes it", field="database")
        with self.read() as connection:
            if not inspect(connection).has_table("schema_version"):
                raise ConfigInvalid(f"{self.name} is empty: `edge-fleet init` makes its tables", field="database")
            self._check(connection)

    def _check(self, connection: Connection) -> None:
        found = connection.execute(select(schema_version.c.version)).scalar()
        if found != VERSION:
            hint = ": `edge-fleet init` adds what is missing" if found in OLDER else ""
            raise ConfigInvalid(
                f"{self.name} has version {found} of the tables, this program needs {VERSION}{hint}", field="database"
            )

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is committed at the end, unless something was raised."""
        with self._transaction({_WRITES: True}) as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only looks: one state of everything."""
        with self._transaction({}) as connection:
            yield connection

    @contextmanager
    def _transaction(self, options: dict[str, Any]) -> Iterator[Connection]:
        try:
            with self.engine.connect().execution_options(**options) as connection, connection.begin():
                yield connection
        except SQLAlchemyError as error:
            raise self.explain(error) from error
        except OverflowError as error:
            # SQLite's own: a number that has more than 64 bits.
            raise _not_storable(error) from error

    def explain(self, error: SQLAlchemyError) -> EdgeBundleError:
        """``error`` as one of ours."""
        cause = error.orig if isinstance(error, DBAPIError) else error
        text = " ".join(str(cause).split())
        if isinstance(error, DataError):
            return _not_storable(cause)
        if isinstance(error, IntegrityError):
            return StoreBroken(
                f"the database {self.name} refuses what contradicts it: {text}", reason=Reason.STORED_DATA_INVALID
            )
        if not self.is_sqlite:
            return SourceUnavailable(f"the database {self.name} cannot be used: {text}")
        if "full" in text:
            return StoreFull(f"there is no room for the database {self.name}: {text}")
        return StoreBroken(f"the database {self.name} cannot be used: {text}")

    def close(self) -> None:
        self.engine.dispose()


def _not_storable(why: BaseException | None) -> RequestInvalid:
    """What was asked for holds a value that no row can have: a zero byte, or a number beyond all columns."""
    return RequestInvalid(f"no record can hold what was given: {' '.join(str(why).split())}")


def _add_columns(connection: Connection) -> None:
    """Of the registry, that came later; they fill when the broker says again what it retains."""
    present = {each["name"] for each in inspect(connection).get_columns(device.name)}
    prepare = connection.dialect.identifier_preparer
    for column in device.columns:
        if column.name in present:
            continue
        kind = column.type.compile(connection.dialect)
        default = f" NOT NULL DEFAULT '{column.default.arg}'" if isinstance(column.default, ColumnDefault) else ""
        connection.exec_driver_sql(
            f"ALTER TABLE {device.name} ADD COLUMN {prepare.format_column(column)} {kind}{default}"
        )


def _make_engine(url: URL) -> Engine:
    if url.drivername != "sqlite":
        options = f"-c statement_timeout={STATEMENT_MILLISECONDS} -c lock_timeout={STATEMENT_MILLISECONDS}"
        arguments = {"connect_timeout": CONNECT_SECONDS, "options": options, "application_name": "edge-fleet"}
        return create_engine(url, connect_args=arguments, pool_pre_ping=True, isolation_level="READ COMMITTED")
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        # Transactions begin where we say so, below.
        connection.isolation_level = None
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that reads first and writes then could not get the lock any more: it takes it at once.
        writes = connection.get_execution_options().get(_WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
