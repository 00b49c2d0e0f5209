"""Which promise the batched engine can give: does what a request gets depend on what else runs? Pure.

Three answers: not a bit, because the kernels here are alike for any number of rows; not a bit, because a row that would
run alone is padded to two (``[worker] reproducible``); or by rounding alone, within a bound, in return for the kernel
that is the faster one for a single row.
"""

from __future__ import annotations

from agent.engine.batched.self_check import MAX_LONE_DIVERGENCE, Proof
from agent.engine.interface import Independence
from agent.engine.runtime_errors import Declined

MARGIN = 8.0
"""The self-test sees a handful of tokens. Of 1,000 others on AVX2 the farthest off was 6 times as far in nats and 4
times in the logits."""


def promise(proof: Proof, slots: int, *, reproducible: bool) -> Independence:
    """What holds for an engine of so many ``slots`` in this mode.

    Raises:
        Declined: ``reproducible`` is asked for and cannot be had, or a lone request is off by more than rounding.
    """
    if slots == 1:
        return Independence(True, "one request runs at a time")
    if proof.rows:
        if reproducible:
            raise Declined(
                f"requests in one batch change each other here (by {proof.rows:.3g} in the logits), and [worker] "
                "reproducible asks for not a bit"
            )
        return _bounded("kernels here round differently in batches of different sizes", proof)
    if not proof.lone:
        return Independence(True, "kernels here give a row the same bits alone and in a batch")
    if reproducible:
        return Independence(True, "a request that runs alone is padded to two rows ([worker] reproducible)", pads=True)
    return _bounded("a request that runs alone takes another kernel here", proof)


def _bounded(what: str, proof: Proof) -> Independence:
    if not proof.lone_nats <= MAX_LONE_DIVERGENCE:
        raise Declined(f"a request that runs alone is answered differently here (by {proof.lone_nats:.3g} nats)")
    seen = max(proof.rows, proof.lone)
    return Independence(
        False,
        f"{what} (measured: {seen:.3g} in the logits, {proof.lone_nats:.3g} nats)",
        logits=seen * MARGIN,
        nats=proof.lone_nats * MARGIN,
    )
