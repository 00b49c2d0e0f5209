"""What the agent sends the installer process: one of three jobs, each with what it needs and nothing else."""

from __future__ import annotations

import msgspec
import pytest

from agent.install.process.messages import InstallJob, Job, RefreshTrustJob, ReverifyJob, encode_line, parse_job
from contract.errors import EngineFailed
from contract.identifiers import Digest

DIGEST = Digest("ab" * 32)
JOBS: list[Job] = [
    InstallJob("/state", "tiny", "1.0.0", ["/media/usb"], ignore_quarantine=True, root="/root.json"),
    ReverifyJob("/state", "tiny", "1.0.0", DIGEST, allow_epoch=True, suppressed_refusals=None),
    RefreshTrustJob("/state", ["/media/usb"], offline_grace=False),
]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: type(job).__name__)
def test_a_job_arrives_as_it_was_sent(job: Job) -> None:
    assert parse_job(encode_line(job)) == job


@pytest.mark.parametrize("field", ["allow_epoch", "digest"])
def test_what_is_downloaded_cannot_be_allowed_a_lower_epoch_or_be_taken_from_this_disk(field: str) -> None:
    job = msgspec.json.decode(encode_line(JOBS[0])) | {field: True}
    with pytest.raises(EngineFailed, match=field):
        parse_job(msgspec.json.encode(job))


def test_a_job_of_no_kind_is_refused() -> None:
    with pytest.raises(EngineFailed, match="type"):
        parse_job(b'{"state_dir": "/state", "sources": []}')
