"""Which refusals are final: one table over all reason codes."""

from __future__ import annotations

from enum import Enum

from contract.reasons import Reason


class Cause(Enum):
    """Who can bring a reason about, which decides whether trying again makes sense."""

    SIGNED = "what is signed, or what was asked for: final until it changes"
    DELIVERY = "whoever carries the bytes, by a cache, a captive portal or an attack: retried, elsewhere and later"
    BYTES = "as SIGNED of bytes whose signed digest matched, as DELIVERY of any others"
    DEVICE = "this device, for now: retried"


CAUSES: dict[Reason, Cause] = {
    **dict.fromkeys(
        (
            Reason.TOO_LARGE, Reason.TOO_DEEP, Reason.DUPLICATE_KEY, Reason.NOT_FINITE, Reason.NOT_UTF8,
            Reason.NOT_JSON, Reason.NUMBER_RANGE, Reason.SCHEMA_INVALID, Reason.UNSAFE_PATH, Reason.UNSAFE_NAME,
            Reason.METADATA_INVALID, Reason.METADATA_MIXED, Reason.FILE_EXTRA,
        ),
        Cause.BYTES,
    ),
    **dict.fromkeys(
        (
            # A signature can be cut off on the way, a key put in before any signature was verified, and what was
            # valid yesterday be sent today: none of these says anything about what the publisher signed.
            Reason.SIGNATURE_INVALID, Reason.THRESHOLD_NOT_MET, Reason.KEY_REFUSED, Reason.METADATA_ROLLBACK,
            Reason.EXPIRED, Reason.SOURCE_OLDER, Reason.DIGEST_MISMATCH, Reason.SIZE_MISMATCH, Reason.FILE_MISSING,
            Reason.TAR_INVALID, Reason.SOURCE_UNAVAILABLE, Reason.SOURCE_TOO_SLOW,
        ),
        Cause.DELIVERY,
    ),
    **dict.fromkeys(
        (
            Reason.NOT_LISTED, Reason.REVOKED, Reason.EPOCH_ROLLBACK, Reason.CHUNKS_INVALID, Reason.CONFIG_NOT_ALLOWED,
            Reason.GRAPH_INVALID, Reason.MODEL_INCOMPLETE, Reason.ADAPTER_INVALID, Reason.REQUIRES_UNKNOWN,
            Reason.REQUIRES_ARCH, Reason.REQUIRES_ISA, Reason.REQUIRES_RAM, Reason.REQUIRES_DISK,
            Reason.REQUIRES_RUNTIME, Reason.REQUIRES_AGENT, Reason.REQUIRES_EP, Reason.BASE_MISSING,
            Reason.DESIRED_INVALID, Reason.SOURCE_NOT_CONFIGURED, Reason.POLICY_LOOSER, Reason.QUARANTINED,
            Reason.ATTEMPTS_EXHAUSTED, Reason.CANARY_LOAD_FAILED, Reason.CANARY_NOT_FINITE, Reason.CANARY_DRIFT,
            Reason.CANARY_NO_STOP, Reason.CANARY_MEMORY, Reason.CANARY_TIMEOUT, Reason.PROBATION_CRASHED,
            Reason.PROBATION_ERRORS, Reason.PROBATION_TOO_SLOW, Reason.OPERATOR,
        ),
        Cause.SIGNED,
    ),
    **dict.fromkeys(
        (
            Reason.TRUST_STATE_LOST, Reason.SWAP_LIMIT, Reason.STORE_FULL, Reason.STORE_BROKEN, Reason.STATE_LOCKED,
            Reason.ENGINE_FAILED, Reason.INTERRUPTED, Reason.INTERNAL_ERROR, Reason.STORED_DATA_INVALID,
        ),
        Cause.DEVICE,
    ),
}  # fmt: skip
"""The one place that says which refusals are final; a test holds it against :class:`Reason`."""


def cause_of(reason: Reason, *, signed: bool) -> Cause:
    """Who brought ``reason`` about; ``signed``: it is about what a trusted signature vouches for."""
    cause = CAUSES[reason]
    if cause is Cause.BYTES:
        return Cause.SIGNED if signed else Cause.DELIVERY
    return cause
