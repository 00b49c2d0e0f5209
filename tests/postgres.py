"""A PostgreSQL of our own on loopback, from Debian's package, run by a user who is not root."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.broker import free_port

USER = "postgres"
PLACES = "/usr/lib/postgresql/*/bin"


def find_postgres() -> Path | None:
    """The directory of the newest server's programs; Debian keeps them out of everybody's PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: path.parts[4])
    return found[-1].parent if found else None


class Postgres:
    """A server in a directory of its own; ``stop`` and ``start`` again keep port and data."""

    def __init__(self) -> None:
        programs = find_postgres()
        assert programs is not None, "PostgreSQL is not installed"
        self._programs = programs
        self._as_user = USER if os.geteuid() == 0 else None
        self._name = USER if self._as_user else pwd.getpwuid(os.geteuid()).pw_name
        # Not below pytest's directories: those are closed to everybody else.
        self.directory = Path(tempfile.mkdtemp(prefix="edge-postgres-"))
        if self._as_user:
            shutil.chown(self.directory, USER, USER)
        self.port = free_port()
        self._run(
            "initdb", "-D", self._data, "-U", "fleet", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"
        )

    @property
    def _data(self) -> str:
        return str(self.directory / "data")

    def _run(self, program: str, *arguments: str) -> None:
        with (self.directory / f"{program}.log").open("ab") if not self._as_user else open(os.devnull, "wb") as log:
            subprocess.run(
                [str(self._programs / program), *arguments], user=self._as_user, cwd=self.directory,
                check=True, stdout=log, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        log = str(self.directory / "server.log")
        self._run("pg_ctl", "-D", self._data, "-w", "-l", log, "-o", options, "start")

    def stop(self) -> None:
        """At once; connections break."""
        self._run("pg_ctl", "-D", self._data, "-w", "-m", "immediate", "stop")

    def create(self, name: str) -> str:
        """A database of its own; its URL."""
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "fleet", name)
        return f"postgresql://fleet@127.0.0.1:{self.port}/{name}"

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)
