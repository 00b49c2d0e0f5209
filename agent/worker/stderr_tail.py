"""How a worker process ended, in words."""

from __future__ import annotations

import asyncio
import signal

KEPT_BYTES = 4096
READ_BYTES = 1 << 16

RUNTIME_LOG = ":onnxruntime:"
"""Marks onnxruntime's own log lines, which warn of missing graphics cards and the like."""


class StderrTail:
    """The end of what a process writes to its standard error, for the log."""

    def __init__(self) -> None:
        self._kept = b""

    async def listen(self, stream: asyncio.StreamReader) -> None:
        """Read until the process closes it."""
        while data := await stream.read(READ_BYTES):
            self._kept = (self._kept + data)[-KEPT_BYTES:]

    def describe_exit(self, status: int | None, *, starved: bool = False) -> str:
        """Exit status or signal, and the last line that it said; None: a process that is not our child. ``starved``:
        the kernel ended some process for want of memory meanwhile.
        """
        memory = ", which the kernel does where memory runs out" if starved else ""
        if status is None:
            text = f"its connection ended{memory}; the journal of edge-agent-worker says why"
        elif status < 0:
            text = f"killed by {_signal_name(-status)}" + (memory if status == -signal.SIGKILL else "")
        else:
            text = f"exit status {status}"
        lines = [line.strip() for line in self._kept.decode("utf-8", "replace").splitlines()]
        spoken = [line for line in lines if line and RUNTIME_LOG not in line]
        return f"{text}: {spoken[-1][:200]}" if spoken else text


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
