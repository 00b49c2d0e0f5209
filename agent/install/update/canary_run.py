"""The canary run of a candidate: beside the model that serves, or instead of it; and how it is to replace that."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from msgspec import Struct

from agent.host.cpu_contention import CpuContention
from agent.install.ports import SealedBundle, Serving, SwapMode
from agent.install.settings import InstallSettings
from agent.install.update.canary import CanaryPassed, run_canary
from agent.install.update.restore import Restorer
from agent.install.update.step_reporter import StepReporter
from agent.install.update.swap_plan import Needs, fits_beside, plan_swap
from agent.install.verify.bundle_verifier import (
    StatFingerprint,
    check_unchanged,
    fingerprint_files,
    verify_bundle,
)
from agent.state.installation import Failure
from agent.state.layout import StateDirectory
from agent.worker.ports import WorkerStarter
from agent.worker.settings import WorkerSettings
from contract.bundle.verifier import read_manifest
from contract.identifiers import Digest
from contract.reasons import Reason

log = logging.getLogger("edge_agent.install")

CONTENDED_SHARE = 0.5
"""Where something waited for a core for more than this part of a canary's time, its slowness proves nothing."""


class Candidate(Struct, frozen=True):
    """A bundle that passed its canary. ``loaded`` is what a worker gets: the bundle, or for an adapter (``new``) the
    active bundle with it. ``stat_fingerprint`` tells whether its files were touched since. ``exclusive``: the serving
    model was unloaded for its canary.
    """

    new: SealedBundle
    loaded: SealedBundle
    stat_fingerprint: StatFingerprint
    passed: CanaryPassed
    exclusive: bool

    @property
    def is_adapter(self) -> bool:
        return self.new is not self.loaded

    def check_unchanged(self) -> None:
        """Raises BundleRefused when its files are not those that were verified."""
        check_unchanged(self.new.directory, self.new.manifest, self.stat_fingerprint)


class CanaryRun:
    """Runs the canary of a candidate: beside the serving model, or instead of it where memory does not hold both."""

    def __init__(
        self,
        *,
        directory: StateDirectory,
        serving: Serving,
        workers: WorkerStarter,
        worker_settings: WorkerSettings,
        restorer: Restorer,
        reporter: StepReporter,
    ) -> None:
        self._directory = directory
        self._serving = serving
        self._workers = workers
        self._worker_settings = worker_settings
        self._restorer = restorer
        self._reporter = reporter

    async def run_canary(self, digest: Digest, settings: InstallSettings) -> Candidate | Failure:
        """The verdict on a sealed bundle. Unless it passed, what served before serves again when this returns.

        Raises:
            BundleRefused: its bytes on this disk are not those that were verified.
        """
        directory = self._directory.bundle(digest)
        # The installer verified it in another process; what is loaded is verified by whoever loads it.
        manifest = (await asyncio.to_thread(read_manifest, directory, digest)).manifest
        stat_fingerprint = fingerprint_files(directory, manifest)
        new = await asyncio.to_thread(verify_bundle, directory, digest)
        planned = plan_swap(self._serving, settings, self._worker_settings, Needs.of(manifest))
        self._reporter.swap_planned(planned)
        alone = planned is not None and planned.mode == "aside"
        candidate: Candidate | None = None
        try:
            if alone:
                log.info(
                    "not enough memory for %s beside the serving model, which is suspended meanwhile",
                    manifest.reference,
                )
                await self._serving.suspend()
            loaded = await self._restorer.complete(new)
            adapter = None if manifest.base is None else new
            verdict = await self._examine(loaded, adapter, settings, alone=alone)
            check_unchanged(directory, manifest, stat_fingerprint)
            if isinstance(verdict, Failure):
                return verdict
            candidate = Candidate(loaded if adapter is None else new, loaded, stat_fingerprint, verdict, alone)
            return candidate
        finally:
            if candidate is None and (queue_pause_ms := await self._serving.resume()) is not None:
                self._reporter.resumed(queue_pause_ms)

    async def _examine(
        self, loaded: SealedBundle, adapter: SealedBundle | None, settings: InstallSettings, *, alone: bool
    ) -> CanaryPassed | Failure:
        canary = partial(
            run_canary,
            loaded,
            self._workers,
            self._worker_settings,
            settings,
            adapter=adapter,
            beside=not alone,
            reclaimable_bytes=0 if alone else self._serving.footprint.anonymous_bytes,
        )
        if alone:
            # Requests wait for it, so it runs at normal priority.
            return await canary(nice=0)
        contention = CpuContention(asyncio.get_running_loop().time)
        verdict = await canary()
        if (
            isinstance(verdict, Failure)
            and verdict.reason is Reason.CANARY_TIMEOUT
            and contention.share() > CONTENDED_SHARE
        ):
            log.info(
                "the canary of %s got too little CPU time on a busy device; running it again at normal priority",
                loaded.manifest.reference,
            )
            verdict = await canary(nice=0)
        return verdict


def swap_mode(serving: Serving, settings: InstallSettings, candidate: Candidate) -> SwapMode:
    """Whether the candidate runs beside its predecessor now, or after it."""
    if settings.swap == "drain" or candidate.exclusive:
        return "drain"
    return "overlap" if fits_beside(serving, settings, candidate.passed.peak_rss_bytes) else "drain"
