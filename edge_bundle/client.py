"""The client without ``await``: :class:`AsyncClient` in a thread of its own, and nothing of its own beside."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any, TypeVar, overload

from contract.errors import UsageError
from contract.mqtt.topics import DEFAULT_ROOT
from edge_bundle.async_client import DEFAULT_TIMEOUT, AsyncClient, Offline
from edge_bundle.broker import BrokerAddress
from edge_bundle.chat import Chat
from edge_bundle.completion import Chunk, Completion, ParsedCompletion
from edge_bundle.presence import Device
from edge_bundle.replies import Found

T = TypeVar("T")

UNWIND_SECONDS = 5.0
"""For what was interrupted to tell the device; it takes milliseconds."""


class _EventLoop:
    """An event loop in a thread, for callers without one."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="edge-bundle client", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Its result. Whatever interrupts the wait (Ctrl-C) cancels it, and it has ended when this returns.

        Raises:
            UsageError: the loop has ended.
        """
        done: concurrent.futures.Future[T] = concurrent.futures.Future()
        tasks: list[asyncio.Task[T]] = []

        def start() -> None:
            task = self._loop.create_task(coroutine)
            tasks.append(task)
            task.add_done_callback(lambda ended: _hand_over(ended, done))

        try:
            self._loop.call_soon_threadsafe(start)
        except RuntimeError:
            coroutine.close()
            raise UsageError("this client is closed") from None
        if threading.current_thread() is self._thread:
            # The garbage collector may end an iterator here: it ends by itself then.
            raise RuntimeError("not from its own thread")
        try:
            return done.result()
        except BaseException:
            if not done.done():
                with contextlib.suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])
                concurrent.futures.wait([done], UNWIND_SECONDS)
            raise

    def call(self, function: Callable[[], T]) -> T:
        """Call it in the loop's thread."""

        async def inner() -> T:
            return function()

        return self.run(inner())

    def stop(self) -> None:
        """End the thread, once what runs has ended."""

        async def drain() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        with contextlib.suppress(UsageError):
            self.run(drain())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(UNWIND_SECONDS)
            self._loop.close()


def _hand_over(ended: asyncio.Task[T], done: concurrent.futures.Future[T]) -> None:
    if ended.cancelled():
        done.set_exception(concurrent.futures.CancelledError())
    elif (error := ended.exception()) is not None:
        done.set_exception(error)
    else:
        done.set_result(ended.result())


def _close(loop: _EventLoop, core: AsyncClient) -> None:
    """Also when the interpreter ends: nothing here needs a new thread."""
    session = loop.call(core.leave)
    if session is not None:
        session.close()
    loop.stop()


class Client:
    """``with Client("mqtt://localhost") as client: client.complete(device="kitchen-1", messages=[…])``.

    Every method is :class:`AsyncClient`'s of that name, and any number of threads may call them. Breaking out of a
    loop, Ctrl-C and a time-out end the request on the device.

    Raises (constructor): SourceUnavailable, UsageError.
    """

    def __init__(self, address: BrokerAddress | str, *, name: str | None = None, root: str = DEFAULT_ROOT) -> None:
        self._core = AsyncClient(address, name=name, root=root)
        self._loop = _EventLoop()
        try:
            self._loop.run(self._core.connect())
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
        return self._loop.run(self._core.complete(parse=parse, **options))

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
        async def following() -> list[T]:
            try:
                return [await anext(found)]
            except StopAsyncIteration:
                return []

        try:
            while one := self._loop.run(following()):
                yield one[0]
        finally:
            # Left, interrupted or over. A client that was closed has ended it already.
            with contextlib.suppress(UsageError):
                self._loop.run(found.aclose())

    def devices(self) -> dict[str, Device]:
        """See :meth:`AsyncClient.devices`."""
        return self._loop.run(self._core.devices())

    def chat(self, **options: Any) -> Chat:
        """See :meth:`AsyncClient.chat`."""
        return Chat(self, **options)

    def cancel(self, device: str, request_id: str) -> None:
        """See :meth:`AsyncClient.cancel`."""
        self._loop.run(self._core.cancel(device, request_id))

    def update(self, device: str, request_id: str, **changes: Any) -> None:
        """See :meth:`AsyncClient.update`."""
        self._loop.run(self._core.update(device, request_id, **changes))

    def resume(self, device: str, request_id: str) -> None:
        """See :meth:`AsyncClient.resume`."""
        self._loop.run(self._core.resume(device, request_id))
