"""When the box is hot or short of memory: fewer answers at once, before latency collapses. Pure.

One level up halves what may run at once, down to one. Going up takes one high reading, going down a calm stretch below
lower marks, and in between nothing changes: so the limit does not flap with the load that it changes itself.
"""

from __future__ import annotations

from msgspec import UNSET, Struct

from agent.telemetry.samples import SystemSample

STEP_SECONDS = 5.0
"""Between two steps up: the first one has to show in the readings (PSI averages over 10 s)."""

CALM_SECONDS = 60.0
"""Below the low marks for so long before a step down: a heat sink takes about a minute to give its heat away."""

MAX_LEVEL = 4
"""A sixteenth; no engine here has more places."""

MEMORY_FULL_HIGH, MEMORY_FULL_LOW = 5.0, 1.0
"""Percent of time in which everything waited for memory: at 5 % the box reads weights from the disk again and again."""

AVAILABLE_HIGH, AVAILABLE_LOW = 0.04, 0.08
"""Share of memory left: below 4 % the kernel drops mapped weights."""

SWAP_HIGH, SWAP_LOW = 1 << 20, 64 << 10
"""Bytes per second in and out together, while memory is short: the box pays for memory with time."""

MARGIN_HIGH, MARGIN_LOW = 2.0, 8.0
"""°C below what the sensor's maker calls too hot."""

FREQUENCY_NEEDED = 0.5
"""Below this share of the highest clock while the cores are busy and hot, the box throttles though nobody says so."""


class Strain(Struct, frozen=True):
    """``high``: what asks for fewer answers at once, as reason codes; ``calm``: everything is below its low mark."""

    high: tuple[str, ...] = ()
    calm: bool = True


class Limit(Struct, frozen=True):
    """What is allowed now. ``level`` 0: everything; ``reasons`` are what raised it last."""

    level: int = 0
    reasons: tuple[str, ...] = ()

    def concurrency(self, slots: int) -> int:
        """How many of ``slots`` may be busy: halved at each level, one at least."""
        return max(1, slots >> self.level)


def evaluate_strain(sample: SystemSample, throttled_before: int | None = None) -> Strain:
    """Read the strain off a sample; ``throttled_before`` is the count of the sample before. What is absent is calm."""
    high: list[str] = []
    calm = True
    for reason, (is_high, is_calm) in (
        ("throttled_temperature", _heat(sample, throttled_before)),
        ("throttled_memory", _shortage(sample)),
    ):
        if is_high:
            high.append(reason)
        calm = calm and is_calm
    return Strain(tuple(high), calm and not high)


class Throttle:
    """Turns readings into a :class:`Limit`; ``now`` is a clock that never goes back, in seconds."""

    def __init__(self) -> None:
        self.limit = Limit()
        self._stepped = float("-inf")
        self._calm_since: float | None = None

    def update(self, strain: Strain, now: float) -> Limit:
        """The limit from now on."""
        if strain.high:
            self._calm_since = None
            if self.limit.level < MAX_LEVEL and now - self._stepped >= STEP_SECONDS:
                self._step(self.limit.level + 1, strain.high, now)
        elif not strain.calm:
            self._calm_since = None
        elif self.limit.level:
            if self._calm_since is None:
                self._calm_since = now
            if now - self._calm_since >= CALM_SECONDS:
                self._calm_since = now
                self._step(self.limit.level - 1, self.limit.reasons, now)
        return self.limit

    def _step(self, level: int, reasons: tuple[str, ...], now: float) -> None:
        self._stepped = now
        self.limit = Limit(level, reasons if level else ())


def _heat(sample: SystemSample, throttled_before: int | None) -> tuple[bool, bool]:
    margins = _margins(sample)
    margin = min(margins, default=float("inf"))
    counted = sample.throttled is not UNSET and throttled_before is not None and sample.throttled > throttled_before
    slowed = sample.throttling is True or counted
    frequency = sample.frequency_mhz
    slow = (
        frequency is not UNSET
        and frequency.max is not UNSET
        and sample.cpu is not UNSET
        and sample.cpu.percent > 50
        and frequency.current < FREQUENCY_NEEDED * frequency.max
        and margin < MARGIN_LOW
    )
    return slowed or slow or margin < MARGIN_HIGH, not slowed and margin >= MARGIN_LOW


def _margins(sample: SystemSample) -> list[float]:
    if sample.temperatures is UNSET or sample.temperature_limits is UNSET:
        return []
    return [
        limit - sample.temperatures[name]
        for name, limit in sample.temperature_limits.items()
        if name in sample.temperatures
    ]


def _shortage(sample: SystemSample) -> tuple[bool, bool]:
    full = 0.0
    if sample.pressure is not UNSET and "memory" in sample.pressure:
        pressure = sample.pressure["memory"].full
        full = 0.0 if pressure is UNSET else pressure
    memory = sample.memory
    left = 1.0 if memory is UNSET or not memory.total else memory.available / memory.total
    moved = 0.0
    if sample.swap is not UNSET:
        moved = sum(rate for rate in (sample.swap.in_per_second, sample.swap.out_per_second) if rate is not UNSET)
    swapping = moved > SWAP_HIGH and left < 2 * AVAILABLE_LOW
    high = full > MEMORY_FULL_HIGH or left < AVAILABLE_HIGH or swapping
    return high, full < MEMORY_FULL_LOW and left > AVAILABLE_LOW and moved < SWAP_LOW
