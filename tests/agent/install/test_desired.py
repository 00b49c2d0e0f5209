"""What the update runner may be asked for, and which job the installer process gets for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.install.desired import (
    DesiredBundle,
    DesiredDocument,
    Install,
    OperatorOrder,
    Repair,
    ReplaceRevoked,
    RequestedBy,
    Rollback,
    requested_by,
    revision_of,
)
from agent.install.process.messages import InstallJob, ReverifyJob
from agent.install.settings import InstallSettings
from agent.install.update.download_step import job_of
from agent.state.layout import StateDirectory
from contract.identifiers import Digest

SETTINGS = InstallSettings(quota_bytes=5, parallel_fetches=2)
DIGEST = Digest("ab" * 32)
DIRECTORY = StateDirectory(Path("/state"))


@pytest.mark.parametrize(
    ("target", "by", "revision"),
    [
        (Install("a", "1", SETTINGS, sources=("/s",), origin=DesiredDocument("r1")), "desired", "r1"),
        (Install("a", "1", SETTINGS, sources=("/s",), origin=OperatorOrder()), "operator", None),
        (Rollback("a", "1", SETTINGS, digest=DIGEST), "operator", None),
        (Repair("a", "1", SETTINGS, sources=("/s",), revision="r1"), "automatic", "r1"),
        (ReplaceRevoked("a", "1", SETTINGS, digest=DIGEST, revision="r1"), "automatic", "r1"),
    ],
)
def test_who_wants_it_follows_from_what_it_is(target: DesiredBundle, by: RequestedBy, revision: str | None) -> None:
    assert (requested_by(target), revision_of(target)) == (by, revision)


def test_only_the_operator_tries_again_what_failed_and_brings_a_root() -> None:
    document = Install("a", "1", SETTINGS, sources=("/s",), origin=DesiredDocument("r1"))
    order = Install("a", "1", SETTINGS, sources=("/s",), origin=OperatorOrder("/root.json"))
    common = {"quota_bytes": 5, "parallel_fetches": 2}
    assert job_of(document, DIRECTORY, suppressed_refusals=3) == InstallJob(
        "/state", "a", "1", ["/s"], suppressed_refusals=3, **common
    )
    assert job_of(order, DIRECTORY, suppressed_refusals=0) == InstallJob(
        "/state", "a", "1", ["/s"], ignore_quarantine=True, root="/root.json", **common
    )


def test_what_is_on_this_disk_is_verified_again_and_only_a_rollback_may_lower_the_epoch() -> None:
    rollback = Rollback("a", "1", SETTINGS, digest=DIGEST, allow_epoch=True)
    replacement = ReplaceRevoked("a", "1", SETTINGS, digest=DIGEST)
    assert job_of(rollback, DIRECTORY, suppressed_refusals=0) == ReverifyJob(
        "/state", "a", "1", DIGEST, allow_epoch=True
    )
    assert job_of(replacement, DIRECTORY, suppressed_refusals=0) == ReverifyJob("/state", "a", "1", DIGEST)
