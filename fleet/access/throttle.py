"""Slows guessing of passwords down, by account and by address, in bounded memory. Pure: the clock is handed in."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

from msgspec import Struct, structs

FREE_ATTEMPTS = 4
"""Failures that cost nothing: people mistype."""

BASE_SECONDS = 2.0
"""After the first failure that costs; each further one doubles it."""

MAX_ACCOUNT_SECONDS = 60.0
"""An account's owner must get in while somebody guesses: one attempt a minute is 500,000 a year, and twelve characters
are more than that."""

MAX_ADDRESS_SECONDS = 900.0

FORGET_SECONDS = 3600.0
"""Without a failure."""

MAX_ENTRIES = 10_000
"""A few megabytes; the ones that failed longest ago go first."""


class _Failures(Struct):
    count: int
    last: float


class Throttle:
    """Both kinds of names are counted apart."""

    def __init__(self, *, most: int = MAX_ENTRIES) -> None:
        self._most = most
        self._found: OrderedDict[tuple[str, str], _Failures] = OrderedDict()

    def __len__(self) -> int:
        return len(self._found)

    def wait(self, account: str, address: str, now: float) -> float:
        """Seconds until the next attempt is looked at; 0.0 for at once."""
        keys = _keys(account, address)
        return max(self._wait(key, limit, now) for key, limit in keys)

    def _wait(self, key: tuple[str, str], limit: float, now: float) -> float:
        found = self._found.get(key)
        if found is None or found.count <= FREE_ATTEMPTS or now - found.last > FORGET_SECONDS:
            return 0.0
        pause = min(limit, BASE_SECONDS * 2.0 ** min(found.count - FREE_ATTEMPTS - 1, 30))
        return max(0.0, found.last + pause - now)

    def begin(self, account: str, address: str, now: float) -> bool:
        """Count an attempt as failed before it is looked at, so that many at once are no way around; whether it is
        the first one that will be waited for.
        """
        first = False
        for key, _ in _keys(account, address):
            found = self._found.pop(key, _Failures(0, now))
            count = 1 if now - found.last > FORGET_SECONDS else found.count + 1
            self._found[key] = structs.replace(found, count=count, last=now)
            first = first or count == FREE_ATTEMPTS + 1
        while len(self._found) > self._most:
            self._found.popitem(last=False)
        return first

    def succeed(self, account: str, address: str) -> None:
        """It was right: the account's failures are forgotten, and this attempt of the address."""
        keys = [key for key, _ in _keys(account, address)]
        self._found.pop(keys[0], None)
        found = self._found.get(keys[1])
        if found is not None:
            found.count -= 1
            if found.count <= 0:
                del self._found[keys[1]]


def _keys(account: str, address: str) -> tuple[tuple[tuple[str, str], float], tuple[tuple[str, str], float]]:
    return (("account", account[:128].lower()), MAX_ACCOUNT_SECONDS), (
        ("address", _network(address)),
        MAX_ADDRESS_SECONDS,
    )


def _network(address: str) -> str:
    """One household has a whole IPv6 /64."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if found.version == 6:
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)
