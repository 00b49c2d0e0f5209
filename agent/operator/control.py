"""The control socket for the operator of this device: a UNIX socket that only the agent's account and root can open.

JSON lines. A client sends one :class:`Order`; the agent answers with :class:`ProgressUpdate` lines while it works and
one :class:`OrderResult` line at the end. The socket is in the state directory; a path longer than a socket address can
hold is reached through the directory's descriptor.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from agent.install.desired import DesiredBundle, Install, OperatorOrder, rollback_target
from agent.install.reconciler import Reconciler
from agent.install.settings import InstallSettings
from agent.install.status import InstallStatus, LiveStatus, collect_status
from agent.install.update.attempt import Outcome
from agent.state.installation import InstallationState
from agent.state.layout import StateDirectory
from contract.errors import EdgeBundleError, EngineFailed, SourceUnavailable, StoreBroken, UsageError
from contract.identifiers import check_bundle_name, check_version
from contract.mqtt.reports import Reported
from contract.reasons import Reason
from contract.source.access import Source, location_of, source_faults

log = logging.getLogger("edge_agent.control")

MAX_LINE_BYTES = 1 << 20
"""An overview of a hundred bundles takes 40 kB."""

MAX_CLIENTS = 8
"""Commands of one operator."""

ORDER_SECONDS = 10.0
"""A client that connects says what it wants."""

STATUS_SECONDS = 20.0
"""An agent on a box that swaps answers late; one that hangs does not, and whoever looks into that must not hang too."""


class Order(Struct, frozen=True, forbid_unknown_fields=True):
    """What the operator wants; ``source`` is an absolute path, a URL or the name of a configured source, ``root`` an
    absolute path.
    """

    op: Literal["status", "install", "rollback", "refresh_trust"]
    name: str | None = None
    version: str | None = None
    source: str | None = None
    root: str | None = None
    allow_epoch: bool = False


class ProgressUpdate(Struct, frozen=True, tag="said"):
    """How it goes."""

    reported: Reported


class OrderResult(Struct, frozen=True, tag="ended", omit_defaults=True):
    """How it ended: ``error`` is absent when all is well."""

    overview: InstallStatus | None = None
    error: str | None = None
    reason: str | None = None
    exit_status: int = 0
    retry_after: float | None = None


Answer = ProgressUpdate | OrderResult


class ControlServer:
    """Answers orders with the help of ``reconciler``; ``start`` and ``close`` once each."""

    def __init__(
        self,
        directory: StateDirectory,
        reconciler: Reconciler,
        state: InstallationState,
        settings: InstallSettings,
        status: LiveStatus | None = None,
    ) -> None:
        self._directory = directory
        self._reconciler = reconciler
        self._store = state
        self._settings = settings
        self._status = status
        self._server: asyncio.Server | None = None
        self._clients = 0

    async def start(self) -> None:
        """Listen.

        Raises:
            StoreBroken: the socket cannot be made.
        """
        path = self._directory.control_socket
        try:
            path.unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            with _short_path(path) as short:
                # Never open to others, not even between bind and chmod: Linux gives the file the mode that the
                # socket has. A umask would be that of every thread.
                os.fchmod(listener.fileno(), 0o600)
                listener.bind(short)
            self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=MAX_LINE_BYTES)
        except OSError as error:
            raise StoreBroken(f"{path} cannot be listened on: {error.strerror}") from error

    @property
    def listening(self) -> bool:
        return self._server is not None

    async def close(self) -> None:
        """Stop listening; orders that are being carried out are told nothing more."""
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(OSError):
                self._directory.control_socket.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            if self._clients > MAX_CLIENTS:
                return
            ended = await self._answer(reader, writer)
            writer.write(msgspec.json.encode(ended) + b"\n")
            await writer.drain()
        except (ConnectionError, TimeoutError, ValueError):
            # The client left, said nothing, or said too much: its loss.
            pass
        finally:
            self._clients -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> OrderResult:
        def send(reported: Reported) -> None:
            writer.write(msgspec.json.encode(ProgressUpdate(reported)) + b"\n")

        async with asyncio.timeout(ORDER_SECONDS):
            text = await reader.readline()
        try:
            order = msgspec.json.decode(text, type=Order)
            with self._reconciler.observed(send):
                await self._execute(order, peer_uid(writer.get_extra_info("socket")))
        except msgspec.MsgspecError as error:
            return OrderResult(error=f"the agent does not understand this command: {error}", exit_status=2)
        except EdgeBundleError as error:
            retry_after = error.retry_after if isinstance(error, SourceUnavailable) else None
            return OrderResult(
                error=error.message, reason=error.reason, exit_status=error.exit_status, retry_after=retry_after
            )
        return OrderResult(
            overview=collect_status(
                self._store, self._directory, self._reconciler.reported, running=True, live=self._status
            )
        )

    async def _execute(self, order: Order, uid: int) -> None:
        if order.op == "refresh_trust":
            await self._reconciler.refresh_trust(sources_to_ask(order.source, self._reconciler.sources))
            return
        if order.op == "install":
            target: DesiredBundle = install_target(order, self._settings, self._reconciler.sources)
        elif order.op == "rollback":
            check_may_lower_epoch(order, uid)
            target = rollback_target(self._store, self._settings, allow_epoch=order.allow_epoch)
        else:
            return
        raise_for(await self._reconciler.execute(target))


def peer_uid(connection: socket.socket) -> int:
    """Who is at the other end, as the kernel knows it (SO_PEERCRED: pid, uid, gid)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[4:8], sys.byteorder)


def check_may_lower_epoch(order: Order, uid: int) -> None:
    """Going below the security epoch is for root alone, and is logged.

    Raises:
        UsageError: somebody else asks for it.
    """
    if order.allow_epoch:
        if uid != 0:
            raise UsageError("only root may use --allow-epoch")
        log.warning("root allowed a rollback below the security epoch")


def find_source(text: str, configured: Mapping[str, Source]) -> Source:
    """The source that an operator means: a configured one by its name or URL, with its settings; a path; any URL.

    Raises:
        UsageError: it cannot be one.
    """
    found: Source = next((each for each in configured.values() if location_of(each) == text), text)
    if "://" not in text and "/" not in text:
        if text not in configured:
            known = ", ".join(sorted(configured)) or "none"
            raise UsageError(f"{text!r} is neither a local path nor a configured source (configured: {known})")
        found = configured[text]
    for fault in source_faults(found):
        raise UsageError(fault.message)
    return found


def sources_to_ask(text: str | None, configured: Mapping[str, Source]) -> list[Source]:
    """The source that an operator names, or all that are configured.

    Raises:
        UsageError: there is none.
    """
    if text is not None:
        return [find_source(text, configured)]
    if not configured:
        raise UsageError("no source is configured: name one, or add it to [sources]")
    return [find_source(name, configured) for name in configured]


def install_target(order: Order, settings: InstallSettings, configured: Mapping[str, Source]) -> Install:
    """The target of an install order; ``configured``: sources by their names.

    Raises:
        BundleRefused: UNSAFE_NAME. UsageError: something is missing.
    """
    if order.name is None or order.version is None or order.source is None:
        raise UsageError("an installation needs name, version and source")
    return Install(
        check_bundle_name(order.name),
        check_version(order.version),
        settings,
        sources=(find_source(order.source, configured),),
        origin=OperatorOrder(root=order.root),
    )


def raise_for(outcome: Outcome) -> None:
    """Raise what kept a target from becoming active.

    Raises:
        EdgeBundleError: the error it ended with.
    """
    if outcome.kind == "active":
        return
    if outcome.error is not None:
        raise outcome.error
    raise EngineFailed("another bundle was requested meanwhile", reason=Reason.INTERRUPTED)


def call_agent(directory: StateDirectory, order: Order, on_update: Callable[[Reported], None]) -> InstallStatus | None:
    """Give ``order`` to the agent that runs on ``directory`` and wait for the end; None when none runs.

    Raises:
        EdgeBundleError: what the agent answered, or that it went away.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            with _short_path(directory.control_socket) as short:
                connection.connect(short)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as error:
            raise StoreBroken(f"the agent cannot be reached: {error.strerror}") from error
        try:
            connection.settimeout(STATUS_SECONDS if order.op == "status" else None)
            connection.sendall(msgspec.json.encode(order) + b"\n")
            with connection.makefile("rb") as lines:
                while text := lines.readline(MAX_LINE_BYTES):
                    answer = msgspec.json.decode(text, type=Answer)
                    if isinstance(answer, ProgressUpdate):
                        on_update(answer.reported)
                    elif isinstance(answer, OrderResult):
                        return _overview(answer)
        except (OSError, msgspec.MsgspecError) as error:
            raise StoreBroken(f"the connection to the agent broke: {error}") from error
    raise StoreBroken("the agent ended before it was done")


class AgentRefused(EdgeBundleError):
    """What the agent answered to an order, with the exit status of its error."""

    def __init__(self, ended: OrderResult) -> None:
        reason = Reason(ended.reason) if ended.reason in set(Reason) else None
        super().__init__(ended.error or "the agent refused", reason=reason)
        self.exit_status = ended.exit_status  # type: ignore[misc]
        self.retry_after = ended.retry_after


def _overview(ended: OrderResult) -> InstallStatus | None:
    if ended.error is not None:
        raise AgentRefused(ended)
    return ended.overview


@contextmanager
def _short_path(path: Path) -> Iterator[str]:
    """A name for ``path`` that fits into a socket address (108 bytes)."""
    handle = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{handle}/{path.name}"
    finally:
        with contextlib.suppress(OSError):
            os.close(handle)
