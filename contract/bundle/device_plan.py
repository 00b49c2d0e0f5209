"""What becomes of a device's memory and disk with a bundle: one rule for the worker that sizes its cache, for the
device's own ``doctor`` and for ``edge-packager fit``, which asks before anything is sent. Pure.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from contract.bundle.footprint import Footprint

MIB = 1 << 20

MAX_SLOTS = 8
"""On 2 to 4 cores a batch of 8 is where the sum of all speeds stops growing."""

GOOD_SLOTS = 4
"""Fewer than these are accepted only when a shorter context would fall below :data:`GOOD_LENGTH`."""

GOOD_LENGTH = 2048
WANTED_LENGTH = 4096
"""Of :data:`GOOD_SLOTS`: for these a cache may take more than the usual share of the memory."""

LENGTH_GRANULE = 64

LEAST_TOKENS = 512
"""A context below which a model is of no use: ``min_ram_bytes`` of a bundle has room for it."""

USUAL_SHARE, MOST_SHARE = 0.375, 0.75
"""Of the memory that weights leave: what keys and values take, and what they may take to reach the wanted length."""

PREFIX_SHARE, ALL_SHARE = 0.125, 0.8
"""What remembered prompts take of it; what both together may, so that a fifth stays free for everybody else."""

PICTURE_SHARE = 0.25
"""The most that remembered prompts take of it, so that one with a picture is among them."""

GIVEN_PREFIX_SHARE = 0.25
"""What remembered prompts take of memory that the operator has given (``[worker] max_bytes``)."""

WORKER_BYTES = 160 * MIB
"""A worker beside its weights: interpreter, runtime, tokenizer and scratch; 140 MiB were measured."""

SYSTEM_BYTES = 192 * MIB
"""A small Linux without a desktop, and the agent (60 MiB)."""

SPARE_DISK_BYTES = 256 * MIB
"""What must stay free on the disk beside everything that can be made again."""


PREPACKED_SHARE = 0.6
"""Of a bundle: prepacked weights of so much are made where the disk has room: one version takes 1.6 times its bundle.
Whole ones take twice as much, since the runtime reads the originals too, to know what it packed."""

PREPACKED_BYTES = 512 * MIB
"""Prepacked weights of so much are made whatever their share: on any disk that is little."""


class KvPlan(Struct, frozen=True):
    """``slots`` requests of ``length`` tokens each at a time, and ``prefix_bytes`` for remembered prompts; ``budget``
    is what keys and values may take, for an engine that counts requests rather than slots. 0 slots: there is no room.
    """

    slots: int
    length: int
    budget: int
    prefix_bytes: int


def plan_kv(
    room: int, kv_token: int, context_length: int, slots: int = 0, *, least: int = 0, picture: int = 0
) -> KvPlan:
    """Divide the ``room`` that loaded weights leave in memory; ``slots``: so many, where the operator says how many.
    ``least`` tokens are what a cache of the model holds at least (its window). ``picture`` bytes are what remembered
    prompts need for one with a picture: they get as much where it is no more than :data:`PICTURE_SHARE`, if need be of
    what slots would take, since a question about it would take minutes again.
    """
    wanted = (slots or GOOD_SLOTS) * min(WANTED_LENGTH, context_length) * kv_token
    budget = int(min(max(USUAL_SHARE * room, wanted), MOST_SHARE * room))
    prefixes = int(max(0, min(PREFIX_SHARE * room, ALL_SHARE * room - budget)))
    if prefixes < picture <= PICTURE_SHARE * room:
        prefixes, budget = picture, min(budget, int(ALL_SHARE * room) - picture)
    return KvPlan(*plan_pool(budget, kv_token, context_length, slots, least), budget, prefixes)


def plan_given(given: int, kv_token: int, context_length: int, slots: int = 0, *, least: int = 0) -> KvPlan:
    """Divide what the operator has given."""
    prefixes = int(given * GIVEN_PREFIX_SHARE)
    return KvPlan(*plan_pool(given - prefixes, kv_token, context_length, slots, least), given, prefixes)


def plan_pool(budget: int, kv_token: int, context_length: int, slots: int = 0, least: int = 0) -> tuple[int, int]:
    """How many slots of how many tokens fit ``budget`` bytes; 0 slots when not even one short one does.

    Four slots, each as long as memory allows, up to the whole context: a request that is too long for a slot is
    refused, while one for which no slot is free waits. More of them only where each has the whole context, fewer only
    where they would be shorter than :data:`GOOD_LENGTH`, or than ``least``, with which a model can be run at all; or
    ``slots``, whatever their length (decision 68).
    """
    tokens = max(0, budget) // kv_token
    if not slots:
        good = min(GOOD_SLOTS, tokens // min(max(GOOD_LENGTH, least), context_length))
        slots = min(MAX_SLOTS, max(1, good, tokens // context_length))
    length = tokens // slots
    if length >= context_length:
        length = context_length
    elif length >= least:
        length = max(least, length // LENGTH_GRANULE * LENGTH_GRANULE)
    else:
        length = length // LENGTH_GRANULE * LENGTH_GRANULE
    return (slots, length) if length else (0, 0)


class Box(Struct, frozen=True):
    """A device: memory in bytes, cores, disk for bundles (None: as much as it takes), how much of that prepacked
    weights of one bundle may take beyond :data:`PREPACKED_SHARE` of it, and how many requests its operator wants at
    once (0: as many as the plan has).
    """

    ram: int
    cores: int
    disk: int | None = None
    prepacked: int = PREPACKED_BYTES
    slots: int = 0


class DiskPlan(Struct, frozen=True):
    """Bytes: ``version`` with its prepacked weights, ``swap`` while the next version comes in, ``both`` when two
    versions lie there with theirs.
    """

    version: int
    swap: int
    both: int


SWAPS = {
    "beside": "tried while this one serves",
    "either": "tried while this one serves where its requests leave the memory, else in its place",
    "drain": "this one finishes what it runs and makes room; requests wait",
}


class DevicePlan(Struct, frozen=True):
    """How a bundle lives on a box. ``short`` is one sentence on what it lacks (memory first: ``short_of``), with what
    would help; empty if it fits.

    ``swap``: whether the next version is tried ``beside`` the one that serves, or in its place (``drain``); ``either``
    where that depends on how much of its cache is in use when it comes.
    """

    footprint: Footprint
    box: Box
    room: int
    kv: KvPlan
    prepacked: bool
    prepacked_why: str
    swap: Literal["beside", "either", "drain"]
    disk: DiskPlan
    short: str = ""
    short_of: Literal["", "memory", "disk"] = ""

    @property
    def fits(self) -> bool:
        return not self.short

    @property
    def rows(self) -> list[tuple[str, str, str]]:
        """What, how much, and a word on it, for a person."""
        footprint, kv, disk = self.footprint, self.kv, self.disk
        tokens = f"{size_text(footprint.kv_token)} a token in {footprint.kv_type}"
        slots = f"{kv.slots} × {kv.length} tokens" if kv.slots else "none"
        pictures = [("pictures", size_text(footprint.scratch), "while one is looked at as a whole")]
        return [
            ("memory", size_text(self.box.ram), f"of which {size_text(SYSTEM_BYTES)} are for the system and the agent"),
            ("weights", size_text(footprint.weights), f"beside {size_text(WORKER_BYTES)} that every worker takes"),
            *(pictures if footprint.scratch else []),
            ("left for requests", size_text(self.room), f"at most {MOST_SHARE:.0%} of it for keys and values"),
            ("keys and values", slots, f"{size_text(kv.slots * kv.length * footprint.kv_token)}, {tokens}"),
            ("known prompts", size_text(kv.prefix_bytes), ""),
            ("prepacked", "yes" if self.prepacked else "no", self.prepacked_why),
            ("next version", self.swap, SWAPS[self.swap]),
            (
                "disk",
                size_text(disk.version),
                "one version with its prepacked weights" if self.prepacked else "one version",
            ),
            ("disk, swap", size_text(disk.swap), "while the next version comes in"),
            ("disk, both", size_text(disk.both), "when both lie there with all that belongs to them"),
        ]


def least_ram(footprint: Footprint) -> int:
    """Memory of the smallest device that serves the model, with :data:`LEAST_TOKENS` of context, or all it has."""
    tokens = max(min(LEAST_TOKENS, footprint.context_length), footprint.least_cache)
    return needed_ram(footprint, tokens)


def plan_device(
    footprint: Footprint, bundle_bytes: int, box: Box, *, tokens: int = LEAST_TOKENS, unmapped: str = ""
) -> DevicePlan:
    """How a bundle of ``bundle_bytes`` lives on ``box``, where a request must be able to have ``tokens`` of context;
    ``unmapped`` says why no worker there would map prepacked weights, if that is known.
    """
    room = max(0, box.ram - SYSTEM_BYTES - WORKER_BYTES - footprint.weights - footprint.scratch)
    kv = plan_kv(
        room,
        footprint.kv_token,
        footprint.context_length,
        box.slots,
        least=footprint.least_cache,
        picture=footprint.picture,
    )
    derived = footprint.prepacked
    prepacked, why = (False, unmapped) if unmapped else _prepacked(bundle_bytes, derived, box)
    disk = disk_plan(bundle_bytes, derived if prepacked else 0)
    second = WORKER_BYTES + footprint.weights + footprint.scratch + LEAST_TOKENS * footprint.kv_token
    full = kv.slots * kv.length * footprint.kv_token + kv.prefix_bytes
    memory_short, disk_short = _short_of_memory(footprint, kv, box, tokens), _short_of_disk(bundle_bytes, box)
    return DevicePlan(
        footprint=footprint,
        box=box,
        room=room,
        kv=kv,
        prepacked=prepacked,
        prepacked_why=why,
        swap="drain" if room < second else "either" if room - full < second else "beside",
        disk=disk,
        short=memory_short or disk_short,
        short_of="memory" if memory_short else "disk" if disk_short else "",
    )


def disk_plan(bundle_bytes: int, derived: int) -> DiskPlan:
    """Prepacked weights of the next version are made once it is there, before the old one goes."""
    return DiskPlan(bundle_bytes + derived, 2 * bundle_bytes + derived, 2 * (bundle_bytes + derived))


def prepacked_allowed(bundle_bytes: int, allowed: int) -> int:
    """Most bytes that prepacked weights of a bundle may take where the operator allows so many."""
    return max(int(PREPACKED_SHARE * bundle_bytes), allowed)


def _prepacked(bundle_bytes: int, derived: int, box: Box) -> tuple[bool, str]:
    most = prepacked_allowed(bundle_bytes, box.prepacked)
    if derived > most:
        return False, f"they would take {size_text(derived)} of disk, more than the {size_text(most)} that are allowed"
    if box.disk is not None and 2 * bundle_bytes + derived + SPARE_DISK_BYTES > box.disk:
        return False, f"the disk has no room for {size_text(derived)} of them beside two versions"
    return True, f"{size_text(derived)} on disk that a worker maps instead of copying its weights, where it batches"


def needed_ram(footprint: Footprint, tokens: int, slots: int = 0) -> int:
    """Bytes of memory of a device whose longest request has so many tokens, in one of so many slots (0: of as many as
    the plan makes of itself), as :func:`plan_kv` divides it.
    """
    slots = slots or _own_slots(footprint, tokens)
    wanted = tokens * slots * footprint.kv_token
    room = wanted / (MOST_SHARE if tokens <= WANTED_LENGTH else USUAL_SHARE)
    if footprint.picture <= PICTURE_SHARE * room:
        room = max(room, (wanted + footprint.picture) / ALL_SHARE)
    cache = int(room) + 1
    return -(-(SYSTEM_BYTES + WORKER_BYTES + footprint.weights + footprint.scratch + cache) // MIB) * MIB


def _own_slots(footprint: Footprint, tokens: int) -> int:
    """How many the plan makes of itself where each is to have so many tokens: four, once two short ones would fit."""
    return 1 if tokens < 2 * max(GOOD_LENGTH, footprint.least_cache) else GOOD_SLOTS


def _short_of_memory(footprint: Footprint, kv: KvPlan, box: Box, tokens: int) -> str:
    tokens = max(min(tokens, footprint.context_length), footprint.least_cache)
    if kv.slots and kv.length >= tokens:
        return ""
    slots = box.slots or _own_slots(footprint, tokens)
    whole = -(-tokens // LENGTH_GRANULE) * LENGTH_GRANULE
    needed = needed_ram(footprint, whole, box.slots)
    context = f"{tokens} tokens of context" + (f" for {slots} requests" if slots > 1 else "")
    text = (
        f"memory is short by {size_text(max(needed - box.ram, MIB))}: {context} need "
        f"{size_text(needed)}, there are {size_text(box.ram)}"
    )
    quarter = needed_ram(replace(footprint, kv_token=footprint.kv_token // 4 or 1), tokens, box.slots)
    fewer = next((fewer for fewer in range(slots - 1, 0, -1) if needed_ram(footprint, whole, fewer) <= box.ram), 0)
    if kv.length:
        helps = f"ask for {kv.length} tokens" + (f", or for fewer at once (slots = {fewer})" if fewer else "")
        if footprint.kv_type == "fp32" and quarter <= box.ram:
            helps += ", or build with --kv int8, whose cache takes a quarter"
    elif footprint.kv_type == "fp32" and quarter <= box.ram:
        helps = "build with --kv int8, whose cache takes a quarter"
    else:
        helps = f"a device with {size_text(needed)}, or a smaller model"
    return f"{text}; what helps: {helps}"


def _short_of_disk(bundle_bytes: int, box: Box) -> str:
    needed = 2 * bundle_bytes + SPARE_DISK_BYTES
    if box.disk is None or needed <= box.disk:
        return ""
    return (
        f"the disk is short by {size_text(needed - box.disk)}: one version beside the next needs {size_text(needed)}, "
        f"{size_text(SPARE_DISK_BYTES)} of it to stay free, and there are {size_text(box.disk)}; what helps: a larger "
        "disk or quota, or a smaller model"
    )


def size_text(size: float) -> str:
    """Bytes for a person, in a unit that leaves a number to read."""
    unit, name = next(((unit, name) for unit, name in _UNITS if abs(size) >= unit), _UNITS[-1])
    return f"{size / unit:.1f} {name}"


_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
