"""The tables of installation."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.state.database import Database
from agent.state.installation import Failure, InstallationState, InstalledBundle, Quarantined
from agent.state.schema import SCHEMA
from contract.errors import StoreBroken
from contract.identifiers import Digest
from contract.reasons import Reason

A, B, C, D = (Digest(letter * 64) for letter in "abcd")


def bundle(digest: Digest, version: str = "1.0.0", epoch: int = 0) -> InstalledBundle:
    return InstalledBundle(digest, "tiny", version, epoch, 1000, 1_700_000_000, None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
def state(path: Path) -> Iterator[InstallationState]:
    database = Database(path, SCHEMA)
    yield InstallationState(database)
    database.close()


def test_a_fresh_state_is_idle_and_empty(state: InstallationState) -> None:
    snapshot = state.snapshot()
    assert (snapshot.phase, snapshot.active, snapshot.previous, snapshot.candidate) == ("IDLE", None, None, None)
    assert (snapshot.desired, snapshot.failure, snapshot.epoch) == (None, None, 0)
    assert state.bundles() == [] == state.quarantined()


def test_what_was_entered_is_found_by_another_process(state: InstallationState, path: Path) -> None:
    state.enter("ROLLBACK", A, Failure(Reason.CANARY_DRIFT, "drifted"))
    state.record_desired(b"{}")
    found = InstallationState(Database(path, SCHEMA)).snapshot()
    assert (found.phase, found.candidate, found.desired) == ("ROLLBACK", A, b"{}")
    assert found.failure == Failure(Reason.CANARY_DRIFT, "drifted")
    state.enter("IDLE", None)
    assert state.snapshot().failure is None


def test_commit_moves_active_to_previous_and_raises_the_epoch(state: InstallationState) -> None:
    for digest, version, epoch in ((A, "1.0.0", 3), (B, "1.1.0", 5)):
        state.add_bundle(bundle(digest, version, epoch))
        state.commit_candidate(digest)
    snapshot = state.snapshot()
    assert (snapshot.active, snapshot.previous, snapshot.epoch) == (B, A, 5)


def test_commit_twice_changes_nothing(state: InstallationState) -> None:
    for digest in (A, B):
        state.add_bundle(bundle(digest))
        state.commit_candidate(digest)
    before = state.snapshot()
    state.commit_candidate(B)
    assert state.snapshot() == before


def test_the_epoch_never_falls(state: InstallationState) -> None:
    state.add_bundle(bundle(A, epoch=7))
    state.add_bundle(bundle(B, epoch=2))
    state.commit_candidate(A)
    state.commit_candidate(B)
    assert state.epoch() == 7


def test_the_active_bundle_cannot_be_forgotten(state: InstallationState) -> None:
    for digest in (A, B):
        state.add_bundle(bundle(digest))
        state.commit_candidate(digest)
    with pytest.raises(StoreBroken):
        state.forget_bundle(B)
    assert state.snapshot().active == B
    state.forget_bundle(A)
    assert state.snapshot().previous is None
    assert [known.digest for known in state.bundles()] == [B]


def test_a_bundle_sealed_again_keeps_its_measured_speed(state: InstallationState) -> None:
    state.add_bundle(bundle(A))
    state.record_speed(A, 42.5, 21.0)
    state.add_bundle(bundle(A))
    found = state.bundle(A)
    assert found is not None
    assert (found.tokens_per_second, found.tokens_per_second_each) == (42.5, 21.0)


def test_attempts_count_up_and_are_forgotten_at_commit(state: InstallationState) -> None:
    state.add_bundle(bundle(A))
    assert [state.count_attempt(A), state.count_attempt(A), state.count_attempt(B)] == [1, 2, 1]
    state.commit_candidate(A)
    assert state.count_attempt(A) == 1


def test_a_rollback_goes_back_to_what_was_active_before_and_undoes_what_came_after(state: InstallationState) -> None:
    for digest in (A, B, C):
        state.add_bundle(bundle(digest))
        state.commit_candidate(digest)
    assert state.history.before(C) == B
    assert state.history.once_active() == [C, B, A]
    state.commit_candidate(B, back=True)
    assert state.history.before(B) == A
    state.add_bundle(bundle(D))
    state.commit_candidate(D)
    assert state.history.before(D) == B
    assert state.history.once_active() == [D, B, A, C]


def test_quarantine_keeps_the_first_reason_until_released(state: InstallationState) -> None:
    first = Quarantined(A, "tiny", "1.0.0", Reason.CANARY_DRIFT, "drifted", 1)
    state.quarantine(first)
    state.quarantine(Quarantined(A, "tiny", "1.0.0", Reason.PROBATION_CRASHED, "crashed", 2))
    assert state.quarantined() == [first]
    state.release_quarantined(A)
    assert state.quarantined() == []


def test_swaps_are_counted_within_a_span(state: InstallationState) -> None:
    for at in (10, 20, 30, 9_999_999_999):
        state.log_swap(A, at)
    assert state.swaps_between(10, 40) == [20, 30]


@settings(deadline=None)  # every example writes a database of its own to the disk
@given(st.lists(st.dictionaries(st.sampled_from(["root", "timestamp", "snapshot", "targets"]), st.integers(1, 2**40))))
def test_role_versions_only_rise(tmp_path_factory: pytest.TempPathFactory, raises: list[dict[str, int]]) -> None:
    database = Database(tmp_path_factory.mktemp("floor") / "state.db", SCHEMA)
    state = InstallationState(database)
    highest: dict[str, int] = {}
    for versions in raises:
        state.raise_role_versions(versions)
        highest = {role: max(highest.get(role, 0), versions.get(role, 0)) for role in highest | versions}
        assert state.role_versions() == highest
    database.close()


def test_the_clock_floor_only_rises(state: InstallationState) -> None:
    for seconds, expected in ((100, 100), (50, 100), (200, 200)):
        state.raise_clock_floor(seconds)
        assert state.clock_floor() == expected


@pytest.mark.parametrize("how", ["missing", "empty"])
@pytest.mark.parametrize("left", ["trust/trusted.json", "bundles/of an older state"])
def test_a_state_that_was_lost_is_not_begun_anew(path: Path, how: str, left: str) -> None:
    """What lies beside it would be removed as strays, and the epoch and the floor of trust would be forgotten."""
    Database(path, SCHEMA).close()
    (path.parent / left).parent.mkdir()
    (path.parent / left).touch()
    Database(path, SCHEMA).close()
    for file in path.parent.glob("state.db*"):
        file.unlink()
    if how == "empty":
        path.touch()
    for _ in range(2):
        with pytest.raises(StoreBroken, match="it was lost; move the state directory away"):
            Database(path, SCHEMA)
    assert (path.parent / left).exists()


def test_the_schema_of_a_newer_agent_is_refused(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(StoreBroken, match="newer agent"):
        Database(path, SCHEMA)


def test_an_adapter_joins_its_base_and_takes_the_place_of_its_name(state: InstallationState) -> None:
    state.add_bundle(bundle(A, epoch=1))
    state.commit_candidate(A)
    state.add_bundle(bundle(B, "2.0.0", 2), A)
    assert state.adapters_of(A) == []
    for _ in range(2):
        state.commit_candidate(B)
        assert [each.version for each in state.adapters_of(A)] == ["2.0.0"]
    snapshot = state.snapshot()
    assert (snapshot.active, snapshot.previous, snapshot.epoch) == (A, None, 2)
    state.add_bundle(bundle(C, "2.1.0", 2), A)
    state.commit_candidate(C)
    assert [each.version for each in state.adapters_of(A)] == ["2.1.0"]
    assert state.adapters() == {B: (A, False), C: (A, True)}
    state.forget_bundle(B)
    state.retire_adapter(C)
    assert state.adapters() == {C: (A, False)}
