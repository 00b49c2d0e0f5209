"""What quality is asked for, the limits that a build has to keep, and the sentence when it does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from contract.errors import BuildRefused, UsageError

MAX_REASON = 500


class QualityPlan(Struct, frozen=True):
    """What to measure on, and what to ask for; None takes :data:`DEFAULT_LIMITS`."""

    eval_file: str | None = None
    behaviour_file: str | None = None
    max_kl: float | None = None
    max_perplexity_ratio: float | None = None
    min_agreement: float | None = None
    accept: str | None = None


class Limits(Struct, frozen=True):
    """Mean KL divergence in nats and perplexity over the source's, neither to be exceeded; the least share of positions
    with the source's most likely token.
    """

    max_kl: float
    max_perplexity_ratio: float
    min_agreement: float = 0.4


DEFAULT_LIMITS = {
    "int4": Limits(0.5, 1.5),
    "int8": Limits(0.1, 1.1, 0.7),
    "fp16": Limits(0.02, 1.02, 0.9),
    "bf16": Limits(0.05, 1.05, 0.9),
    "fp32": Limits(0.01, 1.02, 0.95),
}
"""What builds of each precision keep with room to spare; a broken layer misses them by whole nats.

INT4 by rounding in blocks of 32 loses 0.2 to 0.4 nats on models below a billion parameters and far less on larger
ones; blocks of 128 lost 0.66 on SmolLM2-135M, which is the kind of build that must be asked for with a reason.
"""


def choose_limits(
    precision: str, max_kl: float | None, max_ratio: float | None, min_agreement: float | None = None
) -> Limits:
    """The limits of ``precision``, each replaced by what was asked for.

    Raises:
        UsageError: a limit that nothing could keep.
    """
    default = DEFAULT_LIMITS[precision]
    if max_kl is not None and not 0 < max_kl < 1000:
        raise UsageError("--max-kl must be above 0 (nats)", field="max-kl")
    if max_ratio is not None and not 1 <= max_ratio < 1000:
        raise UsageError("--max-perplexity-ratio must be at least 1", field="max-perplexity-ratio")
    if min_agreement is not None and not 0 <= min_agreement <= 1:
        raise UsageError("--min-agreement is a share, 0 to 1", field="min-agreement")
    return Limits(
        min_agreement=default.min_agreement if min_agreement is None else min_agreement,
        max_kl=default.max_kl if max_kl is None else max_kl,
        max_perplexity_ratio=default.max_perplexity_ratio if max_ratio is None else max_ratio,
    )


def check_reason(reason: str | None) -> str | None:
    """The reason given with ``--accept-quality``, cleaned.

    Raises:
        UsageError: it is empty or a novel.
    """
    if reason is None:
        return None
    reason = " ".join(reason.split())
    if not reason or len(reason) > MAX_REASON:
        raise UsageError(f"--accept-quality needs a reason of 1 to {MAX_REASON} characters", field="accept-quality")
    return reason


def find_faults(
    limits: Limits,
    compared: dict[str, Any] | None,
    behaviour: dict[str, Any] | None,
    respelled: Sequence[str] = (),
    *,
    endless: Sequence[str] = (),
    pictures_kl: float | None = None,
) -> list[str]:
    """What is beyond the limits, each as half a sentence with its numbers."""
    faults: list[str] = []
    if respelled:
        faults.append(f"its tokenizer makes other tokens of {len(respelled)} texts, first {respelled[0][:60]!r}")
    if endless:
        faults.append(f"its answers do not end where the source's do, first at {endless[0][:60]!r}")
    if compared is not None:
        if not compared["kl"] <= limits.max_kl:
            faults.append(f"its KL divergence from the source is {compared['kl']:.4g}, the limit {limits.max_kl:g}")
        if not compared.get("top1_agreement", 1.0) >= limits.min_agreement:
            faults.append(
                f"its most likely token is the source's in {100 * compared['top1_agreement']:.1f} % of places, the "
                f"limit {100 * limits.min_agreement:g} %"
            )
        if compared.get("tokenizer_same") is False:
            faults.append("its tokenizer makes other tokens of the text that was read than the source's")
        if not compared["perplexity_ratio"] <= limits.max_perplexity_ratio:
            faults.append(
                f"its perplexity is {compared['perplexity']:.4g} against the source's "
                f"{compared['source_perplexity']:.4g}, a ratio of {compared['perplexity_ratio']:.4g}, "
                f"the limit {limits.max_perplexity_ratio:g}"
            )
    if pictures_kl is not None and not pictures_kl <= limits.max_kl:
        faults.append(
            f"asked about pictures, its KL divergence from the source is {pictures_kl:.4g}, the limit {limits.max_kl:g}"
        )
    if behaviour is not None and behaviour["lost"]:
        lost = behaviour["lost"]
        faults.append(
            f"it fails {len(lost)} of the {behaviour['source_passed']} behaviours that the source passes, "
            f"first {lost[0]!r}"
        )
    return faults


def evaluate_limits(
    limits: Limits,
    accepted: str | None,
    compared: dict[str, Any] | None,
    behaviour: dict[str, Any] | None,
    respelled: Sequence[str] = (),
    *,
    endless: Sequence[str] = (),
    pictures_kl: float | None = None,
) -> dict[str, Any]:
    """The verdict for the manifest: limits, and what was accepted in spite of them with the reason.

    Raises:
        BuildRefused: a limit is not kept and nobody accepted that.
    """
    faults = find_faults(limits, compared, behaviour, respelled, endless=endless, pictures_kl=pictures_kl)
    if faults and accepted is None:
        raise BuildRefused(
            f"the build is too far from its source: {'; '.join(faults)}; calibrate it (--quantizer gptq), "
            'choose another precision, or say why it is good enough with --accept-quality "reason"'
        )
    verdict: dict[str, Any] = {"max_kl": limits.max_kl, "max_perplexity_ratio": limits.max_perplexity_ratio}
    if compared is not None and "top1_agreement" in compared:
        verdict["min_agreement"] = limits.min_agreement
    if faults:
        verdict["accepted"] = {"reason": accepted, "faults": faults}
    return verdict
