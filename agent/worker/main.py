"""The worker's main loop: ``python -m agent.worker.main --fd N``.

One thread. Between two steps of the engine it looks at its socket, so a command waits for one step at most; with
nothing to do it sleeps in ``select``. EOF from the agent ends it at once, and the kernel ends it when the agent dies
in the middle of a step.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.engine.interface import READ_SLICE, Engine, Progress
from agent.engine.memory import release_freed_memory
from agent.host.huge_pages import gather_beside
from agent.host.memory import own_anonymous_bytes, peak_rss_bytes, proportional_bytes, resident_bytes
from agent.host.process_priority import set_nice
from agent.systemd.notify import Notifier
from agent.worker.protocol import (
    MAX_LOADS,
    Admit,
    Cancel,
    Command,
    Failed,
    Load,
    Loaded,
    Loading,
    Ping,
    Pong,
    Reading,
    Reply,
    Score,
    Scored,
    Unframer,
    Update,
    Usage,
    allowed_silence,
    frame,
    parse_command,
)
from contract.errors import EdgeBundleError, EngineFailed
from contract.system.parent_death import end_with_parent

READ_BYTES = 1 << 16

WATCHDOG_GRACE_SECONDS = 10.0
"""How much longer than the agent the service manager waits."""


PROGRESS_SECONDS = 1.0

OpenEngine = Callable[[Load, Progress], Engine]
Isolate = Callable[[Load], str]


class _AgentGone(Exception):
    """EOF: nobody is left to work for."""


class _Channel:
    """The socket to the agent: whole commands in, replies out."""

    def __init__(self, connection: socket.socket, manager: Notifier) -> None:
        self._connection = connection
        self._manager = manager
        self._unframer = Unframer()
        self._commands: list[Command] = []

    def receive(self, *, wait: bool) -> list[Command]:
        """Commands that have arrived; with ``wait``, at least one.

        Raises:
            _AgentGone: EOF.
            EngineFailed: something that is not a command.
        """
        found: list[Command] = []
        while True:
            rest = self._manager.keep_alive()
            blocking = wait and not found
            ready, _, _ = select.select([self._connection], [], [], rest if blocking else 0)
            if not ready:
                if blocking:
                    continue
                return found
            try:
                data = self._connection.recv(READ_BYTES)
            except ConnectionError as error:
                raise _AgentGone from error
            if not data:
                raise _AgentGone
            found.extend(parse_command(body) for body in self._unframer.feed(data))

    def send(self, *replies: Reply) -> None:
        """Send all of them in one go.

        Raises:
            _AgentGone: the agent closed its end.
        """
        try:
            self._connection.sendall(b"".join(frame(reply) for reply in replies))
        except (BrokenPipeError, ConnectionError) as error:
            raise _AgentGone from error


def serve(
    connection: socket.socket,
    open_engine: OpenEngine,
    isolate: Isolate = lambda load: "none",
    manager: Notifier | None = None,
    after_load: Callable[[], object] = lambda: None,
) -> int:
    """Serve one agent until it closes the socket; the exit status. ``isolate`` runs before the engine is opened,
    ``after_load`` when the agent has been told that it is.

    ``manager`` is the service manager, if one watches this worker.
    """
    manager = manager or Notifier(None)
    line = _Channel(connection, manager)
    try:
        return _serve(line, open_engine, isolate, manager, after_load)
    except _AgentGone:
        return 0
    except EdgeBundleError as error:
        return _fail(line, error.message)
    except MemoryError:
        return _fail(line, "no memory is left")
    except Exception as error:  # whatever it is, the agent must hear of it
        return _fail(line, f"{type(error).__name__}: {error}")


def _fail(line: _Channel, message: str) -> int:
    try:
        line.send(Failed(message))
    except _AgentGone:
        return 0
    return EngineFailed.exit_status


def _serve(
    line: _Channel, open_engine: OpenEngine, isolate: Isolate, manager: Notifier, after_load: Callable[[], object]
) -> int:
    first, *commands = line.receive(wait=True)
    if not isinstance(first, Load):
        raise EngineFailed("the first command was not load")
    if first.nice:
        os.nice(first.nice)
    # Loading may be silent for long. The agent gives up first and closes the line; the manager ends who hangs.
    if manager.watchdog_seconds is not None and first.load_seconds:
        manager.allow_silence(first.load_seconds + WATCHDOG_GRACE_SECONDS)
    isolation = isolate(first)
    with _progress(line, manager, first.load_seconds) as progress:
        engine = open_engine(first, progress)
    release_freed_memory()
    if manager.watchdog_seconds is not None and first.stall_seconds:
        manager.allow_silence(first.stall_seconds + WATCHDOG_GRACE_SECONDS)
    line.send(Loaded(engine.facts, isolation, peak_rss_bytes(), usage()))
    after_load()
    while True:
        for command in commands:
            _execute(command, engine, line)
        if engine.busy:
            with _long_step(engine.next_read, first.stall_seconds, line, manager):
                events = engine.step()
            if events:
                line.send(*events)
        commands = line.receive(wait=not engine.busy)


@contextlib.contextmanager
def _progress(line: _Channel, manager: Notifier, load_seconds: float) -> Iterator[Progress]:
    """What lets agent and manager know that loading goes on; it says nothing once it is over."""
    last_report = time.monotonic()
    over = False

    def advance(stage: str, /, *, last: bool = False) -> None:
        nonlocal last_report
        if over or not (last or time.monotonic() - last_report >= PROGRESS_SECONDS):
            return
        last_report = time.monotonic()
        line.send(Loading(stage, last))
        manager.progress()
        if last and manager.watchdog_seconds is not None and load_seconds:
            manager.allow_silence(MAX_LOADS * load_seconds + WATCHDOG_GRACE_SECONDS)

    yield advance
    over = True


@contextlib.contextmanager
def _long_step(tokens: int, stall_seconds: float, line: _Channel, manager: Notifier) -> Iterator[None]:
    """Let agent and manager know of a step that takes longer than others, before and after."""
    if tokens <= READ_SLICE:
        yield
        return
    watched = manager.watchdog_seconds
    if watched is not None and stall_seconds:
        manager.allow_silence(allowed_silence(stall_seconds, tokens) + WATCHDOG_GRACE_SECONDS)
    line.send(Reading(tokens))
    yield
    line.send(Reading(0))
    if watched is not None and stall_seconds:
        manager.allow_silence(watched)


def _execute(command: Command, engine: Engine, line: _Channel) -> None:
    match command:
        case Admit(generation):
            engine.admit(generation)
        case Cancel(request):
            line.send(*engine.cancel(request))
        case Update(request, changes):
            engine.update(request, changes)
        case Score(index, prompt, text, adapter, picture):
            line.send(Scored(index, engine.score(prompt, text, adapter, picture), peak_rss_bytes()))
        case Ping(number):
            line.send(Pong(number, peak_rss_bytes(), usage()))
        case Load():
            raise EngineFailed("a worker loads once")


def usage() -> Usage:
    """What this process takes now."""
    return Usage(os.getpid(), resident_bytes(), proportional_bytes(), time.process_time(), own_anonymous_bytes())


def main(arguments: list[str] | None = None) -> int:
    """Command line of a worker; started by the agent or by systemd, not by people."""
    parser = argparse.ArgumentParser(prog="agent.worker.main", description="one loaded model")
    parser.add_argument("--fd", type=int, required=True, help="descriptor of the connected UNIX socket")
    parser.add_argument("--nice", type=int, default=0, help="scheduling weakness to take on, 0 to 19")
    parser.add_argument("--child", action="store_true", help="end with the process that started this one")
    options = parser.parse_args(arguments)
    if options.child:
        end_with_parent()
        set_nice(options.nice)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the agent decides when to end
    with socket.socket(fileno=options.fd) as connection:
        return serve(connection, _open_engine, _isolate, Notifier.from_environment(), gather_beside)


def _isolate(load: Load) -> str:
    from agent.worker.isolation import isolate

    files = (load.bundle_dir, load.derived_dir, *load.adapters.values())
    return isolate(Path(path).resolve() for path in files if path)


def _open_engine(load: Load, progress: Progress) -> Engine:
    from agent.engine.engine_selection import open_engine

    return open_engine(
        Path(load.bundle_dir),
        engine=load.engine,
        threads=load.threads,
        max_bytes=load.max_bytes,
        reclaimable_bytes=load.reclaimable_bytes,
        derived_dir=None if load.derived_dir is None else Path(load.derived_dir),
        adapters={reference: Path(path) for reference, path in load.adapters.items()},
        processors=load.processors,
        reproducible=load.reproducible,
        speculation=load.speculation,
        slots=load.slots,
        progress=progress,
    )


if __name__ == "__main__":
    sys.exit(main())
