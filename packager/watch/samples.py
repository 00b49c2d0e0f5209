"""What is read of ``telemetry/system`` and ``telemetry/llm``: everything may be absent, more may be there."""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType, field


class Cpu(Struct, frozen=True):
    percent: float


class Memory(Struct, frozen=True):
    total: int
    available: int


class Disk(Struct, frozen=True):
    total: int
    free: int


class Process(Struct, frozen=True):
    name: str
    rss: int


class SystemReading(Struct, frozen=True):
    cpu: Cpu | UnsetType = UNSET
    memory: Memory | UnsetType = UNSET
    disk: Disk | UnsetType = UNSET
    temperatures: dict[str, float] | UnsetType = UNSET
    temperature_limits: dict[str, float] | UnsetType = UNSET
    throttling: bool | UnsetType = UNSET
    processes: list[Process] = []

    @property
    def hottest(self) -> tuple[str, float] | None:
        """The sensor nearest to its limit; without limits, the warmest."""
        if self.temperatures is UNSET or not self.temperatures:
            return None
        limits = {} if self.temperature_limits is UNSET else self.temperature_limits
        limited = {name: value - limits[name] for name, value in self.temperatures.items() if name in limits}
        ranked = limited or self.temperatures
        name = max(ranked, key=ranked.__getitem__)
        return name, self.temperatures[name]


class Durations(Struct, frozen=True):
    count: int
    sum: float

    @property
    def mean(self) -> float | None:
        return self.sum / self.count if self.count else None


class LlmReading(Struct, frozen=True):
    start: float
    queue: int = 0
    active: int = 0
    generating: int = 0
    requests: dict[str, int] = {}
    refused: dict[str, int] = {}
    crashes: int = 0
    output_tokens: int = field(name="gen_ai.usage.output_tokens", default=0)
    first_token: Durations | UnsetType = field(name="gen_ai.server.time_to_first_token", default=UNSET)

    @property
    def tokens(self) -> int:
        """Everything generated since ``start``, unfinished answers included."""
        return self.output_tokens + self.generating
