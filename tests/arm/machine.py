"""A machine with an aarch64 processor: ``qemu-system-aarch64`` with a disk of its own, ended with this process."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

from agent.host.process_effort import effort_of
from tests.broker import free_port
from tests.systemd.container import die_with_parent

PROCESSOR = "cortex-a76"
"""A Raspberry Pi 5's."""

MEMORY_MIB = 2048
BOOT_SECONDS = 400.0
COMMAND_SECONDS = 400.0
OFF_SECONDS = 200.0
ANSWER_SECONDS = 60.0
"""Until a machine that was in trouble answers its serial line, or does not."""

TROUBLE = (
    "uptime; systemctl list-units --failed --no-pager; ps -eo pid,stat,wchan:20,time,args --sort=-time | head -20; "
    "ss -tnp | head -20; journalctl -b --no-pager -n 60"
)
"""What a machine says of itself where a test of it failed."""


class Machine:
    """``port`` on this machine's loopback leads to the broker's in there; nothing else leads in or out."""

    def __init__(self, kernel: Path, initial: Path, disk: Path, log: Path) -> None:
        self.port = free_port()
        self._log = log.open("wb")
        self._monitor = log.with_suffix(".monitor")
        self._count = 0
        self._buffer = b""
        network = f"user,id=n,restrict=on,hostfwd=tcp:127.0.0.1:{self.port}-10.0.2.15:1883"
        self._process = subprocess.Popen(
            ["qemu-system-aarch64", "-M", "virt", "-cpu", PROCESSOR, "-smp", "2", "-m", str(MEMORY_MIB),
             "-accel", "tcg,thread=multi", "-display", "none", "-serial", "stdio", "-no-reboot",
             "-monitor", f"unix:{self._monitor},server,nowait",
             "-netdev", network, "-device", "virtio-net-pci,netdev=n,romfile=",  # it boots from no network
             "-kernel", str(kernel), "-initrd", str(initial), "-append",
             "console=ttyAMA0 quiet loglevel=3 panic=1 systemd.show_status=0 mitigations=off net.ifnames=0",
             "-drive", f"file={disk},format=raw,if=none,id=d,cache=unsafe", "-device", "virtio-blk-pci,drive=d"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent, start_new_session=True,  # noqa: PLW1509
        )  # fmt: skip

    def __enter__(self) -> Machine:
        try:
            self._until(b"### ready", BOOT_SECONDS)
        except BaseException:
            self.cut_power()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.cut_power()

    def run(self, command: str, *, check: bool = True, seconds: float = COMMAND_SECONDS) -> str:
        """What ``command``, one line of shell, prints.

        Raises:
            RuntimeError: it failed (with ``check``).
        """
        assert self._process.stdin is not None
        self._count += 1
        mark = f"m{self._count}"
        self._process.stdin.write(f"{mark} {command}\n".encode())
        self._process.stdin.flush()
        said = self._until(f"### {mark} ".encode(), seconds)
        status = int(self._until(b"\n", seconds))
        text = said.decode(errors="replace").replace("\r", "")
        if check and status != 0:
            raise RuntimeError(f"{command}: {status}\n{text[-3000:]}")
        return text

    def power_off(self) -> int:
        """Shut down in an orderly way; qemu's exit status."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"off systemctl poweroff\n")
        self._process.stdin.flush()
        deadline = time.monotonic() + OFF_SECONDS
        with contextlib.suppress(EOFError):
            self._until(b"\0", deadline - time.monotonic())
        return self._process.wait(max(1.0, deadline - time.monotonic()))

    @property
    def frozen(self) -> bool:
        """Whether the machine is on, and even its serial line is dead, where a shell waits for a word."""
        try:
            self.run("true", check=False, seconds=ANSWER_SECONDS)
        except TimeoutError:
            return self._process.poll() is None
        except (EOFError, OSError):
            return False
        return False

    def describe(self) -> str:
        """What the machine does: as it says itself, and as the emulator sees its processors, five seconds apart."""
        try:
            own = self.run(TROUBLE, check=False, seconds=ANSWER_SECONDS)
        except (TimeoutError, EOFError, OSError) as error:
            own = f"it does not answer: {error}"
        seen = []
        for _ in range(2):
            effort = effort_of(self._process.pid)
            seen.append(f"the emulator took {effort.seconds:.1f} s of processors\n{self._ask('info registers -a')}")
            time.sleep(5.0)
        return "\n".join((own, *seen))

    def _ask(self, question: str) -> str:
        """What the emulator's monitor says."""
        said = b""
        try:
            with socket.socket(socket.AF_UNIX) as monitor:
                monitor.settimeout(5.0)
                monitor.connect(str(self._monitor))
                monitor.sendall(f"{question}\n".encode())
                while len(said) < 1 << 16:
                    said += monitor.recv(1 << 16)
        except OSError as error:  # nothing more comes
            said += f"\n({error})".encode()
        return said.decode(errors="replace").replace("\r", "")

    def cut_power(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def _until(self, mark: bytes, seconds: float) -> bytes:
        """What comes over the serial line before ``mark``.

        Raises:
            EOFError: the machine is off; TimeoutError: it never came.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.fileno()
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(line, selectors.EVENT_READ)
            while mark not in self._buffer:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise TimeoutError(f"no {mark!r} within {seconds:.0f} s: {self._buffer[-2000:]!r}")
                data = os.read(line, 65536)
                if not data:
                    raise EOFError(f"the machine is off: {self._buffer[-2000:]!r}")
                self._log.write(data)
                self._log.flush()
                self._buffer += data
        before, _, self._buffer = self._buffer.partition(mark)
        return before
