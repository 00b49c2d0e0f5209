"""A file flushed, read back and hashed as a whole while it is being filled.

A thread of its own: neither flushing nor the digest of one file can be shared out, so on two cores both must not wait
until the last byte has come.
"""

from __future__ import annotations

import hashlib
import os
import threading

READ_BYTES = 1 << 20

WINDOW_BYTES = 8 << 20
"""So much is flushed at a time: still in the processor's reach when it is read back, and little is left at the end."""


class FlushHasher:
    """Hashes the first bytes of the file at ``handle`` as far as :meth:`reached` says that they are there.

    They are read back only when they have been flushed. ``handle`` stays the caller's and must be open until
    :meth:`digest` or :meth:`close` has returned.
    """

    def __init__(self, handle: int, name: str) -> None:
        self._handle = handle
        self._reached = 0
        self._ended = False
        self._failure: OSError | None = None
        self._whole = hashlib.sha256()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"flush hasher of {name}", daemon=True)
        self._thread.start()

    def reached(self, offset: int) -> None:
        """Everything before ``offset`` is in its place now."""
        with self._changed:
            self._reached = offset
            self._changed.notify()

    def digest(self) -> str:
        """SHA-256 of what lies before the offset reached last, which the caller has flushed; ends the thread.

        Raises:
            OSError: it could not be read back.
        """
        self._end(self._reached)
        if self._failure is not None:
            raise self._failure
        return self._whole.hexdigest()

    def close(self) -> None:
        """End the thread without a digest."""
        self._end(0)

    def _end(self, reached: int) -> None:
        with self._changed:
            self._reached, self._ended = reached, True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        done = 0
        # One buffer for all of it: a new one for every read would cost as much as the copying.
        buffer = memoryview(bytearray(READ_BYTES))
        try:
            while True:
                with self._changed:
                    while self._reached - done < WINDOW_BYTES and not self._ended:
                        self._changed.wait()
                    end, flushed = self._reached, self._ended
                if end <= done:
                    return
                if not flushed:
                    os.fdatasync(self._handle)
                while done < end:
                    count = os.preadv(self._handle, [buffer[: min(READ_BYTES, end - done)]], done)
                    if count == 0:
                        # Shorter than it was: its digest will tell.
                        return
                    self._whole.update(buffer[:count])
                    done += count
        except OSError as error:
            self._failure = error
