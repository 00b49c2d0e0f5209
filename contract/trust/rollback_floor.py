"""What trust may never fall below, kept apart from the trust store so that losing one is noticed by the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable


@runtime_checkable
class RollbackFloor(Protocol):
    """Durable when each method returns.

    The keys of role versions are opaque texts of at most 64 characters: ``root``, and the other roles followed by a
    fingerprint of the keys in force, since a rotation of those keys is how TUF recovers from versions that a stolen
    key drove up (specification 5.3.11).
    """

    def role_versions(self) -> dict[str, int]:
        """The highest version ever accepted, by role."""
        ...

    def raise_role_versions(self, versions: Mapping[str, int], /) -> None:
        """Keep the higher one of what is known and what is given, for every role."""
        ...

    def clock_floor(self) -> int:
        """Seconds since 1970 that have certainly passed."""
        ...

    def raise_clock_floor(self, seconds: int, /) -> None:
        """Keep the later one."""
        ...


@runtime_checkable
class ResettableRollbackFloor(RollbackFloor, Protocol):
    """What explicit reprovisioning by the operator needs beyond."""

    def reset_role_versions(self) -> None:
        """Forget all role versions."""
        ...


class MemoryRollbackFloor:
    """A floor for one run: the packager's own checks, and tests."""

    def __init__(self) -> None:
        self._versions: dict[str, int] = {}
        self._clock = 0

    def role_versions(self) -> dict[str, int]:
        return dict(self._versions)

    def raise_role_versions(self, versions: Mapping[str, int], /) -> None:
        for role, version in versions.items():
            self._versions[role] = max(version, self._versions.get(role, 0))

    def reset_role_versions(self) -> None:
        self._versions.clear()

    def clock_floor(self) -> int:
        return self._clock

    def raise_clock_floor(self, seconds: int, /) -> None:
        self._clock = max(self._clock, seconds)
