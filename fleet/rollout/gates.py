"""Gates: does a wave hold, against the same devices before and the control group? Too little data never passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import StrEnum
from statistics import median
from typing import NamedTuple

from msgspec import Struct

from fleet.rollout.canary import Quality, share
from fleet.rollout.counters import Counters
from fleet.rollout.spec import Gates


class Outcome(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"


class Evidence(Struct, frozen=True):
    """Of one device: the increase of its counters in the day before and since; None where that cannot be said.

    ``heard``: it said something since the bundle became active; ``ready``: it answers prompts. ``quality``: what it
    answered to the canary, None where there is none.
    """

    device: str
    before: Counters | None
    after: Counters | None
    heard: bool
    ready: bool | None
    memory_available: float | None = None
    quality: Quality | None = None


class GateValue(NamedTuple):
    """One gate: what was measured, in words, and what comes of it; ``before``, ``now`` and ``allowed`` are the figures
    behind it, for people, empty where there are none.
    """

    name: str
    outcome: Outcome
    text: str
    before: str = ""
    now: str = ""
    allowed: str = ""


class Verdict(NamedTuple):
    """``values``: every gate that is on."""

    outcome: Outcome
    values: tuple[GateValue, ...]

    @property
    def text(self) -> str:
        """What decided it, for people."""
        decisive = [value for value in self.values if value.outcome is self.outcome]
        return "; ".join(value.text for value in decisive)


MIN_SHARE = 0.5
"""Of the judged devices that must have enough data for a gate to say anything of all of them."""


MAX_SILENT = 0.1
"""Of the judged devices that may say nothing at all: a box that was switched off must not hold up a thousand others."""


def judge(gates: Gates, judged: Sequence[Evidence], control: Sequence[Evidence]) -> Verdict:
    """Judge ``judged``; one gate that fails decides, one that cannot be said keeps the others from passing."""
    values = [_readiness(judged)]
    if gates.crashes is not None:
        values.append(_per_device("worker crashes", judged, control, lambda each: each.crashes, gates.crashes))
    if gates.throttling is not None:
        values.append(_per_device("slow-downs", judged, control, lambda each: each.throttled, gates.throttling))
    if gates.error_rate is not None:
        values.append(_error_rate(judged, control, gates.error_rate, gates.min_requests))
    if gates.tokens_per_second is not None:
        values.append(_speed(judged, control, gates.tokens_per_second, gates.min_requests))
    if gates.first_token_p95 is not None:
        values.append(_first_token(judged, control, gates.first_token_p95, gates.min_requests))
    if gates.memory is not None:
        values.append(_memory(judged, gates.memory))
    answers = [each.quality for each in judged if each.quality is not None]
    if gates.quality is not None and answers:
        values.append(_quality(answers, gates.quality))
    outcomes = {value.outcome for value in values}
    worst = next(each for each in (Outcome.FAILED, Outcome.INCONCLUSIVE, Outcome.PASSED) if each in outcomes)
    return Verdict(worst, tuple(values))


def _value(name: str, holds: bool, text: str, *, before: str = "", now: str = "", allowed: str = "") -> GateValue:
    return GateValue(name, Outcome.PASSED if holds else Outcome.FAILED, f"{name}: {text}", before, now, allowed)


def _unknown(name: str, why: str) -> GateValue:
    return GateValue(name, Outcome.INCONCLUSIVE, f"{name}: {why}")


def _readiness(judged: Sequence[Evidence]) -> GateValue:
    """Of every device, whatever else is asked: it was heard since, and it answers."""
    heard = [each for each in judged if each.heard and each.ready is not None]
    deaf = [each.device for each in heard if each.ready is False]
    if deaf:
        return _value("ready", False, f"{len(deaf)} of {len(judged)} do not answer prompts, {deaf[0]} first")
    if (silent := _too_silent("ready", len(heard), judged)) is not None:
        return silent
    return _value("ready", True, f"{len(heard)} of {len(judged)}")


def _too_silent(name: str, known: int, judged: Sequence[Evidence]) -> GateValue | None:
    """Where so many say nothing that the others do not speak for all."""
    if judged and len(judged) - known <= MAX_SILENT * len(judged):
        return None
    return _unknown(name, f"{len(judged) - known} of {len(judged)} devices were not heard since")


def _per_device(
    name: str,
    judged: Sequence[Evidence],
    control: Sequence[Evidence],
    read: Callable[[Counters], int],
    allowed: float,
) -> GateValue:
    """So many more a device than in the control group over the same time."""
    known = [each.after for each in judged if each.after is not None]
    others = [each.after for each in control if each.after is not None]
    normal = sum(read(each) for each in others) / len(others) if others else 0.0
    count = sum(read(each) for each in known)
    figures = {
        "before": f"{normal:.3g} a device of the control group" if others else "",
        "now": f"{count / len(judged):.3g} a device" if judged else "",
        "allowed": f"{allowed + normal:.3g} a device at most",
    }
    if judged and count > (allowed + normal) * len(judged):
        return _value(
            name, False, f"{count} on {len(judged)} devices, {allowed + normal:.3g} a device allowed", **figures
        )
    if (silent := _too_silent(name, len(known), judged)) is not None:
        return silent
    return _value(name, True, f"{count} on {len(judged)} devices", **figures)


class _Pair(NamedTuple):
    before: Counters
    after: Counters


def _comparable(devices: Sequence[Evidence], count: Callable[[Counters], int], least: int) -> list[_Pair]:
    return [
        _Pair(each.before, each.after)
        for each in devices
        if each.before is not None
        and each.after is not None
        and count(each.before) >= least
        and count(each.after) >= least
    ]


def _too_little(name: str, enough: int, judged: Sequence[Evidence], least: int) -> GateValue | None:
    if judged and enough >= math.ceil(MIN_SHARE * len(judged)):
        return None
    return _unknown(name, f"{enough} of {len(judged)} devices answered {least} requests both before and since")


def _pool(counters: Sequence[Counters]) -> Counters | None:
    """All together; None where their histograms cannot be compared."""
    total: Counters | None = Counters()
    for each in counters:
        total = None if total is None else total.plus(each)
    return total


def _error_rate(judged: Sequence[Evidence], control: Sequence[Evidence], allowed: float, least: int) -> GateValue:
    name = "error rate"
    pairs = _comparable(judged, lambda each: each.requests, least)
    if (short := _too_little(name, len(pairs), judged, least)) is not None:
        return short
    rise = _rise(pairs)
    others = _comparable(control, lambda each: each.requests, least)
    normal = max(0.0, _rise(others) or 0.0) if others else 0.0
    if rise is None:
        return _unknown(name, "its counters cannot be compared")
    was = _share([pair.before for pair in pairs])
    return _value(
        name,
        rise <= allowed + normal,
        f"{100 * rise:+.2f} points, {100 * (allowed + normal):.2f} allowed",
        before=f"{100 * was:.2f} %",
        now=f"{100 * (was + rise):.2f} %",
        allowed=f"{100 * (was + allowed + normal):.2f} % at most",
    )


def _share(counters: Sequence[Counters]) -> float:
    return sum(each.errors for each in counters) / sum(each.requests for each in counters)


def _rise(pairs: Sequence[_Pair]) -> float | None:
    after = [pair.after for pair in pairs]
    before = [pair.before for pair in pairs]
    if not sum(each.requests for each in before) or not sum(each.requests for each in after):
        return None
    return _share(after) - _share(before)


def _speed(judged: Sequence[Evidence], control: Sequence[Evidence], least_ratio: float, least: int) -> GateValue:
    """The median of each device's own ratio, so that which boxes are in the wave does not matter."""
    name = "tokens/s"
    ratios = _speed_ratios(judged, least)
    if (short := _too_little(name, len(ratios), judged, least)) is not None:
        return short
    normal = _speed_ratios(control, least)
    expected = median(normal) if normal else 1.0
    ratio = median(ratios) / expected
    was, now = _median_speed(judged, least, after=False), _median_speed(judged, least, after=True)
    return _value(
        name,
        ratio >= least_ratio,
        f"{ratio:.2f} times what it was, {least_ratio:.2f} at least",
        before=f"{was:.3g}",
        now=f"{now:.3g}",
        allowed=f"{was * least_ratio * expected:.3g} at least",
    )


def _median_speed(devices: Sequence[Evidence], least: int, *, after: bool) -> float:
    pairs = _comparable(devices, lambda each: each.token_answers, least)
    return median((pair.after if after else pair.before).tokens_per_second or 0.0 for pair in pairs)


def _speed_ratios(devices: Sequence[Evidence], least: int) -> list[float]:
    found = []
    for pair in _comparable(devices, lambda each: each.token_answers, least):
        before, after = pair.before.tokens_per_second, pair.after.tokens_per_second
        if before and after is not None:
            found.append(after / before)
    return found


def _first_token(judged: Sequence[Evidence], control: Sequence[Evidence], most: float, least: int) -> GateValue:
    name = "p95 time to first token"
    ratio, enough, was = _quantile_ratio(judged, least)
    if (short := _too_little(name, enough, judged, least)) is not None:
        return short
    normal, _, _ = _quantile_ratio(control, least)
    if ratio is None or was is None:
        return _unknown(name, "its histograms cannot be compared")
    # A control group that became faster must not make a rule stricter than the operator wrote it.
    allowed = most * max(1.0, normal or 1.0)
    return _value(
        name,
        ratio <= allowed,
        f"{ratio:.2f} times what it was, {allowed:.2f} at most",
        before=f"{was:.3g} s",
        now=f"{was * ratio:.3g} s",
        allowed=f"{was * allowed:.3g} s at most",
    )


def _quantile_ratio(devices: Sequence[Evidence], least: int) -> tuple[float | None, int, float | None]:
    pairs = _comparable(devices, lambda each: each.first_token[-1] if each.first_token else 0, least)
    before, after = _pool([pair.before for pair in pairs]), _pool([pair.after for pair in pairs])
    if before is None or after is None:
        return None, len(pairs), None
    was, now = before.first_token_quantile(0.95), after.first_token_quantile(0.95)
    return (now / was if was and now is not None else None), len(pairs), was


def _quality(judged: Sequence[Quality], least_ratio: float) -> GateValue:
    """How many of the canary's answers are what was expected, against what the same devices answered before; where that
    was nothing, against all of them.
    """
    name = "quality canary"
    known = [(each.before, each.after) for each in judged if each.after is not None and each.after.is_enough]
    if len(known) < math.ceil(MIN_SHARE * len(judged)):
        return _unknown(name, f"{len(known)} of {len(judged)} devices answered its prompts")
    was = share([before for before, _ in known if before is not None and before.is_enough])
    now = share([after for _, after in known if after is not None]) or 0.0
    least = least_ratio * (was or 1.0)
    return _value(
        name,
        now >= least,
        f"{100 * now:.0f} % of the answers as expected, {100 * least:.0f} % at least",
        before="" if was is None else f"{100 * was:.0f} %",
        now=f"{100 * now:.0f} %",
        allowed=f"{100 * least:.0f} % at least",
    )


def _memory(judged: Sequence[Evidence], least: float) -> GateValue:
    """Of the devices that say it: a sensor that is not there is absent, never zero."""
    name = "available memory"
    known = [(each.memory_available, each.device) for each in judged if each.memory_available is not None]
    if not known:
        return _unknown(name, "no device says how much it has")
    share, device = min(known)
    return _value(
        name,
        share >= least,
        f"{100 * share:.0f} % on {device}, {100 * least:.0f} % at least",
        now=f"{100 * share:.0f} % on {device}",
        allowed=f"{100 * least:.0f} % at least",
    )
