"""The client without ``await``: :class:`AsyncClient` in a thread of its own, and nothing of its own beside."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import AsyncGenerator, Generator
from typing import Any, TypeVar, overload

from contract.mqtt.topics import DEFAULT_ROOT
from edge_bundle.async_client import DEFAULT_TIMEOUT, AsyncClient, Offline
from edge_bundle.broker import BrokerAddress
from edge_bundle.broker_session import FLUSH_SECONDS
from edge_bundle.chat import Chat
from edge_bundle.completion import Chunk, Completion, ParsedCompletion
from edge_bundle.event_loop import UNWIND_SECONDS, EventLoop, Steps
from edge_bundle.presence import Device
from edge_bundle.replies import Found

T = TypeVar("T")


def _close(loop: EventLoop, core: AsyncClient) -> None:
    """Also when the interpreter ends: nothing here needs a new thread then, and nothing waits for ever."""
    if loop.inside:
        threading.Thread(target=_close, args=(loop, core), daemon=True).start()
        return

    def leave() -> None:
        if (session := core.leave()) is not None:
            session.close()

    with contextlib.suppress(TimeoutError):
        # In the loop's thread, where no Ctrl-C comes between two locks of the MQTT library.
        loop.call(leave, seconds=FLUSH_SECONDS + UNWIND_SECONDS)
    loop.stop()


class Client:
    """``with Client("mqtt://localhost") as client: client.complete(device="kitchen-1", messages=[…])``.

    Every method is :class:`AsyncClient`'s of that name, and any number of threads may call them. Breaking out of a
    loop, Ctrl-C and a time-out end the request on the device.

    Raises (constructor): SourceUnavailable, UsageError.
    """

    def __init__(self, address: BrokerAddress | str, *, name: str | None = None, root: str = DEFAULT_ROOT) -> None:
        self._core = AsyncClient(address, name=name, root=root)
        self._loop = EventLoop()
        try:
            self._loop.run(self._core.connect)
        except BaseException:
            self._loop.stop()
            raise
        self._finalizer = weakref.finalize(self, _close, self._loop, self._core)

    @property
    def name(self) -> str:
        """Our name in the topics."""
        return self._core.name

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is under way and end the connection."""
        self._finalizer()

    @overload
    def complete(
        self,
        *,
        device: str | None = None,
        group: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        retry: bool = True,
        offline: Offline = "refuse",
        parse: None = None,
        **fields: Any,
    ) -> Completion: ...

    @overload
    def complete(
        self,
        *,
        device: str | None = None,
        group: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        retry: bool = True,
        offline: Offline = "refuse",
        parse: type[T],
        **fields: Any,
    ) -> ParsedCompletion[T]: ...

    def complete(self, *, parse: type[Any] | None = None, **options: Any) -> Completion:
        """See :meth:`AsyncClient.complete`."""
        return self._loop.run(lambda: self._core.complete(parse=parse, **options))

    def stream(
        self,
        *,
        device: str | None = None,
        group: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        retry: bool = True,
        offline: Offline = "refuse",
        **fields: Any,
    ) -> Generator[Chunk, None, None]:
        """See :meth:`AsyncClient.stream`."""
        return self._iterate(
            self._core.stream(
                device=device, group=group, timeout=timeout, retry=retry, offline=offline, **fields
            )
        )  # fmt: skip

    def ask(
        self,
        body: dict[str, Any],
        *,
        device: str | None = None,
        group: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        retry: bool = False,
        offline: Offline = "refuse",
    ) -> Generator[Found, None, None]:
        """See :meth:`AsyncClient.ask`."""
        return self._iterate(
            self._core.ask(body, device=device, group=group, timeout=timeout, retry=retry, offline=offline)
        )

    def _iterate(self, found: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        steps = Steps(found)
        try:
            while one := self._loop.run(steps.next):
                yield one[0]
        finally:
            # Left, interrupted or over.
            self._loop.end(steps)

    def devices(self) -> dict[str, Device]:
        """See :meth:`AsyncClient.devices`."""
        return self._loop.run(self._core.devices)

    def chat(self, **options: Any) -> Chat:
        """See :meth:`AsyncClient.chat`."""
        return Chat(self, **options)

    def cancel(self, device: str, request_id: str) -> None:
        """See :meth:`AsyncClient.cancel`."""
        self._loop.run(lambda: self._core.cancel(device, request_id))

    def update(self, device: str, request_id: str, **changes: Any) -> None:
        """See :meth:`AsyncClient.update`."""
        self._loop.run(lambda: self._core.update(device, request_id, **changes))

    def resume(self, device: str, request_id: str) -> None:
        """See :meth:`AsyncClient.resume`."""
        self._loop.run(lambda: self._core.resume(device, request_id))
