"""What an update removes from this disk when it has ended."""

from __future__ import annotations

import logging
from collections.abc import Collection

from agent.install.gc import collect_bundles, collect_derived, collect_orphans, collect_parts
from agent.install.settings import InstallSettings
from agent.install.update.restore import Restorer
from agent.state.installation import InstallationState
from agent.state.layout import StateDirectory
from contract.errors import EdgeBundleError
from contract.identifiers import Digest
from contract.system.durable import Disk

log = logging.getLogger("edge_agent.install")


class Collector:
    """Collects garbage around an update.

    Failing to do so affects nothing that is active, and is tried again: no method raises.
    """

    def __init__(
        self,
        state: InstallationState,
        directory: StateDirectory,
        disk: Disk,
        restorer: Restorer,
    ) -> None:
        self._state = state
        self._directory = directory
        self._disk = disk
        self._restorer = restorer

    def collect(self, settings: InstallSettings, protected: Collection[Digest]) -> None:
        """Remove what ``settings`` do not keep, but for the bundles ``protected``."""
        try:
            collect_bundles(
                self._state,
                self._directory,
                self._disk,
                keep_previous=settings.keep_previous,
                quota_bytes=settings.quota_bytes,
                protected=protected,
            )
            collect_orphans(self._state, self._directory, self._disk, parts_kept=())
            self._collect_derived()
        except EdgeBundleError as error:
            log.warning("old bundles could not be removed: %s", error.message)

    def tidy(self) -> None:
        """Remove what was being removed when the power failed; partial downloads stay."""
        try:
            collect_orphans(self._state, self._directory, self._disk, parts_kept=None)
            self._collect_derived()
        except EdgeBundleError as error:
            log.warning("orphans could not be removed: %s", error.message)

    def free_space(self) -> None:
        """Remove what can be fetched or made again; nothing of it has to be recorded."""
        try:
            collect_parts(self._directory, self._disk)
            collect_derived(self._state, self._directory, self._disk)
        except EdgeBundleError as error:
            log.debug("no disk space could be freed: %s", error.message)

    def _collect_derived(self) -> None:
        """Remove prepacked weights that no worker maps: a bundle that is rolled back to gets its own again."""
        collect_derived(self._state, self._directory, self._disk, kept=self._restorer.served)
        self._restorer.discard_unused_prepacked()
