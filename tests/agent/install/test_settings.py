"""A desired document may only tighten."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from agent.install.settings import InstallSettings, tighten
from contract.errors import BundleRefused
from contract.mqtt.desired import Policy
from contract.reasons import Reason

OWN = InstallSettings(
    probation_seconds=60, probation_requests=10, min_tokens_per_second=5, swap="drain", on_revoked="replace"
)


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        (Policy(probation_seconds=59), "policy.probation_seconds"),
        (Policy(probation_requests=9), "policy.probation_requests"),
        (Policy(min_tokens_per_second=4.9), "policy.min_tokens_per_second"),
        (Policy(swap="overlap"), "policy.swap"),
        (Policy(on_revoked="keep"), "policy.on_revoked"),
    ],
)
def test_a_looser_policy_is_refused(policy: Policy, field: str) -> None:
    with pytest.raises(BundleRefused) as refused:
        tighten(OWN, policy)
    assert (refused.value.reason, refused.value.field) == (Reason.POLICY_LOOSER, field)


def test_a_stricter_policy_is_followed() -> None:
    policy = Policy(probation_seconds=600, probation_requests=0, min_tokens_per_second=6, swap="drain")
    result = tighten(OWN, policy)
    assert (result.probation_seconds, result.probation_requests, result.min_tokens_per_second) == (600, 0, 6)


def test_without_a_policy_nothing_changes() -> None:
    assert tighten(OWN, UNSET) is OWN
    assert tighten(OWN, Policy()) == OWN


def test_probation_by_time_only_cannot_be_cut_short_by_requests() -> None:
    with pytest.raises(BundleRefused):
        tighten(InstallSettings(probation_requests=0), Policy(probation_requests=1))


@given(st.integers(0, 600), st.integers(0, 100), st.floats(0, 100))
def test_no_policy_makes_probation_easier(seconds: int, requests: int, speed: float) -> None:
    try:
        result = tighten(
            OWN, Policy(probation_seconds=seconds, probation_requests=requests, min_tokens_per_second=speed)
        )
    except BundleRefused:
        return
    assert result.probation_seconds >= OWN.probation_seconds
    assert result.probation_requests == 0 or result.probation_requests >= OWN.probation_requests
    assert result.min_tokens_per_second >= OWN.min_tokens_per_second
