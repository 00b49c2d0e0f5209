"""RESOLVE to SEAL, one step after the other; runs in the installer process.

Every step is idempotent: a killed one is simply done again, and finds what the first left.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from agent.host.facts import check_provider, check_requires, disk_available, measure_host
from agent.install.download.fetch_plan import index_chunks, index_files, slices_of, unique_files
from agent.install.download.mirrors import Mirrors
from agent.install.download.parallel_fetch import ParallelFetcher
from agent.install.download.part import LocalChunks, Part, fill_part
from agent.install.download.progress import ProgressMeter
from agent.install.download.seal import salvage_parts, seal_bundle
from agent.install.gc import (
    collect_bundles,
    collect_derived,
    collect_orphans,
    known_bundles,
    used_bytes,
)
from agent.install.ports import Clock, SealedBundle
from agent.install.process.messages import InstallJob, OnLine, Reached, Resolved
from agent.install.update.state_machine import Event
from agent.install.verify.adapters import check_has_base
from agent.install.verify.bundle_verifier import verify_bundle
from agent.install.verify.reverify import check_epoch
from agent.state.installation import InstallationState, InstalledBundle
from agent.state.layout import StateDirectory
from contract.bundle.manifest import FileEntry, Manifest
from contract.bundle.verifier import check_file
from contract.errors import BundleRefused, StoreBroken, StoreFull
from contract.reasons import Reason
from contract.system.durable import Disk
from contract.trust.verified import TrustedManifest

Resolver = Callable[[Mirrors], TrustedManifest]


class DownloadPipeline:
    """One bundle on its way; ``run`` does all of it. ``now`` gives Unix seconds."""

    def __init__(
        self,
        job: InstallJob,
        directory: StateDirectory,
        state: InstallationState,
        disk: Disk,
        report: OnLine,
        *,
        now: Clock,
    ) -> None:
        self._job = job
        self._directory = directory
        self._state = state
        self._disk = disk
        self._report = report
        self._now = now
        self._read_back: dict[str, str] = {}

    def run(self, mirrors: Mirrors, resolver: Resolver) -> SealedBundle:
        """The bundle, sealed.

        Raises:
            BundleRefused, SourceUnavailable, StoreFull, StoreBroken.
        """
        trusted = self._resolve(mirrors, resolver)
        sealed = self._check(trusted)
        if sealed is None:
            whole, resumed = self._reserve(trusted)
            linked = self._fetch(trusted.manifest, whole, resumed, mirrors)
            self._verify(trusted.manifest, linked)
            parts = {entry.sha256: self._directory.part(entry.sha256) for entry in trusted.manifest.files}
            # Recorded first: a sealed bundle without a record would be taken for a stray.
            self._record(trusted)
            sealed = seal_bundle(trusted, parts, linked, self._directory, self._disk)
        self._record(trusted)
        self._reached(Event.SEALED)
        return sealed

    def _reached(self, event: Event) -> None:
        self._report(Reached(event))

    def _resolve(self, mirrors: Mirrors, resolver: Resolver) -> TrustedManifest:
        trusted = resolver(mirrors)
        # Whoever fetches opens them again: no connection is to lie idle until the bundle is sealed.
        mirrors.close()
        manifest = trusted.manifest
        self._report(
            Resolved(
                digest=trusted.digest,
                name=manifest.name,
                version=manifest.version,
                security_epoch=manifest.security_epoch,
                bytes=manifest.total_bytes,
                min_ram_bytes=manifest.requires.min_ram_bytes,
                peak_rss_bytes=manifest.budget.peak_rss_bytes,
            )
        )
        return trusted

    def _check(self, trusted: TrustedManifest) -> SealedBundle | None:
        """Whether this device may and can run it; the bundle itself, if it is here already and whole."""
        manifest = trusted.manifest
        check_epoch(manifest, self._state.epoch())
        check_has_base(manifest, self._state.snapshot().active)
        self._check_quarantine(trusted)
        check_provider(manifest)
        host = measure_host(self._directory.root)
        check_requires(manifest.requires, host, room_bytes=self._job.quota_bytes or None)
        final = self._directory.bundle(trusted.digest)
        if final.exists():
            try:
                sealed = verify_bundle(final, trusted.digest)
            except BundleRefused:
                # Damaged on this disk: obtained again, and what is sound of it is reused.
                pass
            else:
                self._reached(Event.PRESENT)
                self._reached(Event.VERIFIED)
                return sealed
        self._reached(Event.CHECKED)
        return None

    def _check_quarantine(self, trusted: TrustedManifest) -> None:
        if self._job.ignore_quarantine:
            return
        for entry in self._state.quarantined():
            if entry.digest == trusted.digest:
                raise BundleRefused(
                    Reason.QUARANTINED,
                    f"{trusted.manifest.reference} failed on this device before ({entry.reason}): {entry.message}",
                )

    def _reserve(self, trusted: TrustedManifest) -> tuple[dict[str, list[Path]], set[str]]:
        """Allocate every file that no bundle here has as a whole.

        Returns where whole files lie, and the digests of parts that an earlier attempt may have begun to fill.
        """
        manifest, directory, disk = trusted.manifest, self._directory, self._disk
        salvage_parts(directory, trusted.digest, manifest, disk)
        collect_orphans(self._state, directory, disk, parts_kept={entry.sha256 for entry in manifest.files})
        whole = index_files(known_bundles(self._state, directory))
        needed = [entry for entry in unique_files(manifest) if entry.sha256 not in whole]
        resumed = {entry.sha256 for entry in needed if directory.part(entry.sha256).exists()}
        self._free_space(trusted, sum(entry.size for entry in needed if entry.sha256 not in resumed))
        try:
            for entry in needed:
                disk.allocate(directory.part(entry.sha256), entry.size)
        except StoreFull:
            for entry in needed:
                if entry.sha256 not in resumed:
                    disk.remove(directory.part(entry.sha256))
            raise
        self._reached(Event.RESERVED)
        return whole, resumed

    def _free_space(self, trusted: TrustedManifest, needed: int) -> None:
        """Take what can be had again or was kept in case, as far as room is needed, on the disk or under the quota."""
        state, directory, disk, quota = self._state, self._directory, self._disk, self._job.quota_bytes
        available = disk_available(directory.root)
        used = used_bytes(directory)
        limit = min(quota, used + available) if quota else used + available
        if used + needed > limit:
            collect_derived(state, directory, disk)
        if used_bytes(directory) + needed > limit:
            collect_bundles(
                state,
                directory,
                disk,
                # Whatever is kept for a rollback goes only as far as room is needed, the oldest first.
                keep_previous=max(1, len(state.bundles())),
                quota_bytes=max(1, limit - needed),
                protected=[trusted.digest],
            )
        available = disk_available(directory.root)
        if needed > available:
            raise StoreFull(f"{needed} bytes are needed for {trusted.manifest.reference}, {available} are free")
        if quota and used_bytes(directory) + needed > quota:
            raise StoreFull(
                f"{needed} bytes more are needed for {trusted.manifest.reference}; with what must stay "
                f"that is beyond the quota of {quota}"
            )

    def _fetch(
        self, manifest: Manifest, whole: dict[str, list[Path]], resumed: set[str], mirrors: Mirrors
    ) -> dict[str, Path]:
        """Fill all parts; returns the files that other bundles have as a whole, verified."""
        meter = ProgressMeter(sum(entry.size for entry in unique_files(manifest)), self._report, time.monotonic)
        local = LocalChunks(index_chunks(known_bundles(self._state, self._directory)))
        fetcher = ParallelFetcher(mirrors, self._job.parallel_fetches, bytes_per_second=self._job.bytes_per_second)
        linked: dict[str, Path] = {}
        try:
            for entry in unique_files(manifest):
                path = first_intact(whole.get(entry.sha256, []), entry)
                if path is not None:
                    linked[entry.sha256] = path
                    meter.reused(entry.size)
                    continue
                path = self._directory.part(entry.sha256)
                if entry.sha256 in whole:
                    self._disk.allocate(path, entry.size)
                self._read_back[entry.sha256] = fill_part(
                    path,
                    entry,
                    resumed=entry.sha256 in resumed or entry.sha256 in whole,
                    local=local,
                    fetcher=fetcher,
                    meter=meter,
                    disk=self._disk,
                )
        finally:
            fetcher.close()
            local.close()
            meter.finish()
        self._reached(Event.FETCHED)
        return linked

    def _verify(self, manifest: Manifest, linked: dict[str, Path]) -> None:
        """Hold the whole of what was written, as it was read back, against the signed digest."""
        for entry in unique_files(manifest):
            if entry.sha256 in linked or self._read_back[entry.sha256] == entry.sha256:
                continue
            with Part(self._directory.part(entry.sha256), entry, self._disk) as part:
                damaged = any(part.missing(slices_of(entry)))
            self._disk.remove(self._directory.part(entry.sha256))
            if damaged:
                raise StoreBroken(f"this disk returns other bytes of {entry.path} than were written")
            raise BundleRefused(
                Reason.CHUNKS_INVALID, f"the chunks of {entry.path} do not make up the file", field=entry.path
            )
        self._reached(Event.VERIFIED)

    def _record(self, trusted: TrustedManifest) -> None:
        manifest = trusted.manifest
        self._state.add_bundle(
            InstalledBundle(
                digest=trusted.digest,
                name=manifest.name,
                version=manifest.version,
                security_epoch=manifest.security_epoch,
                bytes=manifest.total_bytes,
                installed_at=int(self._now()),
            ),
            None if manifest.base is None else manifest.base.manifest_sha256,
        )


def first_intact(candidates: list[Path], entry: FileEntry) -> Path | None:
    """The first of ``candidates`` that holds exactly what ``entry`` lists; what cannot be read is as good as absent."""
    for path in candidates:
        try:
            check_file(path, entry)
        except (BundleRefused, StoreBroken):
            continue
        return path
    return None
