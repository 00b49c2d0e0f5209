"""What a build will need, said before it starts, and the refusal when this host does not have it."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import psutil
from msgspec import Struct

from contract.bundle.device_plan import size_text
from contract.errors import BuildRefused, StoreFull
from contract.system.control_groups import PROC, ROOT, memory_limits
from packager.build.disk import build_disk_bytes, proof_disk_bytes
from packager.build.plan import CALIBRATED, FAST, BuildPlan, goes_layer_by_layer
from packager.evaluate.check import host_threads
from packager.evaluate.source_process import AT_ONCE, WINDOW
from packager.quantize.half_precision import has_products
from packager.quantize.streaming import PIECE_ELEMENTS
from packager.sources.checkpoint import Pending
from packager.sources.shape import ModelShape

LIBRARIES_BYTES = 300 * 2**20
"""Anonymous memory of a process with torch, transformers and the model builder, before it has done anything."""

COMMAND_BYTES = 160 * 2**20
"""The command itself, which waits for that process: 157 to 164 MiB were measured."""

PIECE_BYTES = 4 * PIECE_ELEMENTS

PROOF_LAYERS = 2
PROOF_BYTES_PER_PARAMETER = 6
"""Measured where Llama-3.2-1B's shape is cut to two layers."""

PROOF_CACHES = 6

ROPE_COPIES = 10
"""Of rotary tables inside branches: the graph is taken apart and put together again with them in it."""

PACKED_COPIES = 4
"""Of the largest weight once it is quantised: in pieces, joined, on its way into the graph, and there."""

OWN_TABLE_BYTES = 8
"""For a weight of an embedding that is quantised apart from the lm_head: a Mistral of 7B took 0.43 GiB more in the
builder's process than everything else that is counted."""

SWITCHING_COPIES = 2
"""Of everything that is quantised, where rotary tables switch and the graph is put together from branches: 1.22 bytes
were measured for each parameter of a layer with 2, 8 and 32 of Phi-3.5-mini's shape, and 0.62 on Llama-3.2-1B's. On
Phi's the type of the embedding made no difference."""

SCORES_BYTES = 4 * AT_ONCE * WINDOW
"""Of logits in fp32, for each row of the vocabulary, where source and bundle are compared."""

CACHE_TOKENS = 512
"""Positions whose keys and values are there while a bundle is checked, at the most."""

STORED_BITS = {"int4": 5.0, "int8": 9.0, "fp16": 16.0, "bf16": 16.0, "fp32": 32.0}
"""Bits a stored weight, scales included."""

STORED_VISION_BYTES = 4
"""Of a weight of the part that sees."""

NOTHING = Pending()

SECONDS_PER_PARAMETER = 1.5e-7
START_SECONDS = 15
"""SmolLM2-135M on two idle cores, nine builds: 12 to 16 s in the model builder, about 10 to run the source, 4 to 22 to
run the bundle; half of that is loading libraries. k-quants take longer, by how much was not measured."""

CALIBRATION_BYTES_PER_PARAMETER = 16
"""Where scales are tuned: that holds the weights in fp32 as rounded and as scaled, their gradients, halves of them."""

CALIBRATION_CORE_SECONDS_PER_PARAMETER = 1.1e-5
"""Measured on 135 million parameters, in core seconds: text 150, source 120, layers 700, table 180, tuning 360."""

LAYERED_CORE_SECONDS_PER_PARAMETER = 3.0e-6
"""The same without tuning, layer by layer, linear in the parameters."""

WRITING_CORE_SECONDS_PER_PARAMETER = 1.1e-6
"""What it takes beyond that on processors without instructions for halves. Zen 3, two cores, the shape of Llama-3.2-1B
with six layers, 627 million parameters: 740 s to write the text and 407 to round, of 1,398 s in all; with the
instructions both are :data:`LAYERED_CORE_SECONDS_PER_PARAMETER`."""

SHORT_TEXT, LONG_TEXT = 4096, 24576
"""Tokens that weights are rounded on: of the shipped text, and of what the model writes."""

SAMPLED_BYTES = 3 * 2**30
"""Keys and values while the model writes that, at the most (``samples.CACHE_BYTES``)."""

SCALES_TOKENS = 512
SCALES_CORE_SECONDS_PER_PARAMETER = 3.2e-7
"""Reading 24 times as many tokens to measure keys and values: some 50 core seconds each for 3.8 billion parameters, on
a busy machine.
"""

FAST_CORE_SECONDS_PER_PARAMETER = 4.7e-7
"""One pass over a short text, linear in the parameters, and comparing two rounded layers: 52 and 63 core seconds more
than plain rounding on 135 million, on cores that other work shared. The graph of a model of 494 million took 508
seconds beside other work, where this and :data:`SECONDS_PER_PARAMETER` make 190."""


SOURCE_LOOK_CORE_SECONDS_PER_PARAMETER = 1.6e-7
GRAPH_LOOK_CORE_SECONDS_PER_PARAMETER = 1.6e-7
"""Of the text model: asking the source about pictures once, and comparing features and answers of each graph with it.
Phi-3.5-vision on two cores that other work shared: 571 s, and 294 and 113 s of the clock."""


class Estimate(Struct, frozen=True):
    """What a build needs, roughly and rather too much than too little; ``proof_bytes`` of memory for computing two
    layers twice, which is left out where there is less, and ``proof_disk_bytes`` in the cache meanwhile. Of the disk
    ``bundle_bytes`` are where the bundle goes, and the rest is in the cache; nothing where both are links to the same
    files (``linked``).
    """

    memory_bytes: int
    disk_bytes: int
    seconds: float
    proof_bytes: int = 0
    proof_disk_bytes: int = 0
    bundle_bytes: int = 0
    linked: bool = False

    def after(self, pending: Pending) -> Estimate:
        """The same for a source that is to be converted first, if that is not done yet."""
        converting = COMMAND_BYTES + pending.memory_bytes if pending.memory_bytes else 0
        return msgspec.structs.replace(
            self,
            memory_bytes=max(self.memory_bytes, converting),
            disk_bytes=self.disk_bytes + pending.disk_bytes,
        )

    def seeing(self, parameters: int) -> Estimate:
        """The same for a model that also sees, by that many ``parameters``, in fp32 at the most."""
        size = STORED_VISION_BYTES * parameters
        return msgspec.structs.replace(
            self,
            memory_bytes=self.memory_bytes + size,
            disk_bytes=self.disk_bytes + (size if self.linked else 2 * size),
            bundle_bytes=self.bundle_bytes + (0 if self.linked else size),
        )

    def within(self, memory: int) -> Estimate:
        """The same, with what it takes in all where so much ``memory`` is there."""
        if self.proof_bytes > memory:
            return self
        return msgspec.structs.replace(
            self,
            memory_bytes=max(self.memory_bytes, self.proof_bytes),
            disk_bytes=max(self.disk_bytes, self.bundle_bytes + self.proof_disk_bytes),
        )

    def __str__(self) -> str:
        """One line for the display."""
        minutes = max(1, round(self.seconds / 60))
        return (
            f"needs about {size_text(self.memory_bytes)} of memory, {size_text(self.disk_bytes)} of disk "
            f"and {minutes} minute{'s' if minutes > 1 else ''}"
        )


def estimate_build(plan: BuildPlan, shape: ModelShape, *, linked: bool = False, halves: bool | None = None) -> Estimate:
    """For a model of ``shape``; ``linked``: bundle and cache can share files. ``halves``: whether the processor has
    instructions for half precision (None: this one is asked).

    Memory is what processes have for themselves: the checkpoint and the bundle are mapped, and the system takes such
    pages back where they are needed elsewhere.
    """
    stored = _stored_bytes(plan, shape)
    peaks = [
        _build_bytes(plan, shape, stored),
        LIBRARIES_BYTES + _source_bytes(shape),
        # The runtime packs the weights anew when it loads them.
        LIBRARIES_BYTES // 2 + stored + CACHE_TOKENS * shape.kv_token_bytes + SCORES_BYTES // 4 * shape.vocabulary,
    ]
    seconds = START_SECONDS + SECONDS_PER_PARAMETER * shape.parameters
    core_seconds = 0.0
    if plan.kv != "float":
        seconds *= 2  # a first build to measure keys and values on
        core_seconds += SCALES_CORE_SECONDS_PER_PARAMETER
        peaks.append(LIBRARIES_BYTES // 2 + stored + 2 * SCALES_TOKENS * shape.kv_token_bytes)
    if plan.sees:
        graphs = 1 if plan.kv == "float" else 2
        core_seconds += SOURCE_LOOK_CORE_SECONDS_PER_PARAMETER + graphs * GRAPH_LOOK_CORE_SECONDS_PER_PARAMETER
    if plan.quantizer in CALIBRATED:
        memory, more = _calibration(plan, shape, has_products("bfloat16") if halves is None else halves)
        peaks.append(LIBRARIES_BYTES + memory)
        core_seconds += more
    seconds += core_seconds * shape.parameters / host_threads()
    cached, staged = build_disk_bytes(plan, shape, stored, linked=linked)
    return Estimate(
        memory_bytes=COMMAND_BYTES + max(peaks),
        disk_bytes=cached + staged,
        seconds=seconds,
        proof_bytes=COMMAND_BYTES + _proof_bytes(shape),
        proof_disk_bytes=proof_disk_bytes(plan, shape, _proof_weights(shape)),
        bundle_bytes=staged,
        linked=linked,
    )


def _stored_bytes(plan: BuildPlan, shape: ModelShape) -> int:
    bits = STORED_BITS[plan.precision]
    stored = shape.parameters * bits + 8.0 * shape.rope_bytes
    if plan.quantised:
        # Only int4 shares a table with the lm_head.
        table = shape.table or (0 if plan.precision == "int4" else shape.vocabulary * shape.hidden)
        plain = "fp32" if plan.ep == "cpu" else "fp16"
        kind = plain if plan.own_embedding == "float" else plan.own_embedding
        stored += table * (STORED_BITS[kind] - (bits if shape.table else 0))
    return int(stored / 8)


def _build_bytes(plan: BuildPlan, shape: ModelShape, stored: int) -> int:
    """What is quantised stays in memory until all of it is, as do weights that were joined; plain ones are written one
    by one.
    """
    if not plan.quantised:
        return LIBRARIES_BYTES + 2 * 4 * shape.matrix + shape.copied_bytes
    rope = ROPE_COPIES * shape.switching_rope_bytes
    packed = int(STORED_BITS[plan.precision] / 8 * shape.matrix)
    quantised = int(STORED_BITS[plan.precision] / 8 * (shape.parameters - shape.table))
    if shape.switches_at:
        quantised *= SWITCHING_COPIES
    elif plan.own_embedding != "float":
        quantised += OWN_TABLE_BYTES * shape.table
    return LIBRARIES_BYTES + shape.copied_bytes + PIECE_BYTES + quantised + PACKED_COPIES * packed + rope


def _proof_bytes(shape: ModelShape) -> int:
    """Two layers, embedding and lm_head, by transformers and by the builder; with a cache as long as until a switch."""
    weights = _proof_weights(shape)
    cache = PROOF_CACHES * PROOF_LAYERS * shape.layer_kv_bytes * shape.switches_at
    return LIBRARIES_BYTES + PROOF_BYTES_PER_PARAMETER * weights + cache + ROPE_COPIES * shape.switching_rope_bytes


def _proof_weights(shape: ModelShape) -> int:
    return PROOF_LAYERS * shape.layer + shape.table + shape.vocabulary * shape.hidden


def _calibration(plan: BuildPlan, shape: ModelShape, halves: bool) -> tuple[int, float]:
    """Memory, and core seconds a parameter."""
    if not goes_layer_by_layer(plan, shape.parameters):
        return CALIBRATION_BYTES_PER_PARAMETER * shape.parameters, CALIBRATION_CORE_SECONDS_PER_PARAMETER
    if plan.quantizer == FAST:
        return _pass_bytes(shape, SHORT_TEXT), FAST_CORE_SECONDS_PER_PARAMETER
    writing = WRITING_CORE_SECONDS_PER_PARAMETER if shape.half and not halves else 0.0
    return max(SAMPLED_BYTES, _pass_bytes(shape, LONG_TEXT)), LAYERED_CORE_SECONDS_PER_PARAMETER + writing


def _pass_bytes(shape: ModelShape, tokens: int) -> int:
    """One layer in fp32, what is made of it and what passes through it; and the table with its levels, rounded and
    about to be written: five times, as measured on the shape of Llama-3.2-1B (5.3 GiB).
    """
    passing = tokens * (shape.layer // max(1, shape.hidden) + 4 * shape.hidden)
    return 4 * max(3 * shape.layer + passing, 5 * shape.vocabulary * shape.hidden + tokens * shape.hidden)


def _source_bytes(shape: ModelShape) -> int:
    """One part of the model in fp32 at a time, beside the logits."""
    converted = 4 * max(shape.layer, shape.vocabulary * shape.hidden) if shape.half else 0
    return converted + SCORES_BYTES * shape.vocabulary


def refuse_what_cannot_fit(
    estimate: Estimate, out: Path, cache: Path, memory: int | None = None, *, pending: Pending = NOTHING
) -> None:
    """Refuse a build into ``out`` that this host cannot finish; ``memory`` is what it has, found out when not given.

    ``pending`` is part of ``estimate``, but for what is to be fetched.

    Raises:
        BuildRefused: not enough memory.
        StoreFull: not enough room in ``out``, in ``cache`` or where the source is fetched to.
    """
    memory = available_memory() if memory is None else memory
    if estimate.memory_bytes > memory:
        raise BuildRefused(
            f"this build {estimate}, and only {size_text(memory)} of memory are free; "
            "build on a larger machine, or end other programs"
        )
    locations = [(out, estimate.bundle_bytes), (cache, estimate.disk_bytes - estimate.bundle_bytes)]
    if pending.download_bytes and pending.download_directory is not None:
        locations.append((pending.download_directory, pending.download_bytes))
    needed: dict[int, int] = {}
    for directory, size in locations:
        existing = next(path for path in (directory, *directory.parents) if path.exists())
        device, free = existing.stat().st_dev, shutil.disk_usage(existing).free
        needed[device] = needed.get(device, 0) + size
        if needed[device] > free:
            fetched = f", {size_text(pending.download_bytes)} to be fetched" if pending.download_bytes else ""
            raise StoreFull(f"this build {estimate}{fetched}, and only {size_text(free)} are free in {existing}")


def refuse_conversion(pending: Pending, cache: Path, doing: str, memory: int | None = None) -> None:
    """Refuse what turns a source into a checkpoint, right before it is done, where this host cannot do it.

    Raises:
        BuildRefused: not enough memory.
        StoreFull: not enough room in ``cache``.
    """
    memory = available_memory() if memory is None else memory
    if pending.memory_bytes > memory:
        raise BuildRefused(
            f"{doing} needs about {size_text(pending.memory_bytes)} of memory, and {size_text(memory)} are free; use a "
            "larger machine, or end other programs"
        )
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if pending.disk_bytes > free:
        raise StoreFull(
            f"{doing} needs about {size_text(pending.disk_bytes)} of disk, and {size_text(free)} are free in {existing}"
        )


def available_memory(proc: Path = PROC, groups: Path = ROOT) -> int:
    """Bytes that a new process can have: free memory and swap, within the limits of this process's cgroup and of all
    above it. What files hold there counts as free, since it is given up first.
    """
    free = int(psutil.virtual_memory().available + psutil.swap_memory().free)
    return max(0, min([free, *(limit - used for limit, used in memory_limits(proc, groups))]))
