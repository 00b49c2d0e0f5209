"""The agent's side of a worker: spawn it, talk to it, watch it, end it and say why it ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent.engine.interface import CanaryScore, Facts, FinishEvent, Generation, RejectEvent, TokenEvent
from agent.host.memory import memory_kills
from agent.systemd.socket_activation import ActivatedProcess
from agent.worker import protocol
from agent.worker.ports import OnEvent, Worker, WorkerStarter
from agent.worker.settings import WorkerSettings, usable_threads
from agent.worker.stderr_tail import StderrTail
from contract.errors import EngineFailed, LoadTimedOut

__all__ = ["OnEvent", "Worker", "WorkerProcess", "WorkerStarter"]

WORKER_COMMAND = (sys.executable, "-P", "-m", "agent.worker.main")
"""``-P``: the current directory is no place to import code from."""

PINGS_PER_STALL = 4
"""A worker is asked this often within the silence that it is allowed."""

END_SECONDS = 5.0
"""From closing the socket to SIGKILL; a worker looks at its socket between two steps."""

READ_BYTES = 1 << 16


class _StderrFirst(asyncio.StreamReaderProtocol):
    """Where a worker has ended and something is written to it, asyncio closes the connection at once and forgets what
    had come in and was not read yet, which is where the worker said why it ends.
    """

    def __init__(self, reader: asyncio.StreamReader, sock: socket.socket) -> None:
        super().__init__(reader, loop=asyncio.get_running_loop())
        self._left = reader, sock

    def connection_lost(self, exc: Exception | None) -> None:
        reader, sock = self._left
        with contextlib.suppress(OSError):  # nothing is left, or the error itself
            while data := sock.recv(READ_BYTES):
                reader.feed_data(data)
        super().connection_lost(None)


async def _open_streams(sock: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    protocol = _StderrFirst(reader, sock)
    transport, _ = await loop.create_unix_connection(lambda: protocol, sock=sock)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


class LoadTimeout:
    """Ends a load that does not advance for ``seconds``, or that is not over after :data:`protocol.MAX_LOADS` of them.
    Made in the event loop.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._clock = asyncio.get_running_loop().time
        self._last = self._clock() + protocol.MAX_LOADS * seconds
        self._stage = ""
        self.bound = asyncio.timeout_at(self._clock() + seconds)

    def advance(self, stage: str, *, last: bool = False) -> None:
        """The worker said that it goes on; with ``last``, that it will not say so again."""
        self._stage = stage[:80]
        if not self.bound.expired():
            self.bound.reschedule(self._last if last else min(self._last, self._clock() + self._seconds))

    @property
    def reason(self) -> str:
        if not self._stage:
            return f"not loaded within {self._seconds:g} s"
        if self._clock() >= self._last:
            return f"not loaded within {protocol.MAX_LOADS * self._seconds:g} s"
        return f"not loaded, and silent for {self._seconds:g} s after: {self._stage}"


class WorkerProcess:
    """A worker process of our own. Made by :meth:`start`, usable until :meth:`wait_closed` returns.

    ``admit``, ``cancel`` and ``update`` never block and do nothing once the worker has ended: whoever holds requests
    there learns of the end from :meth:`wait_closed`. ``on_event`` is called in the event loop, in order.
    """

    def __init__(
        self, process: asyncio.subprocess.Process | ActivatedProcess, on_event: OnEvent, stall_seconds: float
    ) -> None:
        self._process = process
        self._on_event = on_event
        self._stall_seconds = self._allowed_silence = stall_seconds
        self._writer: asyncio.StreamWriter | None = None
        self._load_timeout: LoadTimeout | None = None
        self._loaded: asyncio.Future[protocol.Loaded] = asyncio.get_running_loop().create_future()
        self._scores: dict[int, asyncio.Future[CanaryScore]] = {}
        self._next_score = 0
        self._heard = 0.0
        self._peak = 0
        self._usage: tuple[protocol.Usage, float] | None = None
        self._why: str | None = None
        self._complaint: str | None = None
        self._stderr_tail = StderrTail()
        self._kills = memory_kills()
        self._watch: asyncio.Task[str] | None = None

    @classmethod
    async def start(
        cls,
        settings: WorkerSettings,
        bundle_dir: Path,
        *,
        derived_dir: Path | None = None,
        adapters: Mapping[str, Path] | None = None,
        nice: int = 0,
        reclaimable_bytes: int = 0,
        on_event: OnEvent,
        command: Sequence[str] = WORKER_COMMAND,
    ) -> WorkerProcess:
        """Spawn a worker, or let systemd do it (``settings.socket``), and wait until its model is loaded.

        ``nice`` adds to the settings' own; ``reclaimable_bytes`` are free once the worker that this one replaces
        has ended; ``command`` is what is run, with ``--fd N --nice N --child`` behind it.

        Raises:
            EngineFailed: it cannot be started, ended, or did not load: said nothing for ``settings.load_seconds``, or
                was not done after twelve times as long.
        """
        weakness = min(19, settings.nice + nice)
        load = _load(settings, bundle_dir, derived_dir, adapters or {}, reclaimable_bytes)
        process: asyncio.subprocess.Process | ActivatedProcess
        if settings.socket is not None:
            process = await ActivatedProcess.connect(settings.socket)
            worker = cls(process, on_event, settings.stall_seconds)
            await worker._open(process.connection, msgspec.structs.replace(load, nice=weakness), settings)
            return worker
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                *("--fd", str(theirs.fileno()), "--nice", str(weakness), "--child"),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
            )
        except OSError as error:
            ours.close()
            raise EngineFailed(f"a worker cannot be started: {error}") from error
        finally:
            theirs.close()
        worker = cls(process, on_event, settings.stall_seconds)
        await worker._open(ours, load, settings)
        return worker

    @property
    def facts(self) -> Facts:
        return self._loaded.result().facts

    @property
    def isolation(self) -> str:
        return self._loaded.result().isolation

    @property
    def pid(self) -> int:
        """Of a worker that systemd started, as it says itself; 0 until it does."""
        return self._process.pid or (self._usage[0].pid if self._usage else 0)

    @property
    def usage(self) -> tuple[protocol.Usage, float] | None:
        """What the worker last said that it takes, and when (a clock that never goes back)."""
        return self._usage

    @property
    def silence(self) -> float:
        """How long a loaded worker has said nothing, as a share of the silence that it is allowed: pings keep it below
        1, where it is ended.
        """
        silent = asyncio.get_running_loop().time() - self._heard if self._heard and self._why is None else 0.0
        return silent / self._allowed_silence

    @property
    def peak_rss_bytes(self) -> int:
        """As the worker last said; it says so with every answer to a ping."""
        return self._peak

    def admit(self, generation: Generation) -> None:
        self._send(protocol.Admit(generation))

    def cancel(self, request: int) -> None:
        self._send(protocol.Cancel(request))

    def update(self, request: int, changes: dict[str, Any]) -> None:
        self._send(protocol.Update(request, changes))

    async def score(
        self, prompt: str, text: str, adapter: str | None = None, picture: bytes | None = None
    ) -> CanaryScore:
        """Teacher-force one canary, with ``adapter`` and ``picture`` if they are given.

        Raises:
            EngineFailed: the worker ended, or its engine cannot score.
        """
        if self._why is not None:
            raise EngineFailed(f"the worker has ended: {self._why}")
        index, self._next_score = self._next_score, self._next_score + 1
        future: asyncio.Future[CanaryScore] = asyncio.get_running_loop().create_future()
        self._scores[index] = future
        self._send(protocol.Score(index, prompt, text, adapter, picture))
        try:
            return await future
        finally:
            self._scores.pop(index, None)

    async def wait_closed(self) -> str:
        """Wait until the process has ended and is reaped; why, in words."""
        assert self._watch is not None
        return await asyncio.shield(self._watch)

    async def close(self) -> None:
        """End the worker: by closing its socket, and by SIGKILL if it does not heed that. Safe to call again."""
        self._end("closed")
        if self._writer is not None:
            self._writer.close()
        assert self._watch is not None
        try:
            async with asyncio.timeout(END_SECONDS):
                await asyncio.shield(self._watch)
        except TimeoutError:
            self.kill()
            await self.wait_closed()

    def kill(self) -> None:
        """SIGKILL now. :meth:`wait_closed` tells when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def _open(self, ours: socket.socket, load: protocol.Load, settings: WorkerSettings) -> None:
        ours.setblocking(False)
        reader, self._writer = await _open_streams(ours)
        self._watch = asyncio.create_task(self._run(reader), name=f"worker {self.pid}")
        self._send(load)
        self._load_timeout = LoadTimeout(settings.load_seconds)
        try:
            async with self._load_timeout.bound:
                await asyncio.shield(self._loaded)
        except TimeoutError:
            self._end(self._load_timeout.reason)
            self.kill()
            raise LoadTimedOut(f"the model did not load: {await self.wait_closed()}") from None
        except asyncio.CancelledError:
            self.kill()
            raise

    def _send(self, command: protocol.Command) -> None:
        if self._writer is not None and self._why is None and not self._writer.is_closing():
            self._writer.write(protocol.frame(command))

    def _end(self, why: str) -> None:
        """The first reason counts: what follows is its consequence."""
        if self._why is None:
            self._why = why

    async def _run(self, reader: asyncio.StreamReader) -> str:
        """The whole life of the worker, until it is reaped."""
        listen = asyncio.create_task(self._listen(reader))
        assert self._process.stderr is not None
        words = asyncio.create_task(self._stderr_tail.listen(self._process.stderr))
        pulse = asyncio.create_task(self._ping_until_silent())
        try:
            await listen
            try:
                async with asyncio.timeout(END_SECONDS):
                    status = await self._process.wait()
            except TimeoutError:
                self.kill()
                status = await self._process.wait()
            await words
        finally:
            for task in (listen, pulse, words):
                task.cancel()
            self.kill()
        starved = memory_kills() > self._kills
        self._end(self._complaint or self._stderr_tail.describe_exit(status, starved=starved))
        assert self._why is not None and self._writer is not None
        self._writer.close()
        self._fail_waiting(self._why)
        return self._why

    def _fail_waiting(self, why: str) -> None:
        if not self._loaded.done():
            self._loaded.set_exception(EngineFailed(f"the model did not load: {why}"))
            self._loaded.exception()  # seen: nobody may be waiting any more
        for future in self._scores.values():
            if not future.done():
                future.set_exception(EngineFailed(f"the worker has ended: {why}"))

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        """Take replies until EOF. A worker that sends anything else is ended."""
        unframer = protocol.Unframer()
        clock = asyncio.get_running_loop().time
        while True:
            try:
                data = await reader.read(READ_BYTES)
                self._heard = clock()
                for body in unframer.feed(data):
                    self._take(protocol.parse_reply(body))
            except ConnectionError:
                return
            except EngineFailed as error:
                self._end(error.message)
                self.kill()
                return
            if not data:
                return

    def _take(self, reply: protocol.Reply) -> None:
        match reply:
            case TokenEvent() | FinishEvent() | RejectEvent():
                if self._why is None:
                    self._on_event(reply)
            case protocol.Pong(_, peak, usage):
                self._peak = peak
                self._note_usage(usage)
            case protocol.Scored(index, score, peak):
                self._peak = peak
                future = self._scores.get(index)
                if future is not None and not future.done():
                    future.set_result(score)
            case protocol.Loading(stage, last):
                if self._load_timeout is not None and not self._loaded.done():
                    self._load_timeout.advance(stage, last=last)
            case protocol.Loaded():
                self._peak = reply.peak_rss_bytes
                self._note_usage(reply.usage)
                if not self._loaded.done():
                    self._loaded.set_result(reply)
            case protocol.Reading(tokens):
                self._allowed_silence = protocol.allowed_silence(self._stall_seconds, tokens)
            case protocol.Failed(message):
                self._complaint = message

    def _note_usage(self, usage: protocol.Usage | None) -> None:
        self._kills = memory_kills()  # none of them was this worker
        if usage is not None:
            self._usage = (usage, asyncio.get_running_loop().time())

    async def _ping_until_silent(self) -> None:
        """Ask a loaded worker whether it is there; silence for too long is a hang, and ends in SIGKILL."""
        await asyncio.shield(self._loaded)
        clock = asyncio.get_running_loop().time
        self._heard = clock()
        number, pause = 0, self._stall_seconds / PINGS_PER_STALL
        while True:
            number += 1
            self._send(protocol.Ping(number))
            due = clock() + pause
            await asyncio.sleep(pause)
            # While this process got no core, or stood still with the whole machine, it is no witness of a silence.
            self._heard = min(clock(), self._heard + max(0.0, clock() - due))
            if self.silence >= 1:
                self._end(f"silent for {self._allowed_silence:g} s")
                self.kill()
                return


def _load(
    settings: WorkerSettings,
    bundle_dir: Path,
    derived_dir: Path | None,
    adapters: Mapping[str, Path],
    reclaimable_bytes: int,
) -> protocol.Load:
    return protocol.Load(
        str(bundle_dir),
        usable_threads(settings),
        engine=settings.engine,
        max_bytes=settings.max_bytes,
        derived_dir=None if derived_dir is None else str(derived_dir),
        load_seconds=settings.load_seconds,
        stall_seconds=settings.stall_seconds,
        adapters={reference: str(path) for reference, path in adapters.items()},
        processors=settings.logits_processors,
        reclaimable_bytes=reclaimable_bytes,
        reproducible=settings.reproducible,
        speculation=settings.speculation,
        slots=settings.slots,
    )
