"""Where repository bytes come from: one interface, three implementations (``directory``, ``http``, ``tar``).

A source is not trusted: it delivers bytes, and whoever asked checks them. It promises bounded reads, bounded time
and only one kind of error for trouble of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable


@runtime_checkable
class BundleSource(Protocol):
    """A repository's files by their paths below its root (``metadata/…``, ``manifests/…``, ``objects/…``).

    Paths are built by :mod:`contract.bundle.layout` or by TUF, never taken from the source itself.
    """

    @property
    def description(self) -> str:
        """What to call this source in messages; never contains credentials."""
        ...

    def read(self, path: str, max_bytes: int) -> bytes | None:
        """The whole file, or None if the source says that it has none.

        Raises:
            SourceUnavailable: unreachable, stalled, broken off.
            BundleRefused: TOO_LARGE, longer than ``max_bytes``; TAR_INVALID; UNSAFE_PATH.
        """
        ...

    def stream(self, path: str, start: int, length: int) -> Iterator[bytes]:
        """Exactly the bytes ``[start, start + length)`` in pieces of at most 1 MiB; an empty range yields nothing.

        A server without Range support is read from the beginning and the head is thrown away.

        Raises:
            SourceUnavailable: as for ``read``; also when the file is missing or ends early.
            BundleRefused: TAR_INVALID, UNSAFE_PATH.
        """
        ...

    def close(self) -> None:
        """Release connections and files; using the source afterwards raises SourceUnavailable."""
        ...
