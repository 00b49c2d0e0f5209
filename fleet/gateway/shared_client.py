"""One connection to the broker for all who ask devices within a process's part: made when it is first needed."""

from __future__ import annotations

import asyncio

from contract.identifiers import is_identifier
from edge_bundle.async_client import AsyncClient
from edge_bundle.broker import BrokerAddress


class SharedClient:
    """A client of ``address`` below the topic ``root``; everything of it is called in one event loop."""

    def __init__(self, address: BrokerAddress, root: str) -> None:
        self.address = address
        self._root = root
        self._connecting = asyncio.Lock()
        self._client: AsyncClient | None = None

    @property
    def now(self) -> AsyncClient | None:
        """The client, once it knows the devices; it connects again by itself."""
        return self._client

    async def connected(self) -> AsyncClient:
        """The client; whoever comes while it is made waits for the same one.

        Raises:
            EdgeBundleError: the broker is away, or refuses us; the next call tries again.
        """
        async with self._connecting:
            if self._client is None:
                self._client = await self._connect()
            return self._client

    async def _connect(self) -> AsyncClient:
        # Where a broker's rules have clients' names, they are users' names (docs/MQTT.md, "Access").
        user = self.address.username or ""
        client = AsyncClient(self.address, name=user if is_identifier(user) else None, root=self._root)
        try:
            await client.connect()
            await client.devices()
        except BaseException:
            await client.close()
            raise
        return client

    async def close(self) -> None:
        """Leave the broker; what is asked over it ends."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()
