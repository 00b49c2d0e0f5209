"""Controllers in processes of their own; one of them is killed at a point."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection as Pipe
from multiprocessing.context import ForkServerProcess
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, event

from edge_bundle.broker import parse_broker
from edge_bundle.broker_session import BrokerSession
from fleet.service import Role, Service
from fleet.store.database import Database, parse_database

Side = Literal["before", "after"]

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload([__name__])


class Point(NamedTuple):
    """Where a controller dies: before or after its effect ``number``."""

    number: int
    side: Side


class Place(NamedTuple):
    """What a controller is given."""

    database: str
    broker: str
    root: str


class Plug:
    """Pulled at ``point``, by the kernel; effects are counted from 0."""

    def __init__(self, point: Point | None) -> None:
        self._count = -1
        self._point = point

    @contextmanager
    def effect(self) -> Iterator[None]:
        """Around what cannot be taken back."""
        self._count += 1
        self.pull("before")
        yield
        self.pull("after")

    def pull(self, side: Side) -> None:
        if self._point == (self._count, side):
            os.kill(os.getpid(), signal.SIGKILL)


def live(place: Place, roles: tuple[Role, ...], point: Point | None, pipe: Pipe) -> None:
    """A controller's life, in its own process: says when it is the leader, and ends when it is told to."""
    database = Database(parse_database(place.database))
    service = Service(database, parse_broker(place.broker), place.root, roles, settle=0.2)
    plug = Plug(point)
    write = database.write

    @event.listens_for(database.engine, "commit")
    def commits(connection: Connection) -> None:
        # Everything was said to the database, but for this word.
        if connection.get_execution_options().get("edge_fleet_writes"):
            plug._count += 1
            plug.pull("before")

    @contextmanager
    def written() -> Iterator[Connection]:
        with write() as connection:
            yield connection
        if service._leader.held:
            pipe.send(True)
        plug.pull("after")

    database.write = written  # type: ignore[method-assign]
    publish = BrokerSession.publish

    def published(self: BrokerSession, *arguments: Any, **settings: Any) -> None:
        with plug.effect():
            publish(self, *arguments, **settings)

    BrokerSession.publish = published  # type: ignore[method-assign]
    threading.Thread(target=lambda: (pipe.poll(None), service.stop()), daemon=True).start()
    service.run()
    database.close()


class Controller:
    """One that runs, from :meth:`start` to :meth:`end`."""

    def __init__(self, place: Place, roles: tuple[Role, ...], point: Point | None = None) -> None:
        # Nothing that is shared: who is killed would leave it locked.
        self._pipe, self._theirs = _forks.Pipe()
        self._process: ForkServerProcess = _forks.Process(
            target=live, args=(place, roles, point, self._theirs), daemon=True
        )

    def start(self) -> None:
        self._process.start()
        self._theirs.close()

    @property
    def leads(self) -> bool:
        """Whether it has ever been the leader."""
        return self._pipe.poll()

    @property
    def killed(self) -> bool:
        """Whether it has died at its point."""
        return self._process.exitcode == -signal.SIGKILL

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def kill(self) -> None:
        """As the kernel does it."""
        self._process.kill()

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def end(self) -> None:
        """Let it end, if it has not; a fault of its own is one of the test."""
        with contextlib.suppress(OSError):
            self._pipe.send(True)
        self._process.join(60)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
            raise AssertionError("a controller does not end")
        assert self._process.exitcode in (0, -signal.SIGKILL), self._process.exitcode
