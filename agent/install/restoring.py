"""Bringing a bundle on this disk into service: verified completely, with what is loaded beside it."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import msgspec

from agent.install.adapters import check_has_base, with_adapters, with_candidate
from agent.install.deriving import ADAPTERS, Deriver
from agent.install.inspection import inspect_bundle
from agent.install.loading import mark_tree
from agent.install.ports import SealedBundle, Serving
from agent.state.installation import InstallationState, InstalledBundle
from agent.state.layout import StateDirectory
from contract.errors import BundleRefused, EngineFailed
from contract.names import Digest

log = logging.getLogger("edge_agent.install")


class Restoring:
    """Knows what belongs to a bundle that is to be served, and how to get back to one that was."""

    def __init__(
        self, directory: StateDirectory, state: InstallationState, serving: Serving, deriver: Deriver | None
    ) -> None:
        self._directory = directory
        self._store = state
        self._serving = serving
        self._deriver = deriver

    def serves(self, bundle: InstalledBundle) -> bool:
        """Whether ``bundle`` answers now, with just the adapters that are recorded for it."""
        serving = self._serving.bundle
        if serving is None or serving.digest != bundle.digest:
            return False
        wanted = {adapter.digest for adapter in self._store.adapters_of(bundle.digest)}
        return {each.digest for each in serving.adapters} == wanted

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
                and previous.digest not in self._store.standing.revoked()
            ):
                with contextlib.suppress(BundleRefused, EngineFailed):
                    await self._serve(previous.digest)
                    return error
            self._serving.mark_unavailable()
            return error
        return None

    async def _serve(self, digest: Digest) -> None:
        sealed = await asyncio.to_thread(inspect_bundle, self._directory.bundle(digest), digest)
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
        return msgspec.structs.replace(with_candidate(active, sealed), derived=None, derived_marks=None)

    def tidy(self) -> None:
        """Remove prepacked weights of what serves, if it has come to be served by an engine that maps none.

        Raises:
            StoreBroken, StoreFull.
        """
        serving = self._serving.bundle
        if serving is not None and serving.adapters and self._deriver is not None:
            self._deriver.discard(serving, ADAPTERS)

    async def _with_derived(self, sealed: SealedBundle) -> SealedBundle:
        """The bundle with its prepacked weights, verified or made now, where there can be any."""
        derived = None if self._deriver is None else await self._deriver(sealed)
        marks = None if derived is None else await asyncio.to_thread(mark_tree, derived)
        return msgspec.structs.replace(sealed, derived=derived, derived_marks=marks)
