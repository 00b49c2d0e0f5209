"""Reads what devices publish. A device may lie, flood, be broken or of another version: whatever it sends is read
within bounds, or refused in a sentence; what is refused changes nothing.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, TypeVar, cast, get_args

from msgspec import UNSET, Meta, Struct, UnsetType, field

from contract import strict_json
from contract.errors import BundleRefused
from contract.identifiers import check_bundle_name, check_digest, check_version, is_identifier
from contract.mqtt.device import Event, Health, Info, Status
from contract.mqtt.reading import parse_desired
from contract.mqtt.reports import BundleState, Reported
from contract.reasons import Reason
from fleet.rollout.counters import Counters, Reading

Kind = Literal["status", "info", "health", "reported", "desired", "telemetry/llm", "telemetry/system", "event"]
KINDS: tuple[Kind, ...] = get_args(Kind)

FILTERS = ("status", "info", "health", "reported", "desired", "telemetry/llm", "telemetry/system", "event/+")
"""What is subscribed to of every device; never ``#``: prompts are below it."""

MAX_BYTES: dict[Kind, int] = {
    "status": 1 << 10,
    "info": 64 << 10,
    "health": 16 << 10,
    "reported": 64 << 10,
    "desired": 16 << 10,
    "telemetry/llm": 64 << 10,
    "telemetry/system": 64 << 10,
    "event": 16 << 10,
}
"""Of a payload; real ones have a tenth of that."""

MAX_OUTCOMES = 128
"""Kinds of outcomes that a device counts; a few dozen exist."""

EVENT_KINDS = ("install", "swap", "rollback", "throttle", "refused", "broker")

GOOD_OUTCOMES = ("stop", "length", "cancelled", "deadline")
"""Ends of requests that are no error."""

NOT_AN_ERROR = ("invalid_request",)
"""Errors that the asker made."""

_Count = Annotated[int, Meta(ge=0, le=2**53)]
_Seconds = Annotated[float, Meta(ge=0, le=1e12)]
_M = TypeVar("_M", bound=Struct)


class Address(NamedTuple):
    """Whom a topic belongs to, and what it says; ``detail`` is the type of an event."""

    device: str
    kind: Kind
    detail: str = ""


def parse_topic(topic: str, root: str) -> Address | None:
    """None for a topic that is none of a device of ours."""
    prefix = f"{root}/d/"
    if not topic.startswith(prefix):
        return None
    device, _, rest = topic[len(prefix) :].partition("/")
    if not is_identifier(device):
        return None
    if rest in KINDS and rest != "event":
        return Address(device, cast(Kind, rest))
    head, _, detail = rest.partition("/")
    return Address(device, "event", detail) if head == "event" and detail in EVENT_KINDS else None


class Histogram(Struct, frozen=True):
    """``cumulative[i]`` of ``count`` were at most ``bounds[i]``."""

    count: _Count
    sum: _Seconds
    bounds: Annotated[list[float], Meta(max_length=64)] = []
    cumulative: Annotated[list[_Count], Meta(max_length=65)] = []


class LlmCounters(Struct, frozen=True):
    """What is judged of ``telemetry/llm``; more may be there."""

    start: Annotated[float, Meta(ge=0, le=1e12)]
    requests: Annotated[dict[str, _Count], Meta(max_length=MAX_OUTCOMES)] = {}
    crashes: _Count = 0
    first_token: Histogram | UnsetType = field(name="gen_ai.server.time_to_first_token", default=UNSET)
    output_token: Histogram | UnsetType = field(name="gen_ai.server.time_per_output_token", default=UNSET)


class Memory(Struct, frozen=True):
    total: Annotated[int, Meta(ge=1, le=2**53)]
    available: _Count


class SystemReading(Struct, frozen=True):
    """What is judged of ``telemetry/system``; more may be there, and anything be absent."""

    boot: _Count | UnsetType = UNSET
    memory: Memory | UnsetType = UNSET
    throttled: _Count | UnsetType = UNSET

    @property
    def memory_available(self) -> float | None:
        """Share of it."""
        return None if self.memory is UNSET else min(1.0, self.memory.available / self.memory.total)

    @property
    def thermal(self) -> tuple[float, int] | None:
        """The machine's boot, and how often it slowed down since."""
        return None if self.throttled is UNSET or self.boot is UNSET else (float(self.boot), self.throttled)


strict_json.prepare(Status, Info, Health, Reported, Event, LlmCounters, SystemReading)


def _read(payload: bytes, type_: type[_M], kind: Kind) -> _M:
    return strict_json.decode(payload, type_, max_bytes=MAX_BYTES[kind], what=f"its {kind}")


def read_status(payload: bytes) -> Status:
    """Raises: BundleRefused."""
    found = _read(payload, Status, "status")
    _bounded(found.boot_id, 64, "boot_id")
    return found


def read_info(payload: bytes, device: str) -> Info:
    """What it is.

    Raises:
        BundleRefused: it cannot be read, or speaks of another device.
    """
    found = _read(payload, Info, "info")
    if found.device != device:
        raise BundleRefused(
            Reason.SCHEMA_INVALID, f"its info says that it is {found.device[:64]!r}: another device's, or a copy of it"
        )
    for group in found.groups:
        _bounded(group, 64, "groups")
    for version in found.versions.values():
        _bounded(version, 128, "versions")
    if isinstance(arch := found.host.get("arch"), str):
        _bounded(arch, 64, "host.arch")
    return found


def read_health(payload: bytes) -> Health:
    """Raises: BundleRefused."""
    return _read(payload, Health, "health")


def read_reported(payload: bytes) -> Reported:
    """What it does about its wish; bundles that it names are bundles.

    Raises:
        BundleRefused: it cannot be read.
    """
    found = _read(payload, Reported, "reported")
    _bounded(found.revision or "", 128, "revision")
    for state in (found.active, found.previous):
        if state is not None:
            _check_bundle(state)
    if found.error is not None:
        _bounded(found.error.reason, 64, "error.reason")
        _bounded(found.error.message, 4096, "error.message")
    if found.waiting is not UNSET:
        _bounded(found.waiting.message, 4096, "waiting.message")
    return found


def _check_bundle(state: BundleState) -> None:
    check_bundle_name(state.name)
    check_version(state.version)
    check_digest(state.digest)


def _bounded(text: str, most: int, where: str) -> None:
    if len(text) > most or not text.isprintable():
        raise BundleRefused(Reason.SCHEMA_INVALID, f"{where} is longer than {most} characters, or not printable")


def read_desired(payload: bytes) -> str:
    """The revision that the broker holds for a device; "" for a withdrawn wish, "?" for one that nobody can read."""
    try:
        found = parse_desired(payload)
    except BundleRefused:
        return "?"
    if found is None:
        return ""
    return found.revision if found.revision.isprintable() else "?"


def read_llm(payload: bytes) -> Reading:
    """Its counters; the era is the agent's start.

    Raises:
        BundleRefused: it cannot be read, or contradicts itself.
    """
    found = _read(payload, LlmCounters, "telemetry/llm")
    errors = sum(count for outcome, count in found.requests.items() if outcome not in (*GOOD_OUTCOMES, *NOT_AN_ERROR))
    first, each = found.first_token, found.output_token
    counters = Counters(
        requests=sum(found.requests.values()),
        errors=errors,
        crashes=found.crashes,
        token_answers=0 if each is UNSET else each.count,
        token_seconds=0.0 if each is UNSET else each.sum,
        bounds=() if first is UNSET else tuple(first.bounds),
        first_token=() if first is UNSET else tuple(first.cumulative),
    )
    whole = first is UNSET or len(first.cumulative) == len(first.bounds) + 1
    if not counters.sound or not whole or list(counters.bounds) != sorted(counters.bounds):
        raise BundleRefused(Reason.SCHEMA_INVALID, "its telemetry/llm contradicts itself")
    return Reading(found.start, counters)


def read_system(payload: bytes) -> SystemReading:
    """Raises: BundleRefused."""
    return _read(payload, SystemReading, "telemetry/system")


def read_event(payload: bytes) -> Event:
    """Raises: BundleRefused."""
    found = _read(payload, Event, "event")
    _bounded(found.at, 64, "at")
    return found
