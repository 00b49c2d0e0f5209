"""Which refusals are final: one table over all reason codes."""

from __future__ import annotations

import pytest

from contract.causes import CAUSES, Cause
from contract.errors import BundleRefused
from contract.reasons import Reason


def test_every_reason_has_a_cause() -> None:
    assert set(CAUSES) == set(Reason)


@pytest.mark.parametrize("reason", [reason for reason, cause in CAUSES.items() if cause is Cause.BYTES])
def test_what_bytes_say_is_final_only_where_they_are_the_signed_ones(reason: Reason) -> None:
    assert BundleRefused(reason, "no").cause is Cause.DELIVERY
    assert BundleRefused(reason, "no", signed=True).cause is Cause.SIGNED


@pytest.mark.parametrize(
    "reason",
    [
        Reason.NOT_JSON, Reason.DIGEST_MISMATCH, Reason.SIGNATURE_INVALID, Reason.THRESHOLD_NOT_MET,
        Reason.METADATA_ROLLBACK, Reason.METADATA_MIXED, Reason.EXPIRED, Reason.TAR_INVALID, Reason.TOO_LARGE,
    ],
)  # fmt: skip
def test_what_a_transport_can_do_is_never_final(reason: Reason) -> None:
    assert BundleRefused(reason, "no").cause is Cause.DELIVERY


@pytest.mark.parametrize(
    "reason", [Reason.NOT_LISTED, Reason.REVOKED, Reason.EPOCH_ROLLBACK, Reason.REQUIRES_RAM, Reason.GRAPH_INVALID]
)
def test_what_is_signed_and_refused_is_final(reason: Reason) -> None:
    assert BundleRefused(reason, "no").cause is Cause.SIGNED
