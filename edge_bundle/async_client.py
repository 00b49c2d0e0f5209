"""The client for asyncio: any number of requests at a time over one connection."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from typing import Any

from contract.errors import SourceUnavailable
from contract.mqtt.topics import DEFAULT_ROOT, Topics
from edge_bundle.broker import BrokerAddress
from edge_bundle.broker_session import BrokerSession, Message
from edge_bundle.client import client_name, session_name
from edge_bundle.completion import Chunk, Completion, to_chunk, to_completion
from edge_bundle.replies import Answer, Found
from edge_bundle.request_session import RequestSession, control_message


class AsyncClient:
    """``async with AsyncClient(address) as client: await client.complete(device="kitchen-1", messages=[…])``.

    The same as :class:`edge_bundle.client.Client`, for any number of tasks of one event loop.

    Raises (on entering): SourceUnavailable, UsageError.
    """

    def __init__(self, address: BrokerAddress, *, name: str | None = None, root: str = DEFAULT_ROOT) -> None:
        self.name = client_name(name)
        self._address = address
        self._root = root
        self._session: BrokerSession | None = None
        # A message for a request, or None: look again, the connection came back or is closed. Two may ask the same.
        self._inboxes: dict[str, list[asyncio.Queue[Message | None]]] = {}

    async def __aenter__(self) -> AsyncClient:
        loop = asyncio.get_running_loop()

        def open_session() -> BrokerSession:
            session = BrokerSession(
                self._address,
                session_name(self.name),
                on_message=lambda message: loop.call_soon_threadsafe(self._route, message),
                on_reconnect=lambda: loop.call_soon_threadsafe(self._reconnected),
            )
            try:
                session.subscribe(Topics("any", self._root).client_replies_filter(self.name))
            except BaseException:
                session.close()
                raise
            return session

        self._session = await asyncio.to_thread(open_session)
        return self

    async def __aexit__(self, *_: object) -> None:
        session, self._session = self._session, None
        if session is not None:
            self._reconnected()
            await asyncio.to_thread(session.close)

    def _route(self, message: Message) -> None:
        for inbox in self._inboxes.get(message.topic.rpartition("/")[2], ()):
            inbox.put_nowait(message)

    def _reconnected(self) -> None:
        for inboxes in self._inboxes.values():
            for inbox in inboxes:
                inbox.put_nowait(None)

    async def complete(
        self,
        *,
        device: str | None = None,
        group: str | None = None,
        seconds: float = 600.0,
        retry: bool = True,
        **fields: Any,
    ) -> Completion:
        """The whole answer.

        Raises:
            SourceUnavailable: no answer in time, or the device cannot answer now. RequestInvalid: the request is at
            fault. EngineFailed: the device failed.
        """
        # The frames of a group say who of it answers.
        body = {"stream": group is not None, **fields}
        async for found in self.ask(body, device=device, group=group, seconds=seconds, retry=retry):
            if isinstance(found, Answer):
                return to_completion(found)
        raise AssertionError("asking ends with an answer or an error")

    async def stream(
        self,
        *,
        device: str | None = None,
        group: str | None = None,
        seconds: float = 600.0,
        retry: bool = True,
        **fields: Any,
    ) -> AsyncIterator[Chunk]:
        """The answer as it comes; the last chunk says why it ended.

        Raises:
            As :meth:`complete` does.
        """
        request_id = str(fields.setdefault("id", secrets.token_hex(8)))
        async for found in self.ask(fields, device=device, group=group, seconds=seconds, retry=retry):
            if (chunk := to_chunk(request_id, found)) is not None:
                yield chunk

    async def ask(
        self,
        body: dict[str, Any],
        *,
        device: str | None = None,
        group: str | None = None,
        seconds: float = 600.0,
        retry: bool = False,
    ) -> AsyncIterator[Found]:
        """Send a request and yield what comes of it; an :class:`Answer` is the end.

        Raises:
            SourceUnavailable: no answer within ``seconds``, or the client was closed meanwhile. UsageError,
            RequestInvalid: as :class:`RequestSession` does.
        """
        session = self._session
        assert session is not None, "enter the client first: async with AsyncClient(…) as client"
        now = asyncio.get_running_loop().time
        asking = RequestSession(
            body, name=self.name, root=self._root, device=device, group=group,
            now=now(), seconds=seconds, retry=retry,
        )  # fmt: skip
        inbox: asyncio.Queue[Message | None] = asyncio.Queue()
        self._inboxes.setdefault(asking.id, []).append(inbox)
        try:
            while True:
                if self._session is None:
                    raise SourceUnavailable("the client was closed before the answer came")
                for action in asking.actions(now()):
                    # A broker that is away: it is asked again when the connection is back, or the time is up.
                    with contextlib.suppress(SourceUnavailable):
                        await asyncio.to_thread(session.publish, *asking.message(action))
                try:
                    async with asyncio.timeout(max(0.0, asking.due_at() - now())):
                        message = await inbox.get()
                except TimeoutError:
                    continue
                if message is None:
                    asking.reconnected(now())
                    continue
                for found in asking.feed(message.topic, message.payload, now()):
                    yield found
                    if isinstance(found, Answer):
                        return
        finally:
            left = self._inboxes[asking.id]
            left.remove(inbox)
            if not left:
                del self._inboxes[asking.id]

    async def cancel(self, device: str, request_id: str) -> None:
        """End a request of our own; its last frame says ``cancelled``."""
        await self._control(device, request_id, "cancel")

    async def update(self, device: str, request_id: str, **changes: Any) -> None:
        """Change sampling parameters of a request of our own; asking yields ``Refused`` if that is wrong."""
        await self._control(device, request_id, "update", set=changes)

    async def resume(self, device: str, request_id: str) -> None:
        """Ask for all text so far, or for the last frame, of a request of our own."""
        await self._control(device, request_id, "resume")

    async def _control(self, device: str, request_id: str, op: str, **more: Any) -> None:
        assert self._session is not None
        message = control_message(self._root, device, self.name, request_id, op, **more)
        await asyncio.to_thread(self._session.publish, *message)
