"""What the service's loop says of itself over HTTP."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

from starlette.routing import BaseRoute

from fleet.http.metrics import Sample, gauge
from fleet.service import Service


class ServiceHealth:
    """A part of an application (:class:`fleet.http.app.Part`) without a path of its own. That broker or database are
    away is a warning: they are waited for, and what else the process does goes on.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> Sequence[BaseRoute]:
        return ()

    def running(self) -> AbstractAsyncContextManager[None]:
        return contextlib.nullcontext()

    def problems(self) -> dict[str, str]:
        return {}

    def warnings(self) -> dict[str, str]:
        trouble = self._service.trouble
        return {"service": trouble} if trouble else {}

    def samples(self) -> Sequence[Sample]:
        leads, writes = self._service.leads, self._service.writes
        return [
            gauge("edge_fleet_leads", "1 while this process decides about rollouts", float(leads)),
            gauge("edge_fleet_writes", "1 while this process writes what devices say", float(writes)),
        ]
