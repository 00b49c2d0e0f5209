"""A worker that systemd started because we connected to its socket: another account's process, seen through a socket.

It cannot be signalled from here. Closing the connection ends it, since a worker looks at its line between two steps;
one that hangs and does not is ended by its unit's watchdog.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

from contract.errors import EngineFailed

CONNECT_SECONDS = 10.0
"""systemd accepts at once; it may be busy reloading its units."""


class ActivatedProcess:
    """Stands where a child process would stand. ``pid`` is 0: the kernel names who listens, which
    is systemd; the worker itself says who it is.
    """

    pid = 0

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        # What it has to say goes to the journal.
        self.stderr = asyncio.StreamReader()
        self.stderr.feed_eof()

    @classmethod
    async def connect(cls, path: Path) -> ActivatedProcess:
        """Connect to the socket of the worker unit.

        Raises:
            EngineFailed: nobody listens there.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await asyncio.get_running_loop().sock_connect(connection, str(path))
        except (OSError, TimeoutError) as error:
            connection.close()
            raise EngineFailed(
                f"no worker can be started through {path}: {error or 'time-out'}; is edge-agent-worker.socket running?"
            ) from error
        except BaseException:
            connection.close()
            raise
        return cls(connection)

    def kill(self) -> None:
        """End the connection for both sides; no answer comes after this."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    async def wait(self) -> int | None:
        """Called after the connection ended, which is all that can be known: the status is None."""
        return None
