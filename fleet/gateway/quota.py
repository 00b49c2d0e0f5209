"""How much a key may ask: requests and tokens, a minute and a day. Pure: the clock is handed in.

Windows begin at whole minutes and days of UTC. Tokens count when they are known; until then what a request will
probably cost is reserved, so that many at a time do not go beyond.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from msgspec import Struct

from contract.errors import RequestInvalid

MINUTE = 60
DAY = 86_400

Window = Literal["minute", "day"]
_SECONDS: dict[Window, int] = {"minute": MINUTE, "day": DAY}


class Limits(Struct, frozen=True):
    """None: no such bound."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    requests_per_day: int | None = None
    tokens_per_day: int | None = None


class Bucket(NamedTuple):
    """``start``: when the window began, in Unix seconds."""

    token: str
    window: str
    start: int


class Used(NamedTuple):
    requests: int = 0
    tokens: int = 0

    def plus(self, other: Used) -> Used:
        return Used(self.requests + other.requests, self.tokens + other.tokens)


class QuotaExceeded(RequestInvalid):
    """429. ``unit``: what is used up; ``retry_after``: seconds until there is some again; ``headers`` say the same."""

    def __init__(
        self,
        unit: Literal["requests", "tokens"],
        window: Window,
        limit: int,
        retry_after: float,
        headers: dict[str, str],
    ) -> None:
        super().__init__(
            f"this key may ask {limit:,} {unit} a {window}, and they are used up: try again in {retry_after:.0f} s",
            code=429,
            kind="rate_limit_exceeded",
        )
        self.headers = headers
        self.unit = unit
        self.retry_after = retry_after


class _Bound(NamedTuple):
    unit: Literal["requests", "tokens"]
    window: Window
    limit: int
    left: int
    reset: float


def starts(now: float) -> tuple[int, int]:
    """When the windows of now began."""
    return int(now) // MINUTE * MINUTE, int(now) // DAY * DAY


class Ledger:
    """What each token has used in the windows of now, as far as it is known here and by whoever shares the database."""

    def __init__(self) -> None:
        self._used: dict[Bucket, Used] = {}
        self._unsaved: dict[Bucket, Used] = {}
        self._reserved: Counter[str] = Counter()

    def admit(self, token: str, limits: Limits, now: float) -> None:
        """Count a request.

        Raises:
            QuotaExceeded: it is one too many; it does not count.
        """
        spent = [each for each in self._bounds(token, limits, now) if each.left <= 0]
        if spent:
            # The one that is open again last.
            worst = max(spent, key=lambda each: each.reset)
            raise QuotaExceeded(worst.unit, worst.window, worst.limit, worst.reset, self.headers(token, limits, now))
        self._add(token, Used(requests=1), now)

    def reserve(self, token: str, tokens: int) -> None:
        """A request was let in that will cost about so many."""
        self._reserved[token] += tokens

    def settle(self, token: str, reserved: int, tokens: int, now: float) -> None:
        """It is over; ``reserved`` is what was reserved for it."""
        self._reserved[token] -= reserved
        if self._reserved[token] <= 0:
            del self._reserved[token]
        if tokens:
            self._add(token, Used(tokens=tokens), now)

    def _add(self, token: str, more: Used, now: float) -> None:
        for window, start in zip(_SECONDS, starts(now), strict=True):
            bucket = Bucket(token, window, start)
            self._used[bucket] = self._used.get(bucket, Used()).plus(more)
            self._unsaved[bucket] = self._unsaved.get(bucket, Used()).plus(more)

    def _bounds(self, token: str, limits: Limits, now: float) -> Iterator[_Bound]:
        for (window, seconds), start in zip(_SECONDS.items(), starts(now), strict=True):
            used = self._used.get(Bucket(token, window, start), Used())
            reset = start + seconds - now
            requests: int | None = getattr(limits, f"requests_per_{window}")
            tokens: int | None = getattr(limits, f"tokens_per_{window}")
            if requests is not None:
                yield _Bound("requests", window, requests, requests - used.requests, reset)
            if tokens is not None:
                left = tokens - used.tokens - self._reserved[token]
                yield _Bound("tokens", window, tokens, left, reset)

    def headers(self, token: str, limits: Limits, now: float) -> dict[str, str]:
        """OpenAI's ``x-ratelimit-…`` of the window that has least left of each unit."""
        found = {}
        bounds = list(self._bounds(token, limits, now))
        for unit in ("requests", "tokens"):
            mine = [each for each in bounds if each.unit == unit]
            if mine:
                least = min(mine, key=lambda each: each.left)
                found[f"x-ratelimit-limit-{unit}"] = str(least.limit)
                found[f"x-ratelimit-remaining-{unit}"] = str(max(0, least.left))
                found[f"x-ratelimit-reset-{unit}"] = f"{math.ceil(least.reset)}s"
        return found

    def take_unsaved(self) -> dict[Bucket, Used]:
        """What is still to be written down; whoever takes it writes it, or puts it back."""
        taken, self._unsaved = self._unsaved, {}
        return taken

    def put_back(self, taken: Mapping[Bucket, Used]) -> None:
        """It could not be written."""
        for bucket, used in taken.items():
            self._unsaved[bucket] = self._unsaved.get(bucket, Used()).plus(used)

    def learn(self, totals: Mapping[Bucket, Used], now: float) -> None:
        """What everybody has used, as it was written down; older windows are forgotten."""
        current = starts(now)
        self._used = {bucket: used for bucket, used in totals.items() if bucket.start in current}
        for bucket, more in self._unsaved.items():
            if bucket.start in current:
                self._used[bucket] = self._used.get(bucket, Used()).plus(more)
