"""What an operator says of a rollout, read strictly: every fault at once, each with what was probably meant."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct, field

from contract.errors import BundleRefused, Fault, RequestInvalid
from contract.identifiers import is_identifier, parse_reference
from contract.schema_faults import MAX_FAULTS, schema_faults
from contract.windows import MAX_WINDOWS, Window, WindowDocument, read_window, window_faults
from fleet.rollout.canary import Canary, Prompt
from fleet.rollout.durations import parse_duration
from fleet.rollout.selector import parse_selector
from fleet.rollout.waves import Size

MAX_SPEC_BYTES = 64 << 10
"""A page of text."""

MAX_WAVES = 100

MAX_PROMPT = 4000
"""Characters of one prompt of the canary; a small box reads it in seconds."""

_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,4})?)\s*%")

_T = TypeVar("_T")

_Expected = Annotated[str, Meta(min_length=1, max_length=256)]

Ratio = Annotated[float, Meta(gt=0, le=100)]
Share = Annotated[float, Meta(ge=0, le=1)]


class Halt(Struct, frozen=True, forbid_unknown_fields=True):
    """When a rollout stops itself: at ``max_failures``, or at ``failure_percent`` of those that were executed, once
    these are ``min_executed``, and at the end of every wave. A time-out is a failure.
    """

    max_failures: Annotated[int, Meta(ge=1, le=1_000_000)] = 5
    failure_percent: Annotated[float, Meta(gt=0, le=100)] = 10.0
    min_executed: Annotated[int, Meta(ge=1, le=1_000_000)] = 10


class Gates(Struct, frozen=True, forbid_unknown_fields=True):
    """What a wave must hold after its bake, against the same devices' 24 hours before and the control group.

    ``None`` (in TOML: ``false``) takes a gate away. ``tokens_per_second``: at least so many times what it was;
    ``first_token_p95``: at most so many times; ``error_rate``: at most so much more of all requests; ``crashes``,
    ``throttling``: so many more worker crashes and thermal slow-downs a device; ``memory``: share of the memory that
    must be available; ``quality``: of the canary's answers at least so many times as many as before are as expected,
    where there is a canary. ``min_requests`` a device, before and after, are needed to compare; fewer are inconclusive.
    """

    tokens_per_second: Ratio | None = 0.9
    first_token_p95: Ratio | None = 1.5
    error_rate: Share | None = 0.02
    crashes: Annotated[float, Meta(ge=0, le=1000)] | None = 0.0
    throttling: Annotated[float, Meta(ge=0, le=1000)] | None = None
    memory: Share | None = 0.05
    quality: Ratio | None = 0.9
    min_requests: Annotated[int, Meta(ge=1, le=1_000_000)] = 20


class PromptDocument(Struct, frozen=True, forbid_unknown_fields=True):
    """A prompt of the quality canary, and what has to be in its answer: a text, or one of several."""

    prompt: Annotated[str, Meta(min_length=1, max_length=MAX_PROMPT)]
    expect: _Expected | Annotated[list[_Expected], Meta(min_length=1, max_length=16)]


class CanaryDocument(Struct, frozen=True, forbid_unknown_fields=True):
    """As it is written."""

    prompts: Annotated[list[PromptDocument], Meta(min_length=1, max_length=64)]
    max_tokens: Annotated[int, Meta(ge=1, le=1024)] = 64


Quantity = str | Annotated[int, Meta(ge=0)]


class SpecDocument(Struct, frozen=True, forbid_unknown_fields=True):
    """The document that an operator writes; :class:`Spec` says what each field means."""

    bundle: str
    where: str
    mode: Literal["frozen", "dynamic"] = "frozen"
    waves: Annotated[list[Quantity], Meta(min_length=1, max_length=MAX_WAVES)] = field(
        default_factory=lambda: ["1", "1%", "10%", "50%", "100%"]
    )
    holdout: Quantity = 0
    source: str | None = None
    bake: str = "30m"
    deadline: str = "2h"
    patience: str = "1h"
    offline: str = "7d"
    expires: str = "30d"
    max_in_progress: Annotated[int, Meta(ge=1, le=1_000_000)] = 100
    slots_per_site: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    slot_expires: str = "1h"
    rollback: Literal["none", "wave", "all"] = "wave"
    approval: bool = False
    halt: Halt = Halt()
    gates: dict[str, Any] = {}
    canary: CanaryDocument | None = None
    windows: Annotated[list[WindowDocument], Meta(max_length=MAX_WINDOWS)] = []
    prefetch: bool = False


class Spec(Struct, frozen=True, kw_only=True):
    """A rollout as it was asked for; times in seconds.

    ``bake``: how long a wave runs before it is judged; ``deadline``: for one device, from the wish until the bundle is
    active; ``patience``: how long a wave may wait for the first of its devices; ``offline``: how long a device that is
    deferred is waited for; ``expires``: for the whole rollout. ``slots_per_site``: devices of one site that download
    at a time, 0 for any number, each at most ``slot_expires``. ``rollback``: what is turned back when it halts.
    ``prefetch``: devices are asked out of the windows, too, to fetch at once and to activate within them.
    """

    name: str
    version: str
    where: str
    mode: Literal["frozen", "dynamic"] = "frozen"
    waves: tuple[Size, ...] = (Size(1), Size(percent=1), Size(percent=10), Size(percent=50), Size(percent=100))
    holdout: Size = Size()
    source: str | None = None
    bake: float = 1800.0
    deadline: float = 7200.0
    patience: float = 3600.0
    offline: float = 7 * 86400.0
    expires: float = 30 * 86400.0
    max_in_progress: int = 100
    slots_per_site: int = 0
    slot_expires: float = 3600.0
    rollback: Literal["none", "wave", "all"] = "wave"
    approval: bool = False
    halt: Halt = Halt()
    gates: Gates = Gates()
    canary: Canary | None = None
    windows: tuple[Window, ...] = ()
    prefetch: bool = False

    @property
    def bundle(self) -> str:
        return f"{self.name}@{self.version}"


def parse_spec(data: bytes) -> dict[str, Any]:
    """The document of a specification file in TOML, unread.

    Raises:
        RequestInvalid: it is no TOML.
    """
    if len(data) > MAX_SPEC_BYTES:
        raise RequestInvalid(f"the specification has {len(data):,} bytes, {MAX_SPEC_BYTES:,} at most", code=413)
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise RequestInvalid(f"the specification is not TOML: {error}") from error


def read_spec(document: Mapping[str, Any]) -> Spec:
    """Check a document.

    Raises:
        RequestInvalid: ``details`` are all its faults, ``message`` and ``field`` the first one.
    """
    faults = list(islice(_faults(dict(document)), MAX_FAULTS))
    if faults:
        first = faults[0]
        rest = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        at = f" at {first.field}" if first.field else ""
        raise RequestInvalid(
            f"the rollout's specification is not valid{at}: {first.message}{rest}",
            field=first.field,
            details=tuple(faults),
        )
    return _convert(msgspec.convert(dict(document), SpecDocument))


def _faults(document: dict[str, Any]) -> Iterator[Fault]:
    wrong: set[str] = set()
    for fault in schema_faults(document, SpecDocument):
        wrong.add(re.split(r"[.\[]", fault.field or "", maxsplit=1)[0])
        yield fault
    sound = {name: value for name, value in document.items() if name not in wrong}
    for name in SpecDocument.__struct_fields__:
        if name in sound and name in _CHECKS:
            yield from _check(name, sound[name], _CHECKS[name])
    if "gates" in sound:
        yield from schema_faults(_gates(sound["gates"]), Gates, path="gates")
    if "waves" in sound:
        yield from _wave_faults(sound["waves"])
    for number, window in enumerate(sound.get("windows", [])):
        yield from window_faults(msgspec.convert(window, WindowDocument), f"windows[{number}]")
    if sound.get("prefetch") and not {"windows", "prefetch"} & wrong and not sound.get("windows"):
        yield Fault("prefetch", "without windows there is nothing to fetch ahead of: add one, or leave prefetch out")
    if {"deadline", "expires"}.isdisjoint(wrong):
        yield from _order_faults(sound)


def _check(path: str, value: Any, read: Callable[[Any], Any]) -> Iterator[Fault]:
    try:
        read(value)
    except (RequestInvalid, BundleRefused) as error:
        yield Fault(path, error.message)
    except ValueError as error:
        yield Fault(path, str(error))


def _identifier(text: str) -> str:
    if not is_identifier(text):
        raise ValueError(f"{text[:80]!r} cannot name a source: use 1 to 64 of A-Z a-z 0-9 _ . -")
    return text


def _positive(text: str) -> float:
    seconds = parse_duration(text)
    if not seconds:
        raise ValueError("it must be longer than nothing")
    return seconds


def _size(value: str | int) -> Size:
    """A count or a share.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, int):
        return Size(value)
    match = _PERCENT.fullmatch(value.strip())
    if match is not None and float(match[1]) <= 100:
        return Size(percent=float(match[1]))
    if match is None and value.strip().isascii() and value.strip().isdigit() and len(value) < 10:
        return Size(int(value))
    raise ValueError(f"{value[:40]!r} is neither a number of devices nor a share: write 5 or 10%")


_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "bundle": parse_reference,
    "where": parse_selector,
    "holdout": _size,
    "source": lambda text: text is None or _identifier(text),
    "bake": parse_duration,
    "deadline": _positive,
    "patience": parse_duration,
    "offline": _positive,
    "expires": _positive,
    "slot_expires": _positive,
}


def _wave_faults(waves: list[str | int]) -> Iterator[Fault]:
    before: Size | None = None
    for number, value in enumerate(waves):
        path = f"waves[{number}]"
        try:
            size = _size(value)
        except ValueError as error:
            yield Fault(path, str(error))
            continue
        if not (size.count or size.percent):
            yield Fault(path, "a wave of no device cannot be judged")
        elif before is not None and (before.percent is None) == (size.percent is None):
            smaller = (size.percent or 0, size.count) <= (before.percent or 0, before.count)
            if smaller:
                yield Fault(path, "waves count from the first device on, so each is larger than the one before")
        before = size


def _order_faults(sound: Mapping[str, Any]) -> Iterator[Fault]:
    try:
        deadline = parse_duration(sound.get("deadline", "2h"))
        expires = parse_duration(sound.get("expires", "30d"))
    except ValueError:
        return
    if deadline > expires:
        yield Fault("deadline", "one device has longer than the whole rollout: raise expires, or lower deadline")


def _gates(values: Mapping[str, Any]) -> dict[str, Any]:
    """TOML has no null: ``false`` takes a gate away."""
    return {name: None if value is False else value for name, value in values.items()}


def _canary(document: CanaryDocument) -> Canary:
    prompts = (
        Prompt(each.prompt, (each.expect,) if isinstance(each.expect, str) else tuple(each.expect))
        for each in document.prompts
    )
    return Canary(tuple(prompts), document.max_tokens)


def _convert(document: SpecDocument) -> Spec:
    name, version = parse_reference(document.bundle)
    return Spec(
        name=name,
        version=version,
        where=document.where,
        mode=document.mode,
        waves=tuple(_size(each) for each in document.waves),
        holdout=_size(document.holdout),
        source=document.source,
        bake=parse_duration(document.bake),
        deadline=parse_duration(document.deadline),
        patience=parse_duration(document.patience),
        offline=parse_duration(document.offline),
        expires=parse_duration(document.expires),
        max_in_progress=document.max_in_progress,
        slots_per_site=document.slots_per_site,
        slot_expires=parse_duration(document.slot_expires),
        rollback=document.rollback,
        approval=document.approval,
        halt=document.halt,
        gates=msgspec.convert(_gates(document.gates), Gates),
        canary=None if document.canary is None else _canary(document.canary),
        windows=tuple(read_window(each) for each in document.windows),
        prefetch=document.prefetch,
    )
