"""From a request's ``model`` to the device that answers it: for the gateway, the console's playground and the quality
canary alike.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection
from typing import Any

from edge_bundle.async_client import AsyncClient
from edge_bundle.presence import Presence
from fleet.gateway.affinity import Affinity
from fleet.gateway.asking import REQUEST_SECONDS, Begun, Event, ask
from fleet.gateway.choice import choose
from fleet.gateway.models import Wanted, candidates
from fleet.gateway.requests import Asked


class Routing:
    """Knows what it has asked of whom. A request may take ``seconds``; ``on_another`` hears of each further device."""

    def __init__(self, *, seconds: float = REQUEST_SECONDS, on_another: Callable[[], object] = lambda: None) -> None:
        self._seconds = seconds
        self._on_another = on_another
        self._in_flight: Counter[str] = Counter()
        self._affinity = Affinity()

    def pick(self, presence: Presence, wanted: Wanted, asked: Asked, tried: Collection[str] = ()) -> str:
        """The device to ask next, which is none of ``tried``.

        Raises:
            RequestInvalid: there is no such model. SourceUnavailable: nobody can answer now; says why.
        """
        return choose(
            candidates(presence, wanted),
            in_flight=self._in_flight,
            cached=self._affinity.find(asked.beginnings),
            needs=asked.needs,
            excluded=tried,
            wanted=wanted,
        )

    async def ask(
        self, client: AsyncClient, wanted: Wanted, asked: Asked, body: dict[str, Any]
    ) -> AsyncGenerator[Event, None]:
        """As :func:`fleet.gateway.asking.ask`; ``body`` is one of ``asked``.

        Raises:
            Failed: nobody answers it.
        """
        if wanted.kind == "bundle":
            # So that it is answered by what was asked for, also where that has just been replaced.
            body = {**body, "model": wanted.name}
        begun = 0
        found = ask(
            client,
            body,
            lambda tried: self.pick(client.presence, wanted, asked, tried),
            self._in_flight,
            seconds=self._seconds,
        )
        async with contextlib.aclosing(found) as events:
            async for each in events:
                if isinstance(each, Begun):
                    begun += 1
                    if begun > 1:
                        self._on_another()
                    self._affinity.remember(asked.beginnings, each.device)
                yield each
