"""What is to be built: every option named, none left to chance.

The model builder ignores option names that it does not know, and did so for its own older ones (``int4_block_size``
and the rest of the ``int4_`` family), so the only place that writes its option strings is here, and the produced
graph is compared with the plan afterwards (:mod:`packager.graph.facts`).
"""

from __future__ import annotations

import difflib
from typing import Literal

import msgspec
from msgspec import Struct

from contract.bundle.manifest import Behaviour
from contract.errors import UsageError
from contract.identifiers import check_bundle_name, check_version
from packager.evaluate.gates import QualityPlan
from packager.sources.checkpoint import Checkpoint
from packager.sources.opening import SourceOptions

OFFERED: dict[str, tuple[str, ...]] = {
    "cpu": ("int4", "int8", "fp32"),
    "cuda": ("int4", "int8", "fp16", "bf16", "fp32"),
    "dml": ("int4", "fp16"),
    "webgpu": ("int4", "int8"),
}
"""Precisions of onnxruntime-genai 0.18's builder by execution provider, as its help lists them (a test compares)."""

QUANTIZERS: dict[str, tuple[str, ...]] = {
    "rtn": (),
    "k-quant": ("algo_config=k_quant",),
    "k-quant-mixed": ("algo_config=k_quant_mixed",),
    "gptq-fast": (),
    "gptq": (),
    "auto-round": (),
}
"""Round to nearest; k-quants; k-quants with 8 bits where it hurts most (lm_head, first and last layers); rounding by
what comes out, on a calibration text, with GPTQ in one pass, with GPTQ and tuned scales, or with the auto-round library
(:mod:`packager.quantize`)."""

AUTO = "auto"
"""The quantizer that nobody named: ``gptq-fast`` where it applies (:func:`settle_quantizer`), else ``rtn``."""

FAST = "gptq-fast"
CALIBRATED = (FAST, "gptq", "auto-round")
TUNED = ("gptq", "auto-round")
TUNED_BLOCK = 32

GPTQ_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose GPTQ checkpoints, with zero points, were built and compared with their sources here."""

TUNED_PARAMETERS = 600_000_000
"""``gptq`` tunes the scales of models up to this, which takes 16 bytes of memory a parameter; larger ones go through
layer by layer, as with ``gptq-fast``, on the longer text.
"""

CALIBRATION_TEXTS = ("auto", "self", "shipped")
"""What ``--calibration`` names beside a file: the quantizer's own choice, what the source model writes, a short text
that is shipped."""

BLOCK_SIZES = (16, 32, 64, 128, 256)
ACCURACY_LEVELS = (0, 1, 2, 3, 4)
QUANTISED = ("int4", "int8")
EMBEDDINGS: dict[str, tuple[str, ...]] = {"float": (), "int8": (), "int4": ()}
"""Types of an embedding that is not the lm_head's own table."""

KV_KINDS = {"float": (), "int8": ("cpu", "cuda")}
"""Types of the key-value cache with the providers that they are limited to; float is that of inputs and outputs."""


class BuildPlan(Struct, frozen=True):
    """One build. ``block_size`` weights share a scale; ``accuracy_level`` 4 computes in int8, 1 in fp32.

    ``calibration`` is a text file or one of :data:`CALIBRATION_TEXTS`, and counts for calibrated quantizers; a
    file also for the scales of an INT8 cache (``kv``; ``auto`` lets :mod:`packager.build.kv_choice` choose).
    ``license`` overrides what the source says of itself; ``arch`` is what the bundle may be installed on.

    ``embedding`` is the type of an embedding that is not shared with the lm_head, where weights are quantised for CPUs.

    ``adapter_slots`` gives every product of a layer a place for adapters. ``behaviour`` are signed defaults; what it
    leaves open, the source's own ``generation_config.json`` may say. ``source_sha256`` is what the source must be.

    ``sees`` is no option, but what the source is: its decoder reads embeddings, of words and of pictures. Nor is
    ``whole_caches``: layers with a window keep the whole context, as those of a decoder that reads embeddings do.
    """

    source: str
    name: str
    version: str
    epoch: int = 0
    precision: str = "int4"
    ep: str = "cpu"
    quantizer: str = AUTO
    block_size: int = 32
    accuracy_level: int = 4
    license: str | None = None
    calibration: str = "auto"
    adapter_slots: bool = False
    kv: str = AUTO
    embedding: str = "int8"
    quality: QualityPlan = QualityPlan()
    origin: SourceOptions = SourceOptions()
    behaviour: Behaviour = Behaviour()
    source_sha256: str | None = None
    sees: bool = False
    whole_caches: bool = False
    arch: tuple[Literal["x86_64", "aarch64"], ...] = ("x86_64", "aarch64")

    @property
    def quantised(self) -> bool:
        """Whether weights are stored in 4 or 8 bits."""
        return self.precision in QUANTISED

    @property
    def own_embedding(self) -> str:
        """The type of an embedding that is not the lm_head's own table: ``float``, ``int8`` or ``int4``."""
        return self.embedding if self.quantised and self.ep == "cpu" else "float"


def check_plan(plan: BuildPlan) -> BuildPlan:
    """Return ``plan`` if the builder offers all of it together.

    Raises:
        BundleRefused: name or version cannot be used.
        UsageError: an option or a combination that does not exist, with those that do.
    """
    check_bundle_name(plan.name)
    check_version(plan.version)
    if not 0 <= plan.epoch <= 2**31:
        raise UsageError(f"the epoch must be between 0 and {2**31}", field="epoch")
    _choose("ep", plan.ep, OFFERED)
    if plan.precision not in OFFERED[plan.ep]:
        raise UsageError(
            f"{plan.precision} is not offered for {plan.ep}; choose one of {', '.join(OFFERED[plan.ep])} "
            f"(offered are: {_list_offered()})",
            field="precision",
        )
    _choose("quantizer", plan.quantizer, {AUTO: (), **QUANTIZERS})
    if plan.quantizer not in ("rtn", AUTO) and plan.precision != "int4":
        raise UsageError(f"the quantizer {plan.quantizer} makes int4; {plan.precision} has none but rtn")
    if plan.quantizer in TUNED and plan.block_size != TUNED_BLOCK:
        raise UsageError(f"the quantizer {plan.quantizer} works in blocks of {TUNED_BLOCK}", field="block-size")
    if plan.quantizer != AUTO or plan.precision != "int4":
        _check_calibration(plan)
    _choose("embedding", plan.embedding, EMBEDDINGS)
    _choose("kv", plan.kv, {AUTO: (), **KV_KINDS})
    if plan.kv == "int8" and (plan.ep not in KV_KINDS[plan.kv] or not plan.quantised):
        raise UsageError(
            f"--kv {plan.kv} is offered with int4 and int8 weights for {' and '.join(KV_KINDS[plan.kv])}", field="kv"
        )
    if plan.adapter_slots and (plan.ep != "cpu" or io_type(plan) != "fp32"):
        raise UsageError("--adapter-slots is for --ep cpu with int4, int8 or fp32", field="adapter-slots")
    if plan.block_size not in BLOCK_SIZES:
        raise UsageError(f"the block size must be one of {', '.join(map(str, BLOCK_SIZES))}", field="block-size")
    if plan.accuracy_level not in ACCURACY_LEVELS:
        raise UsageError("the accuracy level must be 0 to 4; 4 is the fast one on CPUs", field="accuracy-level")
    return plan


def _check_calibration(plan: BuildPlan) -> None:
    """Refuse a calibration text that nothing would read."""
    if plan.calibration != "auto" and plan.quantizer not in CALIBRATED and plan.kv != "int8":
        raise UsageError(
            f"--calibration is for --quantizer {', '.join(CALIBRATED[:-1])} or {CALIBRATED[-1]} and --kv int8",
            field="calibration",
        )


def _choose(option: str, value: str, offered: dict[str, tuple[str, ...]]) -> None:
    if value not in offered:
        near = difflib.get_close_matches(value, offered, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(offered)}"
        raise UsageError(f"{value!r} is not a known {option}; {hint}", field=option)


def settle_quantizer(plan: BuildPlan, checkpoint: Checkpoint) -> BuildPlan:
    """``plan`` with the quantizer that nobody named: ``gptq-fast`` for INT4 on a CPU of a plain checkpoint whose layers
    are dense, which is where it was measured.

    Raises:
        UsageError: a calibration text was named, and nothing would read it.
    """
    if plan.quantizer != AUTO:
        return plan
    plain = plan.precision == "int4" and plan.ep == "cpu" and checkpoint.quantization is None
    dense = not any(checkpoint.config.get(name) for name in EXPERTS) and not checkpoint.needs_code
    settled = msgspec.structs.replace(plan, quantizer=FAST if plain and dense else "rtn")
    _check_calibration(settled)
    return settled


EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Keys by which configurations say how many experts a layer has."""


def check_source(plan: BuildPlan, checkpoint: Checkpoint) -> str:
    """The quantizer to put on record, after checking that the checkpoint's own bits are those that were asked for.

    Raises:
        UsageError: the weights are quantised already, to something else, or the model sees and is not for CPUs.
    """
    if plan.sees and plan.ep != "cpu":
        raise UsageError(
            f"a model that sees is built for CPUs only, not for {plan.ep}: leave --ep out, or add --text-only for a "
            "bundle of the model that reads",
            field="ep",
        )
    plan, stored = settle_quantizer(plan, checkpoint), checkpoint.quantization
    if stored is None:
        return plan.quantizer if plan.quantised else "none"
    wanted = (f"int{stored.bits}", stored.group_size, "rtn")
    if (plan.precision, plan.block_size, plan.quantizer) != wanted:
        raise UsageError(
            f"the checkpoint is quantised with {stored.method} to {stored.bits} bits in groups of {stored.group_size} "
            f"and stays so: ask for --precision int{stored.bits} --block-size {stored.group_size} without a quantizer, "
            "or name the checkpoint that it was made from",
            field="precision",
        )
    return stored.method


def goes_layer_by_layer(plan: BuildPlan, parameters: int) -> bool:
    """Whether a calibrating quantizer holds one layer of a model of so many parameters at a time, and tunes nothing."""
    return plan.quantizer == FAST or (plan.quantizer == "gptq" and parameters > TUNED_PARAMETERS)


def io_type(plan: BuildPlan) -> str:
    """The type of inputs, outputs, caches and weights that are not quantised."""
    if plan.quantised:
        return "fp32" if plan.ep == "cpu" else "fp16"
    return plan.precision


def kv_type(plan: BuildPlan) -> str:
    """The type of the key-value cache."""
    return plan.kv if plan.kv == "int8" else io_type(plan)


def _list_offered() -> str:
    return "; ".join(f"{', '.join(precisions)} for {ep}" for ep, precisions in OFFERED.items())


WHOLE_CACHES = "windowed_kv_cache=false"
SEEING = ("exclude_embeds=true", WHOLE_CACHES)
"""Options of a decoder that is given embeddings of words and pictures. Caches as long as a window know no mask but a
causal one (:mod:`packager.vision.picture_mask`)."""


def builder_options(plan: BuildPlan) -> list[str]:
    """The builder's extra options, by the names that work."""
    seeing = [*SEEING] if plan.sees else [WHOLE_CACHES] if plan.whole_caches else []
    if not plan.quantised:
        return seeing
    return [
        *seeing,
        f"block_size={plan.block_size}",
        f"accuracy_level={plan.accuracy_level}",
        *QUANTIZERS.get(plan.quantizer, ()),
    ]
