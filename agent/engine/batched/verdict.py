"""What the self-test found on this processor, and keeping it: measured once, read at every load after.

It lies beside the derived weights, in a folder that is named after processor and runtime, under the bundle's digest,
and is hashed like them: another processor, runtime or bundle has none, and a damaged one is as good as none. Measured
for as many slots as there ever are and for the whole of what a request could reach, it holds for every pool that memory
allows.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from agent.engine.batched.graph import Decoder
from agent.engine.batched.pool import Pool
from agent.engine.batched.runner import Runner
from agent.engine.batched.self_check import (
    LONG,
    VERIFIED,
    Proof,
    Verification,
    exact_width,
    prove_all,
    prove_verification,
)
from agent.engine.batched.slicing import SLICE
from contract.bundle.device_plan import MAX_SLOTS

FILE = "self_test.json"
MAX_FILE_BYTES = 4096

WIDE_SLICE = 64
"""Prompt tokens a step while nobody decodes: a quarter of the runs, and still a short wait for a cancel."""

LEAST_REACH = 1024
"""Tokens: the longest text that is scored with a model that is loaded for its verdict is far shorter."""


class Verdict(Struct, frozen=True, forbid_unknown_fields=True):
    """``proof`` and the prompt tokens to read at a time when nobody waits (``wide``), on so many ``threads``; for pools
    of at most so many ``slots``. ``shows_all``: the graph has logits for every token; older ones do not say.
    ``verification`` is None where drafts cannot be verified, or nobody looked.
    """

    proof: Proof
    wide: int
    threads: int
    slots: int = MAX_SLOTS
    shows_all: bool | None = None
    verification: Verification | None = None


def measure(runner: Runner, pool: Pool, decoder: Decoder, threads: int) -> Verdict:
    """Run the self-test; what it holds for is what ``pool`` has room for.

    Raises:
        Declined: a proof fails.
    """
    proof = prove_all(runner, pool, decoder, SLICE)
    wide = exact_width(runner, pool, slice_length=SLICE, width=WIDE_SLICE, vocab_size=decoder.vocab_size)
    verification = None
    if runner.shows_all and pool.length >= LONG + VERIFIED:
        verification = prove_verification(runner, pool, slice_length=SLICE, vocab_size=decoder.vocab_size)
    return Verdict(proof, wide, threads, pool.slots, runner.shows_all, verification)


def trial_size(decoder: Decoder, allowed: int) -> tuple[int, int]:
    """Slots and tokens of a pool whose verdict holds for every other one, or for those of fewer slots where a process
    may not allocate so much: what is not written takes no memory, but is counted.
    """
    window = decoder.window if decoder.window < decoder.context_length else 0  # else no token is ever out of it
    length = min(decoder.context_length, max(LEAST_REACH, window, decoder.rope_switch) + 2 * LONG)
    return max(2, min(MAX_SLOTS, allowed // (length * decoder.kv_bytes_per_token))), length


def recorded(derived_dir: Path | None, threads: int) -> Verdict | None:
    """What was found before on so many threads; None if nothing was, or it cannot be read."""
    if derived_dir is None:
        return None
    try:
        data = (derived_dir / FILE).read_bytes()[:MAX_FILE_BYTES]
        found = msgspec.json.decode(data, type=Verdict)
    except (OSError, msgspec.MsgspecError):
        return None
    return found if found.threads == threads and found.wide in (SLICE, WIDE_SLICE) else None
