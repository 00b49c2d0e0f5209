"""Which promise the batched engine can give: does what a request gets depend on what else runs? Pure.

Three answers: not a bit, because the kernels here are alike for any number of rows; not a bit, because a row that would
run alone is padded to two (``[worker] reproducible``); or by rounding alone, within a bound, in return for the kernel
that is the faster one for a single row.
"""

from __future__ import annotations

from typing import NamedTuple

from agent.engine.batched.self_check import MAX_LONE_DIVERGENCE, Proof, Verification
from agent.engine.interface import Independence
from agent.engine.load_options import Mode
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


class Drafting(NamedTuple):
    """Whether tokens are drafted for a request that runs alone, why, and what is promised then."""

    on: bool
    why: str
    independence: Independence


def settle_drafting(promised: Independence, verification: Verification | None, slots: int, mode: Mode) -> Drafting:
    """Draft where that breaks no promise: where a verified draft is the same bit for bit, or, unless every bit is asked
    for, within what the self-test measured. Where kernels give every bit anyway, only an operator may give that up.
    """
    if mode.speculation == "off":
        return Drafting(False, "off ([worker] speculation)", promised)
    if verification is None:
        return Drafting(False, "off: drafts cannot be verified with this graph or in so little memory", promised)
    if not verification.logits:
        return Drafting(True, "prompt lookup: a verified draft gives the same bits", promised)
    found = f"(measured: {verification.logits:.3g} in the logits, {verification.nats:.3g} nats)"
    against = _against(promised, verification, slots, mode)
    if against:
        return Drafting(False, f"off: {against} {found}", promised)
    if slots > 1:
        promised = Independence(
            False,
            f"drafts are verified when a request runs alone {found}" if promised.reproducible else promised.why,
            logits=max(promised.logits, verification.logits * MARGIN),
            nats=max(promised.nats, verification.nats * MARGIN),
        )
    return Drafting(True, f"prompt lookup, within rounding {found}", promised)


def _against(promised: Independence, verification: Verification, slots: int, mode: Mode) -> str:
    """Why drafts that are rounded differently are not verified; empty where nothing speaks against it."""
    if mode.reproducible:
        return "a verified draft is rounded differently here, and [worker] reproducible asks for not a bit"
    if not verification.nats <= MAX_LONE_DIVERGENCE:
        return "a verified draft is answered differently here"
    if promised.reproducible and slots > 1 and mode.speculation == "auto":
        return 'answers here are the same bit for bit, and would not be; [worker] speculation = "on" has it so'
    return ""


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
