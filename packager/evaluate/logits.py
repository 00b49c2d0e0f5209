"""Whether the builder's graph of a checkpoint computes what transformers does: logits in fp32 of two of its layers.

The other proofs look at what a graph says of itself; this one runs it, in every build that has the memory for it,
before the whole model is built. The result is kept by the source's digest, for all later builds of that source.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from contract.errors import BuildRefused
from packager.build import model_builder_process as builder_process
from packager.build import workarounds
from packager.build.build_cache import have, hold, sweep
from packager.build.estimate import available_memory
from packager.evaluate import ends, logits_process
from packager.evaluate.evidence import BUILD_TOOLS, tool_versions
from packager.evaluate.jobs import LOGITS, LogitsJob, LogitsResult, Reference
from packager.graph import dequantised, rope, truncation
from packager.graph.truncation import choose_layers, truncated_bytes
from packager.sources.checkpoint import Checkpoint
from packager.subprocess_job import from_json, run_child, to_json

BOUND = 1e-3
"""Of the spread (standard deviation) of the source's logits: fp32 on both sides differs by a few millionths of it, in
every family; a wrong epsilon by some thousandths, anything larger by tenths."""

BYTES_PER_PARAMETER = 9
"""Of the truncated model: the builder holds its weights twice in fp32."""

PROCESS_BYTES = 900 * 2**20
COPIES = 6
"""How often a cache lies in memory: in both models' hands, twice while one grows."""

MAX_CACHE_BYTES = 2**30
"""Keys and values of all layers at a boundary; 8 heads of 128 have half of it at 65,536 positions."""

FILE = "logits.json"
CODE = (builder_process, dequantised, ends, logits_process, rope, truncation, workarounds)
"""What decides the result beside the checkpoint and the tools."""


class LogitsProof(Struct, frozen=True, omit_defaults=True):
    """What was found with ``layers`` of the source at ``positions`` positions, beyond each of ``boundaries``, too.

    All differences are the largest among the logits of all positions; ``spread`` is the standard deviation of the
    source's. ``own_furthest`` is against the source run in the type of its weights, ``own_rounding`` how far that is
    from the source itself in fp32. ``omitted`` says what could not be afforded.
    """

    layers: list[int]
    boundaries: list[int]
    positions: int
    spread: float
    furthest: float
    own_type: str
    own_furthest: float | None = None
    own_rounding: float | None = None
    workarounds: list[str] = []
    omitted: list[str] = []

    def __str__(self) -> str:
        """One line for the display."""
        beyond = "".join(f", also beyond {boundary} positions" for boundary in self.boundaries)
        return (
            f"layers {' and '.join(map(str, self.layers))} in fp32 give the source's logits to "
            f"{self.furthest / self.spread:.0e} of their spread{beyond}{''.join(f'; {each}' for each in self.omitted)}"
        )

    def describe(self) -> dict[str, Any]:
        """For the evidence."""
        found = msgspec.to_builtins(self)
        found.pop("workarounds", None)
        return {key: float(f"{value:.2g}") if isinstance(value, float) else value for key, value in found.items()}


class Unaffordable(Struct, frozen=True):
    """Why nothing was computed."""

    reason: str

    def __str__(self) -> str:
        """One line for the display."""
        return f"logits of two layers were not compared with the source's: {self.reason}"

    def describe(self) -> dict[str, Any]:
        """For the evidence."""
        return {"not_compared": self.reason}


def find_boundaries(config: Mapping[str, Any]) -> list[int]:
    """Positions from which the model computes otherwise: its window's end and where its rotary factors switch."""
    context = int(config.get("max_position_embeddings") or 0)
    found = set()
    window = config.get("sliding_window")
    if isinstance(window, int) and config.get("use_sliding_window") is not False:
        found.add(window)
    parameters = config.get("rope_parameters") or {}
    if parameters.get("rope_type") == "longrope":
        found.add(int(parameters.get("original_max_position_embeddings") or context))
    room = sum(logits_process.AROUND)
    return sorted(boundary for boundary in found if 0 < boundary <= context - room)


def compare_logits(
    checkpoint: Checkpoint,
    digest: str,
    reference: Reference | None,
    *,
    cache: Path,
    log: Path,
    on_progress: Callable[[float, float], None] | None = None,
    memory: int | None = None,
) -> LogitsProof | Unaffordable:
    """What two layers of ``checkpoint`` show; ``memory`` is what this host has, found out when not given.

    Raises:
        BuildRefused: the graph does not compute what the source does, or one of them cannot be run.
    """
    if reference is None:
        return Unaffordable("the checkpoint runs code of its own")
    config = reference.config
    layers = choose_layers(config)
    size, parameters = truncated_bytes(checkpoint.path, layers)
    boundaries, omitted, cache_bytes = [], [], 0
    for boundary in find_boundaries(config):
        needed = boundary * _bytes_per_position(config, len(layers))
        if needed > MAX_CACHE_BYTES:
            omitted.append(f"nothing beyond {boundary} positions: keys and values of that many take {needed >> 20} MiB")
        else:
            boundaries.append(boundary)
            cache_bytes += needed
    cache_dir = cache / "logits"
    entry = cache_dir / _key(digest, layers, boundaries)
    sweep(cache_dir)

    def make(staging: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=f".{entry.name}.", dir=cache_dir) as scratch:
            quantization = checkpoint.quantization
            job = LogitsJob(
                checkpoint=str(checkpoint.path),
                config=config,
                layers=layers,
                boundaries=boundaries,
                method=None if quantization is None else quantization.method,
                bits=0 if quantization is None else quantization.bits,
                group=0 if quantization is None else quantization.group_size,
                scratch=scratch,
            )
            result = run_child(LOGITS, job, log, on_progress=on_progress)
        (staging / FILE).write_text(to_json(result), "utf-8")

    if not hold(entry, mark=FILE):
        lacking = _lacking(cache_dir, size, parameters, cache_bytes, available_memory() if memory is None else memory)
        if lacking is not None:
            return Unaffordable(lacking)
        have(entry, make, mark=FILE)
    found = from_json((entry / FILE).read_bytes(), LogitsResult)
    proof = LogitsProof(layers=layers, boundaries=boundaries, omitted=omitted, **msgspec.structs.asdict(found))
    _refuse(proof)
    return proof


def compare_workarounds(shown: LogitsProof | Unaffordable, built: Sequence[str]) -> list[str]:
    """What would make ``shown`` say nothing of the build that needed the workarounds ``built``, as half a sentence."""
    if isinstance(shown, Unaffordable) or set(shown.workarounds) == set(built):
        return []
    other = sorted({*shown.workarounds} ^ {*built})
    return [f"the two layers that were compared needed other workarounds than the whole model: {', '.join(other)}"]


def _bytes_per_position(config: Mapping[str, Any], layers: int) -> int:
    heads = int(config.get("num_key_value_heads") or config["num_attention_heads"])
    size = int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    return 2 * 4 * heads * size * layers


def _lacking(cache_dir: Path, size: int, parameters: int, cache_bytes: int, memory: int) -> str | None:
    needed = PROCESS_BYTES + BYTES_PER_PARAMETER * parameters + COPIES * cache_bytes
    if needed > memory:
        return f"that needs about {needed / 2**30:.1f} GiB of memory, and {memory / 2**30:.1f} GiB are free"
    room, free = size + 2 * 4 * parameters, shutil.disk_usage(cache_dir).free
    if room > free:
        return f"that needs about {room / 2**30:.1f} GiB of disk, and {free / 2**30:.1f} GiB are free in the cache"
    return None


def _key(digest: str, layers: list[int], boundaries: list[int]) -> str:
    parts = [digest, layers, boundaries, tool_versions(BUILD_TOOLS), [inspect.getsource(module) for module in CODE]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _refuse(proof: LogitsProof) -> None:
    what = f"with layers {' and '.join(map(str, proof.layers))} of the source alone, in fp32, the graph's logits are"
    if proof.spread == 0:
        raise BuildRefused(
            f"with layers {' and '.join(map(str, proof.layers))} of the source alone, all its logits are the same: the "
            "weights of its last norm or of others are zeros, as an interrupted download leaves them; fetch the files "
            "again"
        )
    # Not >: what is no number must not pass.
    if not proof.furthest <= BOUND * proof.spread:
        raise BuildRefused(
            f"{what} off by {proof.furthest:.3g} of a spread of {proof.spread:.3g}, which is no rounding: the model "
            "builder reads this checkpoint otherwise than transformers; report it with its config.json"
        )
    if proof.own_furthest is None or proof.own_rounding is None:
        return
    if not proof.own_furthest <= proof.own_rounding + BOUND * proof.spread:
        raise BuildRefused(
            f"{what} off by {proof.own_furthest:.3g} from the source in {proof.own_type}, which is itself off by "
            f"{proof.own_rounding:.3g} from fp32; report it with the source's config.json"
        )
