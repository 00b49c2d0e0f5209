"""The short-lived process that brings a bundle onto this disk: RESOLVE to SEAL.

``python -m agent.install.process.installer`` reads one :data:`~agent.install.process.messages.Job` on stdin and reports
lines on stdout. It is a process of its own because verifying trust costs memory that is not needed afterwards, and
because whatever a hostile repository does to it ends with it. It ends when its stdin does: an installer must not
outlive the agent that started it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import assert_never

from agent.host.process_priority import set_nice, set_oom_score_adj
from agent.install.download.mirrors import Mirrors
from agent.install.download.pipeline import DownloadPipeline
from agent.install.ports import Clock, SealedBundle
from agent.install.process.messages import (
    MAX_LINE_BYTES,
    Failed,
    Fault,
    InstallJob,
    Job,
    Line,
    OnLine,
    RefreshTrustJob,
    ReverifyJob,
    encode_line,
    parse_job,
)
from agent.install.verify.reverify import reverify_bundle
from agent.state.audit import AuditLog, suppressed_text
from agent.state.database import Database
from agent.state.installation import InstallationState
from agent.state.layout import StateDirectory
from agent.state.lock import FileLock
from agent.state.schema import SCHEMA
from contract.errors import (
    BundleRefused,
    EdgeBundleError,
    SourceInvalid,
    SourceUnavailable,
    StoreBroken,
    StoreFull,
)
from contract.reasons import Reason
from contract.system.durable import Disk

NICENESS = 10
"""A tenth of the weight of a model that answers; unlike a canary it has sources that give up on who is too slow."""

LOCK_SECONDS = 30.0
"""How long to wait for an installer whose agent was killed: it ends as soon as it notices."""

_FAULTS: tuple[tuple[type[EdgeBundleError], Fault], ...] = (
    (BundleRefused, "refused"),
    (SourceInvalid, "invalid"),
    (SourceUnavailable, "unavailable"),
    (StoreFull, "full"),
    (StoreBroken, "broken"),
)


def run_job(job: Job, disk: Disk, report: OnLine, now: Clock = time.time) -> SealedBundle | None:
    """Do the job in this process; None when trust was to be refreshed and no more. ``now`` gives Unix seconds.

    Raises:
        BundleRefused, SourceUnavailable, StoreFull, StoreBroken.
    """
    # tuf is loaded by this module, in this process, and nowhere else on the device.
    from agent.install.trust.refresh import TrustRefresh

    directory = StateDirectory(Path(job.state_dir))
    disk.make_directory(directory.inbox, 0o700)
    for path in (directory.bundles, directory.derived):
        disk.make_directory(path)
    with FileLock(directory.installer_lock, "another installer", wait_seconds=LOCK_SECONDS):
        database = Database(directory.database, SCHEMA, disk.effects)
        try:
            state = InstallationState(database)
            trust_refresh = TrustRefresh(directory, state, disk)
            match job:
                case RefreshTrustJob():
                    state.check_floors()
                    with closing(Mirrors(job.sources)) as mirrors:
                        trust_refresh.refresh(mirrors, offline_grace=job.offline_grace)
                    return None
                case InstallJob():
                    audit = AuditLog(directory.audit, disk, "installer")
                    with closing(Mirrors(job.sources)) as mirrors, audited(job, audit, state.epoch()) as accept:
                        state.check_floors()
                        pipeline = DownloadPipeline(job, directory, state, disk, report, now=now)
                        sealed = pipeline.run(mirrors, partial(trust_refresh.resolve, job))
                        accept(sealed)
                    return sealed
                case ReverifyJob():
                    audit = AuditLog(directory.audit, disk, "installer")
                    with audited(job, audit, state.epoch()) as accept:
                        state.check_floors(epoch=not job.allow_epoch)
                        check_not_revoked = partial(trust_refresh.check_not_revoked, job.name, job.version)
                        sealed = reverify_bundle(job, directory, state, report, check_not_revoked)
                        accept(sealed)
                    return sealed
                case _:
                    assert_never(job)
        finally:
            database.close()


@contextmanager
def audited(job: InstallJob | ReverifyJob, audit: AuditLog, epoch: int) -> Iterator[Callable[[SealedBundle], None]]:
    """Write down how the block ends: by a bundle given to what it yields, or by a refusal.

    ``epoch`` is the security epoch committed here.
    """

    allow_epoch = isinstance(job, ReverifyJob) and job.allow_epoch

    def accept(sealed: SealedBundle) -> None:
        if job.suppressed_refusals is None and audit.knows("accepted", sealed.digest):
            return
        # Durable before the agent hears of it: nothing becomes active that is not in the log.
        audit.record(
            "accepted",
            bundle=sealed.manifest.reference,
            digest=sealed.digest,
            security_epoch=sealed.manifest.security_epoch,
            message="the operator allowed a lower epoch or a revoked bundle" if allow_epoch else None,
        )
        if allow_epoch and sealed.manifest.security_epoch < epoch:
            audit.record(
                "epoch_lowered",
                bundle=sealed.manifest.reference,
                digest=sealed.digest,
                security_epoch=sealed.manifest.security_epoch,
                message=f"root allowed it; security epoch {epoch} stays the least for everything else",
            )

    try:
        yield accept
    except (BundleRefused, SourceInvalid) as refused:
        if job.suppressed_refusals is not None:
            audit.note(
                "refused",
                bundle=job.reference,
                digest=job.digest if isinstance(job, ReverifyJob) else None,
                reason=str(refused.reason),
                message=refused.message + suppressed_text(job.suppressed_refusals),
                field=refused.field,
            )
        raise


def failure_line(error: EdgeBundleError) -> Failed:
    """What the agent is told about ``error``."""
    fault: Fault = next((name for kind, name in _FAULTS if isinstance(error, kind)), "internal")
    retry_after = error.retry_after if isinstance(error, SourceUnavailable) else None
    return Failed(fault, error.reason or Reason.INTERRUPTED, error.message, error.field, retry_after)


def _end_with_parent() -> None:
    # Blocks until the agent closes its end, by its will or by dying.
    # Not through sys.stdin, whose lock this thread would hold when the interpreter ends.
    while os.read(0, 1024):
        pass
    os._exit(1)


def _print(line: Line) -> None:
    try:
        sys.stdout.buffer.write(encode_line(line))
        sys.stdout.buffer.flush()
    except OSError:
        os._exit(1)


def main() -> int:
    """Entry of the process; the exit status is that of the error, 0 when the bundle is sealed."""
    set_nice(NICENESS)
    set_oom_score_adj()
    try:
        job = parse_job(sys.stdin.buffer.readline(MAX_LINE_BYTES))
        threading.Thread(target=_end_with_parent, daemon=True).start()
        run_job(job, Disk(), _print)
    except EdgeBundleError as error:
        _print(failure_line(error))
        if os.environ.get("EDGE_BUNDLE_TRACEBACK") == "1":
            traceback.print_exc()
        return error.exit_status
    except Exception as error:  # the agent must hear of it whatever it is
        traceback.print_exc()
        _print(Failed("internal", Reason.INTERRUPTED, f"the installer failed: {type(error).__name__}: {error}"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
