"""Keeps the catalogue of bundles as the repository has it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from contract.errors import EdgeBundleError
from fleet.catalogue import read_catalogue
from fleet.store import catalogue
from fleet.web.settings import Settings

log = logging.getLogger("edge_fleet.web")

REFRESH_SECONDS = 300.0
"""Between two looks at the repository."""


class CatalogueRefresh:
    """``fault``: why the last look failed; what was seen before stays, with its time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.fault = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Looks, again and again, while it is entered."""
        if self._settings.depot is None or self._settings.root is None:
            yield
            return
        task = asyncio.create_task(self._refresh_for_ever(), name="catalogue")
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _refresh_for_ever(self) -> None:
        while True:
            await asyncio.to_thread(self.refresh)
            await asyncio.sleep(REFRESH_SECONDS)

    def refresh(self) -> None:
        """Look once."""
        settings = self._settings
        assert settings.depot is not None
        assert settings.root is not None
        try:
            found = read_catalogue(settings.depot, settings.root)
            with settings.database.write() as connection:
                catalogue.replace(connection, found.listed, found.revoked, settings.clock())
        except EdgeBundleError as error:
            if self.fault != error.message:
                log.warning("the repository %s: %s", settings.depot, error.message)
            self.fault = error.message
        else:
            self.fault = ""
