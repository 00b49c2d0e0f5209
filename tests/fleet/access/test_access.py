"""Roles, passwords, secrets and the throttle."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import RequestInvalid
from fleet.access import throttle as throttling
from fleet.access.passwords import check_password, hash_password, verify_password
from fleet.access.roles import Permission, Role, check_name, permissions, read_roles
from fleet.access.secrets import TOKEN_PREFIX, csrf_token, hash_secret, make_secret, make_token, same
from fleet.access.throttle import FREE_ATTEMPTS, MAX_ACCOUNT_SECONDS, MAX_ADDRESS_SECONDS, Throttle


def test_what_roles_permit() -> None:
    assert permissions([Role.VIEWER]) == {Permission.READ}
    assert permissions([Role.PROMPTER]) == {Permission.READ, Permission.PROMPT}
    assert Permission.APPROVE not in permissions([Role.OPERATOR])
    assert permissions([Role.APPROVER]) == {Permission.READ, Permission.APPROVE}
    assert permissions([Role.VIEWER, Role.APPROVER]) == permissions([Role.APPROVER])
    assert permissions([Role.ADMIN]) == set(Permission)
    assert permissions([]) == frozenset()


def test_roles_are_read_by_name() -> None:
    assert read_roles(["approver", "viewer", "viewer"]) == (Role.VIEWER, Role.APPROVER)
    with pytest.raises(RequestInvalid, match="did you mean operator"):
        read_roles(["operater"])
    with pytest.raises(RequestInvalid, match="needs a role"):
        read_roles([])


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "x" * 65, "a\n", "é"])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(RequestInvalid, match="cannot name an account"):
        check_name(name)


def test_a_password_is_verified_against_its_hash_alone() -> None:
    stored = hash_password("correct horse battery")
    assert verify_password("correct horse battery", stored)
    assert not verify_password("correct horse batterz", stored)
    assert not verify_password("", None)
    assert not verify_password("correct horse battery", None)
    assert stored != hash_password("correct horse battery")
    assert "correct" not in stored


@pytest.mark.parametrize(
    ("password", "text"),
    [("short", "12 characters"), ("x" * 1025, "1024 bytes"), ("annabella-1234", "name of its account")],
)
def test_a_password_that_will_not_do(password: str, text: str) -> None:
    with pytest.raises(RequestInvalid, match=text):
        check_password(password, "annabella")


def test_secrets_are_random_and_stored_as_hashes() -> None:
    assert make_secret() != make_secret()
    assert make_token().startswith(TOKEN_PREFIX)
    assert len(hash_secret("x")) == 64
    assert csrf_token("a") != csrf_token("b")
    assert same("ü", "ü")
    assert not same("a", "b")


def fail(throttle: Throttle, account: str, address: str, now: float, times: int) -> list[bool]:
    return [throttle.begin(account, address, now) for _ in range(times)]


def test_a_few_failures_cost_nothing_and_more_ever_more() -> None:
    throttle = Throttle()
    assert fail(throttle, "ann", "10.0.0.1", 100.0, FREE_ATTEMPTS) == [False] * FREE_ATTEMPTS
    assert throttle.wait("ann", "10.0.0.1", 100.0) == 0.0
    waits = []
    for number in range(12):
        assert throttle.begin("ann", "10.0.0.1", 100.0) is (number == 0)
        waits.append(throttle.wait("ann", "10.0.0.9", 100.0))
    assert waits[:3] == [2.0, 4.0, 8.0]
    assert waits[-1] == MAX_ACCOUNT_SECONDS
    assert throttle.wait("ann", "10.0.0.1", 100.0) == MAX_ADDRESS_SECONDS
    # The account is held back from everywhere, the address for every account, and nobody else.
    assert throttle.wait("bo", "10.0.0.1", 100.0) == MAX_ADDRESS_SECONDS
    assert throttle.wait("bo", "10.0.0.2", 100.0) == 0.0
    assert throttle.wait("ANN", "10.0.0.2", 100.0) == MAX_ACCOUNT_SECONDS
    assert throttle.wait("ann", "10.0.0.2", 100.0 + throttling.FORGET_SECONDS + 1) == 0.0


def test_success_forgets_the_account_and_not_the_address() -> None:
    throttle = Throttle()
    fail(throttle, "ann", "10.0.0.1", 1.0, FREE_ATTEMPTS + 2)
    throttle.succeed("ann", "10.0.0.1")
    assert throttle.wait("ann", "10.0.0.2", 1.0) == 0.0
    assert throttle.wait("bo", "10.0.0.1", 1.0) > 0.0


def test_a_household_of_ipv6_is_one_address() -> None:
    throttle = Throttle()
    for number in range(FREE_ATTEMPTS + 1):
        throttle.begin(f"a{number}", f"2001:db8::{number:x}", 1.0)
    assert throttle.wait("other", "2001:db8::ffff", 1.0) > 0.0
    assert throttle.wait("other", "2001:db8:0:1::1", 1.0) == 0.0


@given(st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5), st.floats(0, 1e6)), max_size=60))
def test_memory_is_bounded_whoever_guesses(attempts: list[tuple[str, str, float]]) -> None:
    throttle = Throttle(most=8)
    for account, address, at in attempts:
        throttle.begin(account, address, at)
        assert len(throttle) <= 8
        assert 0.0 <= throttle.wait(account, address, at) <= MAX_ADDRESS_SECONDS
