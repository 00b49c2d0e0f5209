"""Several places that hold the same repository: the next one is asked when one fails.

Here alone it is decided what a refusal of something that a source delivered means: what is signed and refused is final,
anything else may come out right another time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from contract.causes import Cause
from contract.errors import BundleRefused, SourceInvalid, SourceUnavailable
from contract.reasons import Reason
from contract.source import BundleSource
from contract.source.access import Source, location_of
from contract.source.directory import PIECE_BYTES
from contract.source.opening import open_source

log = logging.getLogger("edge_agent.install")

T = TypeVar("T")

MAX_MESSAGE = 1000
"""Characters: a sentence for each of several sources, in a report that every broker takes."""


class Mirrors:
    """Opens ``locations`` when they are needed, in their order; remembers which one worked last."""

    def __init__(
        self,
        locations: Sequence[Source],
        opener: Callable[[Source, int], BundleSource] = open_source,
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        self._locations = list(locations)
        self._opener = opener
        self._piece_bytes = piece_bytes
        self._open: dict[Source, BundleSource] = {}

    def first_working(self, use: Callable[[BundleSource], T]) -> T:
        """The result of ``use`` with the first source for which it works; later calls begin with that one.

        Raises:
            SourceUnavailable: at least one source could not be asked or delivered what was not signed, and no other
                one worked: worth a retry.
            BundleRefused: what every source has is signed and refused, or this device cannot judge; the first refusal.
        """
        refused: BundleRefused | None = None
        failed: list[SourceUnavailable] = []
        for location in list(self._locations):
            try:
                if location not in self._open:
                    self._open[location] = self._opener(location, self._piece_bytes)
                result = use(self._open[location])
            except SourceUnavailable as error:
                failed.append(error)
            except BundleRefused as error:
                if error.cause is Cause.DEVICE:
                    raise
                if error.cause is Cause.DELIVERY:
                    failed.append(_misdelivered(error, self._open.get(location), location))
                else:
                    refused = refused or error
            else:
                for each in failed:
                    log.warning("%s; another source is used", each.message)
                self._locations.remove(location)
                self._locations.insert(0, location)
                return result
        if failed:
            raise _all_failed(failed)
        if refused is not None:
            raise refused
        raise SourceUnavailable("no source is configured")

    def reopened(self, piece_bytes: int) -> Mirrors:
        """The same places, to be used by another thread; the one that worked last comes first.

        ``piece_bytes``: how much a network may deliver at a time.
        """
        return Mirrors(self._locations, self._opener, piece_bytes)

    def close(self) -> None:
        """Close what is open; what is used afterwards is opened again."""
        for source in self._open.values():
            source.close()
        self._open.clear()


def _misdelivered(refused: BundleRefused, source: BundleSource | None, location: Source) -> SourceInvalid:
    # What cannot even be opened is no URL, and holds no credentials.
    where = location_of(location) if source is None else source.description
    message = refused.message if where in refused.message else f"{where}: {refused.message}"
    found = SourceInvalid(message, reason=refused.reason, field=refused.field)
    found.__cause__ = refused
    return found


def _all_failed(failed: list[SourceUnavailable]) -> SourceUnavailable:
    """One error for all of them: what was delivered wrong says more than what could not be reached."""
    chief = next((each for each in failed if isinstance(each, SourceInvalid)), failed[0])
    others = [each.message for each in failed if each is not chief]
    # One that asks for patience must not hold up another that does not.
    waits = [each.retry_after or 0.0 for each in failed]
    combined = type(chief)(
        "; ".join([chief.message, *others])[:MAX_MESSAGE],
        reason=chief.reason or Reason.SOURCE_UNAVAILABLE,
        field=chief.field,
        retry_after=min(waits) or None,
    )
    combined.__cause__ = chief
    return combined
