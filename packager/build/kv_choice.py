"""Which type a model's key-value cache gets where nobody says: by what it takes, and by what INT8 does to the answers.

Where heads share keys and values a cache is small, and stays as it is. Where they do not, a request of some thousand
tokens takes more memory than the weights: there both are built, compared with the source on the same text, and INT8 is
taken unless it costs more than a stated bound.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from contract.bundle.genai_config import GenaiFacts
from contract.errors import BuildRefused
from packager.build.jobs import BuilderReport
from packager.build.plan import AUTO, BuildPlan
from packager.build.progress import BuildProgress
from packager.evaluate.assessment import Assessment
from packager.graph.facts import GraphFacts
from packager.sources.checkpoint import Checkpoint
from packager.sources.shape import ModelShape

LARGE_TOKEN_BYTES = 65536
"""In fp32: a slot of 2,048 tokens takes 128 MiB."""

MAX_MORE_KL = 0.02
"""Nats a token that an INT8 cache may add: INT4 weights cost 0.14 to 0.34, an INT8 cache 0.01 (SmolLM2)."""

FLOAT, INT8 = "float", "int8"


class KvChoice(Struct, frozen=True):
    """``kind`` and ``why``; KL divergences from the source with either, where they were measured."""

    kind: str
    why: str
    kl_float: float | None = None
    kl_int8: float | None = None
    bound: float = MAX_MORE_KL


class MadeGraph(Struct, frozen=True):
    """A graph that was built as ``plan`` says, read back and assessed; ``kept`` are its entries in the build cache."""

    plan: BuildPlan
    report: BuilderReport
    kept: list[Path]
    config: GenaiFacts
    graph: GraphFacts
    assessed: Assessment


Make = Callable[[BuildPlan, Path], MadeGraph]
"""Makes the graph of a plan in a folder."""


def settle_kv(plan: BuildPlan, checkpoint: Checkpoint, shape: ModelShape) -> BuildPlan:
    """``plan`` with the type of cache that nobody named, unless it has to be measured: then it stays ``auto``."""
    if plan.kv != AUTO or (is_large(checkpoint, shape) and plan.quantised and plan.ep == "cpu"):
        return plan
    return replace(plan, kv=FLOAT)


def is_large(checkpoint: Checkpoint, shape: ModelShape) -> bool:
    """Whether each head has keys and values of its own, and a token of them takes much. What is quantised already
    cannot be run as a source, so nothing could be compared.
    """
    heads = checkpoint.config.get("num_attention_heads")
    grouped = checkpoint.config.get("num_key_value_heads", heads) != heads
    return not grouped and shape.kv_token_bytes >= LARGE_TOKEN_BYTES and checkpoint.quantization is None


def choose_kv(plain: Assessment, quantised: Assessment | BuildRefused) -> KvChoice:
    """``quantised`` is the same model with an INT8 cache, or why it was refused."""
    if isinstance(quantised, BuildRefused):
        return KvChoice(FLOAT, f"with an INT8 cache it is refused: {quantised.message}", bound=MAX_MORE_KL)
    before, after = (found.summary.get("kl") for found in (plain, quantised))
    if before is None or after is None:
        return KvChoice(FLOAT, "there is no source to measure an INT8 cache against")
    more = after - before
    reason = f"an INT8 cache adds {more:.4f} nats a token to {before:.4f}, and {MAX_MORE_KL} are allowed"
    return KvChoice(INT8 if more <= MAX_MORE_KL else FLOAT, reason, before, after, MAX_MORE_KL)


def make_with_measured_cache(
    plan: BuildPlan, make: Make, staged: Path, progress: BuildProgress
) -> tuple[MadeGraph, KvChoice | None]:
    """The graph in ``staged``, with the cache that ``plan`` names, or the better one; None where nothing was chosen.

    Raises:
        Whatever ``make`` raises; a refusal of the graph with an INT8 cache is a reason to do without.
    """
    if plan.kv != AUTO:
        return make(plan, staged), None
    plain = make(replace(plan, kv=FLOAT), staged)
    with tempfile.TemporaryDirectory(prefix=f"{staged.name}.kv-", dir=staged.parent) as folder:
        try:
            quantised = make(replace(plan, kv=INT8), Path(folder))
        except BuildRefused as refused:
            choice = choose_kv(plain.assessed, refused)
            progress.message(choice.why)
            return plain, choice
        choice = choose_kv(plain.assessed, quantised.assessed)
        progress.message(choice.why)
        both = [*plain.kept, *quantised.kept]
        if choice.kind == FLOAT:
            return replace(plain, kept=both), choice
        for path in staged.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in Path(folder).iterdir():
            path.rename(staged / path.name)
        return replace(quantised, kept=both), choice
