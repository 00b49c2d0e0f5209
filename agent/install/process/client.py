"""The agent's side of the installer process: start it, listen to it, end it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import NamedTuple, Protocol

from agent.install.process.messages import MAX_LINE_BYTES, Failed, Job, OnLine, encode_line, parse_line
from agent.state.layout import StateDirectory
from contract.errors import (
    BundleRefused,
    EdgeBundleError,
    EngineFailed,
    SourceInvalid,
    SourceUnavailable,
    StoreBroken,
    StoreFull,
)
from contract.reasons import Reason

COMMAND = (sys.executable, "-P", "-m", "agent.install.process.installer")
"""``-P``: the current directory is no place to import code from."""


class Installer(Protocol):
    """How a job is done; :func:`run_installer` is one."""

    async def __call__(self, job: Job, on_line: OnLine) -> None:
        """Do it, telling ``on_line`` how it goes; being cancelled leaves nothing running.

        Raises:
            BundleRefused, SourceUnavailable, StoreFull, StoreBroken: why the bundle is not there.
            EngineFailed: the installer itself failed.
        """
        ...


class InstallerClient(NamedTuple):
    """The installer, and the state directory that it works on."""

    directory: StateDirectory
    run: Installer


async def run_installer(job: Job, on_line: OnLine) -> None:
    """Do ``job`` in a process of its own; see :class:`Installer`."""
    try:
        process = await asyncio.create_subprocess_exec(
            *COMMAND, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=MAX_LINE_BYTES
        )
    except OSError as error:
        raise EngineFailed(f"the installer cannot be started: {error}", reason=Reason.INTERRUPTED) from error
    assert process.stdin is not None and process.stdout is not None
    failed: Failed | None = None
    try:
        # Left open: the installer ends when it is closed.
        process.stdin.write(encode_line(job))
        with contextlib.suppress(ConnectionError):
            await process.stdin.drain()
        while text := await _read_line(process.stdout):
            line = parse_line(text)
            if isinstance(line, Failed):
                failed = line
            else:
                on_line(line)
        status = await process.wait()
    finally:
        if process.returncode is None:
            # Killing it is safe at any instant; that is what it is tested for.
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        process.stdin.close()
    if failed is not None:
        raise as_error(failed)
    if status != 0:
        raise EngineFailed(f"the installer ended with status {status}", reason=Reason.INTERRUPTED)


async def _read_line(stream: asyncio.StreamReader) -> bytes:
    try:
        return await stream.readline()
    except ValueError as error:
        raise EngineFailed("the installer sent a line that is too long") from error


def as_error(failed: Failed) -> EdgeBundleError:
    """The error that the installer met, raised again on this side."""
    try:
        reason = Reason(failed.reason)
    except ValueError:
        reason = Reason.INTERRUPTED
    match failed.fault:
        case "refused":
            return BundleRefused(reason, failed.message, field=failed.field)
        case "invalid":
            return SourceInvalid(failed.message, reason=reason, field=failed.field, retry_after=failed.retry_after)
        case "unavailable":
            return SourceUnavailable(failed.message, reason=reason, retry_after=failed.retry_after)
        case "full":
            return StoreFull(failed.message)
        case "broken":
            return StoreBroken(failed.message, reason=reason)
        case "internal":
            return EngineFailed(failed.message, reason=reason)
