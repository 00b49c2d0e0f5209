"""What ``telemetry/system`` and ``telemetry/llm`` say, as types; ``docs/TELEMETRY.md`` is written from them.

A field that may be absent has the default ``UNSET``: a sensor that is not there is left out, never zero.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType, field

Percent = Annotated[float, Meta(description="percent")]
Bytes = Annotated[int, Meta(description="bytes")]
BytesSinceBoot = Annotated[int, Meta(description="bytes since boot; may wrap or restart from 0")]
BytesPerSecond = Annotated[float, Meta(description="bytes per second since the sample before")]
Count = Annotated[int, Meta(description="since `start`")]


class Cpu(Struct, frozen=True):
    """Processors, since the sample before."""

    percent: Annotated[float, Meta(description="busy share of all cores together, percent")]
    cores: Annotated[list[float], Meta(description="busy share of each core, percent")]


class Memory(Struct, frozen=True):
    """Main memory; `available` is what could be had without swapping."""

    total: Bytes
    available: Bytes


class Swap(Struct, frozen=True):
    """Swap space; absent where there is none."""

    total: Bytes
    used: Bytes
    in_bytes: BytesSinceBoot
    out_bytes: BytesSinceBoot
    in_per_second: BytesPerSecond | UnsetType = UNSET
    out_per_second: BytesPerSecond | UnsetType = UNSET


class DiskUse(Struct, frozen=True):
    """The file system that holds the state directory, and what whole disks moved."""

    total: Bytes
    free: Annotated[int, Meta(description="bytes that the agent may still write")]
    bundles: (
        Annotated[int, Meta(description="bytes taken by bundles, prepacked weights and partial downloads")] | UnsetType
    ) = UNSET
    read_bytes: BytesSinceBoot | UnsetType = UNSET
    write_bytes: BytesSinceBoot | UnsetType = UNSET
    read_per_second: BytesPerSecond | UnsetType = UNSET
    write_per_second: BytesPerSecond | UnsetType = UNSET


class NetworkInterface(Struct, frozen=True):
    """One network interface; the loopback is left out."""

    sent_bytes: BytesSinceBoot
    received_bytes: BytesSinceBoot
    sent_per_second: BytesPerSecond | UnsetType = UNSET
    received_per_second: BytesPerSecond | UnsetType = UNSET


class Pressure(Struct, frozen=True):
    """Share of the last 10 s in which something (`some`) or everything (`full`) waited for a resource (kernel PSI)."""

    some: Percent | UnsetType = UNSET
    full: Percent | UnsetType = UNSET


class Frequency(Struct, frozen=True):
    """Processor clock, mean of the cores."""

    current: Annotated[int, Meta(description="MHz")]
    max: Annotated[int, Meta(description="MHz")] | UnsetType = UNSET


class Process(Struct, frozen=True):
    """One of our processes; `pss` shares mapped weights fairly between those that map them."""

    name: Annotated[str, Meta(description="`agent` or `worker NAME@VERSION`")]
    pid: Annotated[int, Meta(description="process id")]
    rss: Bytes
    pss: Bytes | UnsetType = UNSET
    cpu_percent: Annotated[float, Meta(description="percent of one core since the sample before")] | UnsetType = UNSET


class SystemSample(Struct, frozen=True):
    """The machine. Everything but the time is absent where the kernel does not say it."""

    at: Annotated[float, Meta(description="Unix seconds of the sample")]
    boot: Annotated[int, Meta(description="Unix seconds of the machine's start; another value: counters restarted")] | (
        UnsetType
    ) = UNSET
    cpu: Cpu | UnsetType = UNSET
    load: Annotated[list[float], Meta(description="load averages over 1, 5 and 15 minutes")] | UnsetType = UNSET
    memory: Memory | UnsetType = UNSET
    swap: Swap | UnsetType = UNSET
    disk: DiskUse | UnsetType = UNSET
    network: Annotated[dict[str, NetworkInterface], Meta(description="by interface")] | UnsetType = UNSET
    pressure: Annotated[dict[str, Pressure], Meta(description="by resource: `cpu`, `memory`, `io`")] | UnsetType = UNSET
    temperatures: Annotated[dict[str, float], Meta(description="°C by sensor")] | UnsetType = UNSET
    temperature_limits: (
        Annotated[dict[str, float], Meta(description="°C from which a sensor calls it too hot")] | UnsetType
    ) = UNSET
    frequency_mhz: Frequency | UnsetType = UNSET
    throttled: Annotated[int, Meta(description="times the cores slowed down to cool, since boot (x86)")] | (
        UnsetType
    ) = UNSET
    throttling: Annotated[bool, Meta(description="the cores are slowed down now (cooling devices, firmware)")] | (
        UnsetType
    ) = UNSET
    undervoltage: Annotated[bool, Meta(description="the supply's voltage is too low now (Raspberry Pi)")] | (
        UnsetType
    ) = UNSET
    processes: Annotated[list[Process], Meta(description="ours")] = []


class HistogramSample(Struct, frozen=True):
    """Seconds; `cumulative[i]` observations were at most `bounds[i]`, the last entry counts all."""

    count: Count
    sum: Annotated[float, Meta(description="seconds since `start`")]
    bounds: list[float]
    cumulative: list[int]


class LlmSample(Struct, frozen=True):
    """The model's work. Counters rise until the agent ends; a new `start` says that they began at 0 again."""

    start: Annotated[float, Meta(description="Unix seconds of the agent's start")]
    queue: Annotated[int, Meta(description="requests that wait")]
    active: Annotated[int, Meta(description="requests being answered")]
    generating: Annotated[
        int, Meta(description="tokens so far of the answers in progress; output tokens count ended ones")
    ]
    requests: Annotated[dict[str, int], Meta(description="ended, by finish reason or error type")]
    refused: Annotated[dict[str, int], Meta(description="turned away, by error type")]
    redelivered: Count
    frames: Count
    crashes: Annotated[int, Meta(description="worker processes that ended by themselves or did not load")]
    restarts: Annotated[int, Meta(description="worker processes that took the place of one that crashed")]
    swaps: Count
    input_tokens: Count = field(name="gen_ai.usage.input_tokens")
    output_tokens: Count = field(name="gen_ai.usage.output_tokens")
    cached_tokens: Annotated[int, Meta(description="prompt tokens that the prefix cache had")] = field(
        name="gen_ai.usage.cached_tokens"
    )
    time_to_first_token: HistogramSample = field(name="gen_ai.server.time_to_first_token")
    time_per_output_token: HistogramSample = field(name="gen_ai.server.time_per_output_token")
    request_duration: HistogramSample = field(name="gen_ai.server.request.duration")
    queue_duration: HistogramSample = field(name="edge.queue.duration")
