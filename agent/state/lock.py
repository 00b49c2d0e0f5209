"""The lock of a state directory: one agent or command at a time."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType

from contract.errors import StoreBroken
from contract.reasons import Reason
from contract.system.file_lock import open_lock, take_lock

POLL_SECONDS = 0.05


class FileLock:
    """Held from construction to ``close``. ``what`` names the holder in the error of whoever comes second.

    Raises:
        StoreBroken: STATE_LOCKED when another process holds it for longer than ``wait_seconds``.
    """

    def __init__(self, path: Path, what: str, *, wait_seconds: float = 0.0) -> None:
        try:
            self._handle = open_lock(path)
        except OSError as error:
            raise StoreBroken(f"{path} cannot be opened: {error.strerror}") from error
        end = time.monotonic() + wait_seconds
        try:
            while not take_lock(self._handle):
                if time.monotonic() >= end:
                    raise StoreBroken(
                        f"{what} is already using {path.parent}; stop it first", reason=Reason.STATE_LOCKED
                    )
                time.sleep(POLL_SECONDS)
        except OSError as error:
            self.close()
            raise StoreBroken(f"{path} cannot be locked: {error.strerror}") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self._handle)

    def __enter__(self) -> FileLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock at ``path`` now."""
    if not path.exists():
        return False
    try:
        FileLock(path, "somebody").close()
    except StoreBroken as error:
        return error.reason is Reason.STATE_LOCKED
    return False
