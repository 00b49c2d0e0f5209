"""Several places that hold the same repository: the next one is asked when one fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from contract.errors import BundleRefused, SourceUnavailable
from contract.source import BundleSource
from contract.source.directory import PIECE_BYTES
from contract.source.opening import open_source

T = TypeVar("T")


class Mirrors:
    """Opens ``locations`` when they are needed, in their order; remembers which one worked last."""

    def __init__(
        self,
        locations: Sequence[str],
        opener: Callable[[str, int], BundleSource] = open_source,
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        self._locations = list(locations)
        self._opener = opener
        self._piece_bytes = piece_bytes
        self._open: dict[str, BundleSource] = {}

    def first_working(self, use: Callable[[BundleSource], T]) -> T:
        """The result of ``use`` with the first source for which it works; later calls begin with that one.

        Raises:
            SourceUnavailable: at least one source could not be asked, and no other one worked: worth a retry.
            BundleRefused: every source was asked and refused; the first refusal.
        """
        refused: BundleRefused | None = None
        unavailable: SourceUnavailable | None = None
        for location in list(self._locations):
            try:
                if location not in self._open:
                    self._open[location] = self._opener(location, self._piece_bytes)
                result = use(self._open[location])
            except SourceUnavailable as error:
                unavailable = unavailable or error
            except BundleRefused as error:
                refused = refused or error
            else:
                self._locations.remove(location)
                self._locations.insert(0, location)
                return result
        if unavailable is not None:
            raise unavailable
        if refused is not None:
            raise refused
        raise SourceUnavailable("no source is configured")

    def again(self, piece_bytes: int) -> Mirrors:
        """The same places, to be used by another thread; the one that worked last comes first.

        ``piece_bytes``: how much a network may deliver at a time.
        """
        return Mirrors(self._locations, self._opener, piece_bytes)

    def close(self) -> None:
        for source in self._open.values():
            source.close()
        self._open.clear()
