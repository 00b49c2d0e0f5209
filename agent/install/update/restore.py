"""Bringing a bundle on this disk into service: verified completely, with what is loaded beside it."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import msgspec

from agent.install.ports import SealedBundle, Serving
from agent.install.prepack import ADAPTERS, Prepacker
from agent.install.update.worker_start import fingerprint_tree
from agent.install.verify.adapters import check_has_base, with_adapters, with_candidate
from agent.install.verify.bundle_verifier import verify_bundle
from agent.state.installation import InstallationState, InstalledBundle
from agent.state.layout import StateDirectory
from contract.errors import BundleRefused, EngineFailed
from contract.identifiers import Digest

log = logging.getLogger("edge_agent.install")


class Restorer:
    """Knows what belongs to a bundle that is to be served, and how to get back to one that was."""

    def __init__(
        self, directory: StateDirectory, state: InstallationState, serving: Serving, prepacker: Prepacker | None
    ) -> None:
        self._directory = directory
        self._store = state
        self._serving = serving
        self._prepacker = prepacker

    def serves(self, bundle: InstalledBundle) -> bool:
        """Whether ``bundle`` answers now, with just the adapters that are recorded for it."""
        serving = self._serving.bundle
        if serving is None or serving.digest != bundle.digest:
            return False
        needed = {adapter.digest for adapter in self._store.adapters_of(bundle.digest)}
        return {each.digest for each in serving.adapters} == needed

    @property
    def served(self) -> tuple[Digest, ...]:
        """What answers now, if anything does."""
        serving = self._serving.bundle
        return () if serving is None else (serving.digest,)

    async def serve_recorded(self) -> BundleRefused | EngineFailed | None:
        """Serve what is recorded as active unless it is being served; why that cannot be done.

        Raises:
            StoreBroken.
        """
        active = self._store.bundle(self._store.snapshot().active)
        if active is None:
            if self._serving.bundle is not None:
                await self._serving.stop()
            return None
        return None if self.serves(active) else await self.serve_active(active)

    async def retire_active(self) -> None:
        """Nothing is active from now on, and nothing is served.

        Raises:
            StoreBroken, StoreFull.
        """
        self._store.retire_active()
        await self._serving.stop()

    async def resume(self) -> None:
        """Let what made room for a candidate answer again."""
        await self._serving.resume()

    async def serve_active(self, active: InstalledBundle) -> BundleRefused | EngineFailed | None:
        """Verify the active bundle completely and serve it; if that fails, the previous one until it is mended.

        Returns why the active bundle cannot be served.
        """
        try:
            await self._serve(active.digest)
        except (BundleRefused, EngineFailed) as error:
            log.warning("the active bundle %s cannot be served: %s", active.reference, error.message)
            previous = self._store.bundle(self._store.snapshot().previous)
            # Automatic fall-back never goes below the epoch that was committed, nor to what was revoked.
            if (
                previous is not None
                and previous.security_epoch >= self._store.epoch()
                and previous.digest not in self._store.warning_store.revoked()
            ):
                with contextlib.suppress(BundleRefused, EngineFailed):
                    await self._serve(previous.digest)
                    return error
            self._serving.mark_unavailable()
            return error
        return None

    async def _serve(self, digest: Digest) -> None:
        sealed = await asyncio.to_thread(verify_bundle, self._directory.bundle(digest), digest)
        await self._serving.swap(await self.complete(sealed), "drain")

    async def complete(self, sealed: SealedBundle) -> SealedBundle:
        """What is loaded for a bundle: the bundle with its adapters; for an adapter, the active bundle with it, too."""
        if sealed.manifest.base is None:
            adapters = self._store.adapters_of(sealed.digest)
            whole = await asyncio.to_thread(with_adapters, sealed, adapters, self._directory)
            return await self._with_derived(whole)
        active = self._serving.bundle
        check_has_base(sealed.manifest, None if active is None else active.digest)
        assert active is not None
        # Another engine switches between adapters, and maps no prepacked weights.
        return msgspec.structs.replace(with_candidate(active, sealed), derived=None, derived_fingerprint=None)

    def discard_unused_prepacked(self) -> None:
        """Remove prepacked weights of what serves, if it has come to be served by an engine that maps none.

        Raises:
            StoreBroken, StoreFull.
        """
        serving = self._serving.bundle
        if serving is not None and serving.adapters and self._prepacker is not None:
            self._prepacker.discard(serving, ADAPTERS)

    async def _with_derived(self, sealed: SealedBundle) -> SealedBundle:
        """The bundle with its prepacked weights, verified or made now, where there can be any."""
        derived = None if self._prepacker is None else await self._prepacker(sealed)
        stat_fingerprint = None if derived is None else await asyncio.to_thread(fingerprint_tree, derived)
        return msgspec.structs.replace(sealed, derived=derived, derived_fingerprint=stat_fingerprint)
