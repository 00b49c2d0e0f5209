"""Whether the publisher's clock can be right: what it signs with a wrong one, devices believe for ever.

The dates that people sign raise every device's clock floor. One signature by a clock that is years ahead would make
all metadata expired on all devices, until they are reset one by one.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from contract.errors import BuildRefused
from contract.trust.clock import EARLIEST
from contract.trust.signing import state_of
from packager.publish.metadata import PublishedMetadata

BEHIND = timedelta(hours=1)
"""How far two people's machines may differ."""

AHEAD = timedelta(days=90)
"""A repository that nobody refreshed for so long after it ran out is rarer than a clock that is wrong."""

_FIX = "set it, or say --clock-is-right"


def check_publishers_clock(now: datetime, metadata: PublishedMetadata) -> None:
    """Refuse to sign at a time that cannot be now.

    Raises:
        BuildRefused: with the mend.
    """
    shown = f"the clock of this machine says {now:%Y-%m-%d %H:%M}"
    if now < datetime.fromtimestamp(EARLIEST, UTC):
        raise BuildRefused(f"{shown}, before this program was made; {_FIX}")
    if metadata.timestamp is None:
        return
    signed = metadata.listing.signed
    if signed is not None and now < signed - BEHIND:
        raise BuildRefused(f"{shown}, but the repository was signed at {signed:%Y-%m-%d %H:%M}; {_FIX}")
    expired = state_of(metadata.timestamp, "timestamp").expires
    if now > expired + AHEAD:
        raise BuildRefused(f"{shown}, {(now - expired).days} days after the last timestamp ran out; {_FIX}")
