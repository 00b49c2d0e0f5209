"""An event loop in a thread of its own, for callers that wait: whatever interrupts one leaves nothing running in it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Generic, TypeVar

from contract.errors import UsageError

T = TypeVar("T")

UNWIND_SECONDS = 5.0
"""For what was interrupted to tell the device; it takes milliseconds."""


class _Call(Generic[T]):
    """What one thread waits for while the loop's thread runs it. All but ``wait`` happens in the loop's thread.

    ``KeyboardInterrupt`` comes after any call in the main thread, also within the standard library's locks written in
    Python, which then stay locked for ever; so whoever waits touches nothing but a lock of the interpreter itself.
    """

    def __init__(self, begin: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self.over = False
        self._begin = begin
        self._task: asyncio.Task[T] | None = None
        self._unwanted = False
        self._ended = threading.Lock()
        self._ended.acquire()

    def start(self) -> None:
        """Once, however often it is called."""
        if not self._unwanted and self._task is None:
            self._task = asyncio.get_running_loop().create_task(_await(self._begin))
            self._task.add_done_callback(self._end)

    def cancel(self) -> None:
        """It has ended, or will never begin, once :meth:`wait` returns."""
        self._unwanted = True
        if self._task is None:
            self._end()
        else:
            self._task.cancel()

    def _end(self, task: asyncio.Task[T] | None = None) -> None:
        if task is not None and not task.cancelled():
            task.exception()  # nobody may ask for it: asyncio would complain
        self.over = True
        self._ended.release()

    def wait(self, seconds: float) -> bool:
        """Whether it is over within ``seconds``; -1 is for ever."""
        return self.over or self._ended.acquire(timeout=seconds)

    def result(self) -> T:
        assert self._task is not None
        if self._task.cancelled():
            raise concurrent.futures.CancelledError
        return self._task.result()


async def _await(begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Whatever goes wrong, when ``begin`` is called or later, goes wrong in a task."""
    return await begin()


class EventLoop:
    """An event loop in a thread, for callers without one."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="edge-bundle client", daemon=True)
        self._thread.start()

    @property
    def inside(self) -> bool:
        """Whether the caller is the loop's thread: the garbage collector may end iterators and clients there."""
        return threading.current_thread() is self._thread

    def run(self, begin: Callable[[], Coroutine[Any, Any, T]], *, seconds: float = -1, cancellable: bool = True) -> T:
        """What the coroutine that ``begin`` makes returns. Whatever interrupts the wait (Ctrl-C) cancels it, unless it
        must happen all the same, and it has ended when this returns.

        Raises:
            UsageError: the loop has ended. TimeoutError: it took longer than ``seconds``.
        """
        if self.inside:
            raise RuntimeError("a client's own thread cannot wait for itself")
        call = _Call(begin)
        try:
            self._post(call.start)
            if not call.wait(seconds):
                raise TimeoutError
        except BaseException:
            if not call.over:
                with contextlib.suppress(UsageError):
                    self._post(call.cancel if cancellable else call.start)
                    call.wait(UNWIND_SECONDS)
            raise
        return call.result()

    def call(self, function: Callable[[], T], *, seconds: float = -1) -> T:
        """Call it in the loop's thread."""

        async def inner() -> T:
            return function()

        return self.run(inner, seconds=seconds)

    def end(self, steps: Steps[Any]) -> None:
        """Close them. A client that was closed has done so already."""
        if self.inside:
            self._loop.create_task(steps.close())
            return
        with contextlib.suppress(UsageError):
            self.run(steps.close, cancellable=False)

    def _post(self, function: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            raise UsageError("this client is closed") from None

    def stop(self) -> None:
        """End the thread, once what runs has ended."""

        async def drain() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=UNWIND_SECONDS)

        with contextlib.suppress(UsageError, TimeoutError):
            self.run(drain, seconds=2 * UNWIND_SECONDS)
            self._post(self._loop.stop)
        self._thread.join(UNWIND_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()


class Steps(Generic[T]):
    """An asynchronous iterator that is taken step by step, in the loop's thread. One step at a time."""

    def __init__(self, found: AsyncGenerator[T, None]) -> None:
        self._found = found
        self._step: asyncio.Task[Any] | None = None

    async def next(self) -> list[T]:
        """What comes next; empty where nothing does."""
        self._step = asyncio.current_task()
        try:
            return [await anext(self._found)]
        except StopAsyncIteration:
            return []
        finally:
            self._step = None

    async def close(self) -> None:
        """End a step that nobody waits for any more, and then the iterator: it cannot be closed while it runs."""
        if self._step is not None:
            self._step.cancel()
            await asyncio.wait([self._step])
        await self._found.aclose()
