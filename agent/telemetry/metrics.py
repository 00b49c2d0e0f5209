"""The page of metrics: where the value of each family comes from. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import get_args

from msgspec import UNSET, Struct, UnsetType

from agent.serving import requests
from agent.telemetry import families as f
from agent.telemetry.exposition import TEXT, Exposition
from agent.telemetry.installs import InstallMeter
from agent.telemetry.samples import LlmSample, SystemSample
from contract.mqtt.device import BrokerState, Health, Info
from contract.mqtt.reports import Phase
from contract.reasons import BrokerReason, HealthReason, Reason

PHASES: tuple[str, ...] = get_args(Phase)
OUTCOMES = ("stop", "length", "cancelled", "deadline")
REJECTIONS = (
    requests.QUEUE_FULL,
    requests.NO_MODEL,
    requests.ENGINE_UNAVAILABLE,
    requests.STORE_UNAVAILABLE,
)
"""There from the start, at 0: the first one is an increase then."""

WARNINGS: tuple[str, ...] = (Reason.REVOKED, Reason.EXPIRED, Reason.TRUST_STATE_LOST, *BrokerReason)


class AgentState(Struct, frozen=True):
    """What the agent knows of itself. ``expiry``: Unix seconds by role; ``revoked``: the active bundle is."""

    health: Health
    info: Info
    phase: str
    installs: InstallMeter
    expiry: Mapping[str, int]
    revoked: bool
    broker: BrokerState
    connections: int
    undelivered: int
    throttle_level: int


def page(device: str, state: AgentState, system: SystemSample | None, llm: LlmSample, content_type: str = TEXT) -> str:
    """Everything that is known; what the machine does not say has no line."""
    metrics = Exposition({"device": device}, content_type)
    _agent(metrics, state, llm)
    _bundles(metrics, state, llm)
    _workers(metrics, system, llm)
    _requests(metrics, llm)
    if system is not None:
        _machine(metrics, system)
        _devices(metrics, system)
        _sensors(metrics, system)
    return metrics.text()


def _agent(metrics: Exposition, state: AgentState, llm: LlmSample) -> None:
    versions = state.info.versions
    names = {"version": "agent", "onnxruntime_genai": "onnxruntime-genai"}
    labels = {label: versions.get(names.get(label, label), "") for label in f.AGENT_INFO.labels}
    metrics.set(f.AGENT_INFO, 1, **labels | {"arch": str(state.info.host.get("arch", ""))})
    metrics.set(f.START, llm.start)
    metrics.set(f.READY, int(state.health.ready))
    metrics.states(f.REASON, HealthReason, state.health.reasons)
    metrics.states(
        f.WARNING, WARNINGS, [*(state.health.warnings or ()), *(each.reason for each in state.broker.warnings)]
    )
    metrics.set(f.THROTTLE_LEVEL, state.throttle_level)
    metrics.set(f.BROKER_CONNECTED, int(state.broker.connected))
    metrics.set(f.BROKER_CONNECTIONS, state.connections)
    metrics.set(f.BROKER_OUTBOX, state.undelivered)


def _bundles(metrics: Exposition, state: AgentState, llm: LlmSample) -> None:
    bundle, engine = state.info.bundle, state.info.engine
    if bundle is not None:
        labels = {"name": bundle.name, "version": bundle.version, "digest": bundle.digest}
        metrics.add(f.BUNDLE_INFO, [({**labels, "security_epoch": str(bundle.security_epoch)}, 1)])
    if engine is not None:
        repeats = str(engine.reproducible).lower()
        metrics.set(f.ENGINE_INFO, 1, engine=engine.engine, isolation=engine.isolation, reproducible=repeats)
        metrics.set(f.ENGINE_SLOTS, engine.slots)
        metrics.set(f.ENGINE_CONTEXT, engine.context_length)
    metrics.set(f.REVOKED, int(state.revoked))
    metrics.states(f.PHASE, PHASES, [state.phase])
    metrics.set(f.INSTALLS, state.installs.installs)
    metrics.add(f.FAILURES, _counts("reason", state.installs.failures, Reason))
    metrics.add(f.RETRIES, _counts("reason", state.installs.retries, Reason))
    metrics.add(f.ROLLBACKS, _counts("reason", state.installs.rollbacks, Reason))
    metrics.set(f.SWAPS, llm.swaps)
    metrics.add(f.EXPIRY, [({"role": role}, at) for role, at in sorted(state.expiry.items())])


def _workers(metrics: Exposition, system: SystemSample | None, llm: LlmSample) -> None:
    metrics.set(f.CRASHES, llm.crashes)
    metrics.set(f.RESTARTS, llm.restarts)
    for family, field in ((f.RESIDENT, "rss"), (f.PROPORTIONAL, "pss")):
        sums: dict[str, int] = {}
        for process in () if system is None else system.processes:
            # Two workers live at once only while a swap lasts; which bundle each has is in their info metric.
            kind, size = process.name.partition(" ")[0], getattr(process, field)
            if size is not UNSET:
                sums[kind] = sums.get(kind, 0) + size
        metrics.add(family, [({"process": kind}, size) for kind, size in sorted(sums.items())])


def _requests(metrics: Exposition, llm: LlmSample) -> None:
    metrics.set(f.WAITING, llm.queue)
    metrics.set(f.ACTIVE, llm.active)
    metrics.set(f.IN_PROGRESS, llm.generating)
    metrics.add(f.REQUESTS, _counts("outcome", llm.requests, OUTCOMES))
    metrics.add(f.REJECTED, _counts("error", llm.refused, REJECTIONS))
    metrics.set(f.REDELIVERED, llm.redelivered)
    metrics.set(f.FRAMES, llm.frames)
    metrics.set(f.INPUT_TOKENS, llm.input_tokens)
    metrics.set(f.OUTPUT_TOKENS, llm.output_tokens)
    metrics.set(f.CACHED_TOKENS, llm.cached_tokens)
    metrics.histogram(f.FIRST_TOKEN, llm.time_to_first_token)
    metrics.histogram(f.PER_TOKEN, llm.time_per_output_token)
    metrics.histogram(f.DURATION, llm.request_duration)
    metrics.histogram(f.QUEUE_TIME, llm.queue_duration)


def _machine(metrics: Exposition, sample: SystemSample) -> None:
    metrics.set(f.BOOT, sample.boot)
    if (cpu := sample.cpu) is not UNSET:
        metrics.set(f.CPU, _ratio(cpu.percent))
        metrics.add(f.CORE, [({"core": str(core)}, _ratio(percent)) for core, percent in enumerate(cpu.cores)])
    if sample.load is not UNSET:
        metrics.set(f.LOAD, sample.load[0])
    if (memory := sample.memory) is not UNSET:
        metrics.set(f.MEMORY, memory.total)
        metrics.set(f.AVAILABLE, memory.available)
    if (swap := sample.swap) is not UNSET:
        metrics.set(f.SWAP, swap.used)
        metrics.set(f.SWAP_IN, swap.in_bytes)
        metrics.set(f.SWAP_OUT, swap.out_bytes)


def _devices(metrics: Exposition, sample: SystemSample) -> None:
    if (disk := sample.disk) is not UNSET:
        metrics.set(f.DISK, disk.total)
        metrics.set(f.DISK_FREE, disk.free)
        metrics.set(f.DISK_BUNDLES, disk.bundles)
        metrics.set(f.DISK_READ, disk.read_bytes)
        metrics.set(f.DISK_WRITTEN, disk.write_bytes)
    cards = {} if sample.network is UNSET else sample.network
    metrics.add(f.SENT, [({"interface": name}, card.sent_bytes) for name, card in cards.items()])
    metrics.add(f.RECEIVED, [({"interface": name}, card.received_bytes) for name, card in cards.items()])
    pressures = {} if sample.pressure is UNSET else sample.pressure
    waits = [
        ({"resource": name, "kind": kind}, _ratio(getattr(value, kind)))
        for name, value in pressures.items()
        for kind in ("some", "full")
    ]
    metrics.add(f.PRESSURE, waits)


def _sensors(metrics: Exposition, sample: SystemSample) -> None:
    degrees = {} if sample.temperatures is UNSET else sample.temperatures
    metrics.add(f.TEMPERATURE, [({"sensor": name}, value) for name, value in degrees.items()])
    limits = {} if sample.temperature_limits is UNSET else sample.temperature_limits
    metrics.add(f.TEMPERATURE_LIMIT, [({"sensor": name}, value) for name, value in limits.items()])
    if sample.frequency_mhz is not UNSET:
        metrics.set(f.FREQUENCY, sample.frequency_mhz.current * 1_000_000)
    metrics.set(f.THROTTLE_EVENTS, sample.throttled)
    metrics.set(f.THROTTLED, UNSET if sample.throttling is UNSET else int(sample.throttling))
    metrics.set(f.UNDERVOLTAGE, UNSET if sample.undervoltage is UNSET else int(sample.undervoltage))


def _counts(label: str, counts: Mapping[str, int], known: Iterable[str]) -> Iterator[tuple[dict[str, str], int]]:
    for name in sorted({*known, *counts}):
        yield {label: name}, counts.get(name, 0)


def _ratio(percent: float | UnsetType) -> float | UnsetType:
    return UNSET if percent is UNSET else round(percent / 100, 4)
