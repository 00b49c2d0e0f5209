"""Who is in which wave: by a stable hash of rollout and device, spread over hardware classes and sites."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct


class Size(Struct, frozen=True):
    """A number of devices, or a share of all in percent; of waves it counts from the first device on."""

    count: int = 0
    percent: float | None = None

    def of(self, total: int) -> int:
        """In devices, of ``total``; a share that is not zero is one device at least."""
        wanted = self.count if self.percent is None else math.ceil(total * self.percent / 100 - 1e-9)
        return min(total, wanted)


class Candidate(NamedTuple):
    """A device with what it is spread over."""

    device: str
    hardware: str
    site: str


def fraction(salt: str, text: str) -> float:
    """A number in [0, 1) that is the same on every machine and in every release."""
    digest = hashlib.sha256(f"{salt}\0{text}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2.0**56


def spread(salt: str, candidates: Sequence[Candidate]) -> list[str]:
    """Devices in an order of which every beginning has its share of each hardware class, and in it of each site.

    Systematic sampling: of a class of ``m`` devices the one at rank ``r`` stands at ``(r + u) / m``, ``u`` from the
    hash of the class.
    """
    by_hardware: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for each in candidates:
        by_hardware[each.hardware][each.site].append(each.device)
    classes: dict[str, list[str]] = {}
    for hardware, sites in by_hardware.items():
        ordered = {
            site: sorted(devices, key=lambda device: (fraction(salt, device), device))
            for site, devices in sites.items()
        }
        classes[hardware] = _merge(f"{salt}\0{hardware}", ordered)
    return _merge(salt, classes)


def _merge(salt: str, groups: Mapping[str, Sequence[str]]) -> list[str]:
    placed = [
        ((rank + fraction(salt, name)) / len(devices), name, device)
        for name, devices in groups.items()
        for rank, device in enumerate(devices)
    ]
    return [device for _, _, device in sorted(placed)]


class Assignment(NamedTuple):
    """Devices of each wave, and those that are held out as the control group."""

    waves: list[list[str]]
    holdout: list[str]


def assign(salt: str, candidates: Sequence[Candidate], sizes: Sequence[Size], holdout: Size) -> Assignment:
    """Put every candidate into one wave, or into the control group.

    ``sizes`` count from the first device on: 1, 10 %, 100 % of 50 are waves of 1, 4 and 45. Waves that would be empty
    are left out; whoever is left over after the last is in it.
    """
    order = spread(salt, candidates)
    held = holdout.of(len(order)) if len(order) > 1 else 0
    # Never all of them: then there would be nothing to compare with the control group.
    held = min(held, len(order) - 1) if order else 0
    control = order[len(order) - held :]
    order = order[: len(order) - held]
    waves: list[list[str]] = []
    begin = 0
    for number, size in enumerate(sizes):
        end = len(order) if number == len(sizes) - 1 else max(begin, size.of(len(order)))
        if end > begin:
            waves.append(order[begin:end])
        begin = end
    return Assignment(waves, control)
