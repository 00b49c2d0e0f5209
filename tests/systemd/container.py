"""A real systemd in a container: Debian 12 from debootstrap (cached), on an overlay, without a network.

Everything is tied to the process that started it: the container, its name spaces and its mounts vanish with it, also
when that process is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

SUITE = "bookworm"
MIRROR = os.environ.get("EDGE_DEBIAN_MIRROR", "http://deb.debian.org/debian")
PACKAGES = ("systemd", "systemd-sysv", "dbus", "python3", "mosquitto", "mosquitto-clients", "procps")
"""What a device has. No python3-venv, no compiler, no pip: the agent kit must do without."""

DEBOOTSTRAP_SECONDS = 900
BOOT_SECONDS = 120
COMMAND_SECONDS = 120
LIFE_SECONDS = 1800
"""No container outlives this, whatever hangs."""

_PR_SET_PDEATHSIG = 1


def debian(cache: Path) -> Path:
    """The root of a minimal Debian 12, made once per package list."""
    key = hashlib.sha256(" ".join((SUITE, *PACKAGES)).encode()).hexdigest()[:12]
    root = cache.resolve() / "boot" / f"{SUITE}-{key}"
    if root.is_dir():
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    # Made beside and renamed: an interrupted debootstrap is never taken for a finished one.
    making = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    making.chmod(0o755)
    try:
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(making), MIRROR],
            check=True, capture_output=True, timeout=DEBOOTSTRAP_SECONDS,
        )  # fmt: skip
        (making / "etc/hostname").write_text("edge\n")
        (making / "etc/hosts").write_text("127.0.0.1 localhost edge\n::1 localhost\n")
        (making / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
        (making / "etc/locale.conf").write_text("LANG=C.UTF-8\n")
        for unneeded in ("systemd-firstboot", "systemd-networkd-wait-online", "systemd-networkd", "mosquitto"):
            (making / f"etc/systemd/system/{unneeded}.service").symlink_to("/dev/null")
        making.rename(root)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    return root


class Container:
    """``layers``: roots to start from, the topmost first; what changes lies in ``directory``, over every start."""

    def __init__(self, layers: Sequence[Path], directory: Path) -> None:
        self.directory = directory
        self.upper = directory / "upper"
        self._layers = [str(layer) for layer in layers]
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0
        for name in ("upper", "work", "root"):
            (directory / name).mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Container:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.cut_power()

    @property
    def root(self) -> Path:
        """The running container's root directory, seen from outside."""
        return Path(f"/proc/{self._leader}/root")

    def start(self) -> None:
        """Boot; returns when systemd has finished starting units.

        Raises:
            RuntimeError: it did not boot.
        """
        overlay = f"lowerdir={':'.join(self._layers)},upperdir={self.upper},workdir={self.directory / 'work'}"
        root = str(self.directory / "root")
        script = (
            'mount -t overlay overlay -o "$1" "$2" && exec systemd-nspawn --quiet --boot --register=no --keep-unit '
            '--private-network --kill-signal=SIGRTMIN+3 --console=pipe --machine="$3" -D "$2"'
        )
        name = f"edge-boot-{os.getpid()}"
        with (self.directory / "console.log").open("ab") as console:
            # A mount name space of its own: the overlay ends with the last process in it.
            self._process = subprocess.Popen(
                ["unshare", "--mount", "--propagation=private", "timeout", "-s", "KILL", str(LIFE_SECONDS),
                 "sh", "-c", script, "sh", overlay, root, name],
                stdin=subprocess.DEVNULL, stdout=console, stderr=console, preexec_fn=die_with_parent,  # noqa: PLW1509
                start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            self._leader = _init_below(self._process.pid)
            if self._leader and self._booted():
                return
            time.sleep(0.1)
        console_text = (self.directory / "console.log").read_text(errors="replace")
        self.cut_power()
        raise RuntimeError(f"the container did not boot: {console_text[-2000:]}")

    def _booted(self) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            state = self.run("systemctl", "is-system-running", check=False, seconds=10).stdout.strip()
            return state in ("running", "degraded")
        return False

    def run(
        self, *command: str, check: bool = True, seconds: float = COMMAND_SECONDS, text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run ``command`` in the container as root, ``text`` on its standard input.

        Raises:
            RuntimeError: it failed (with ``check``); the message holds what it said.
        """
        done = subprocess.run(
            ["nsenter", "-t", str(self._leader), "-m", "-u", "-i", "-n", "-p", "-r", "-w", "--", *command],
            input=text, capture_output=True, text=True, timeout=seconds, check=False,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "LANG": "C.UTF-8", "HOME": "/root"},
        )  # fmt: skip
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        return done

    def wait_for(self, *command: str, seconds: float = COMMAND_SECONDS) -> None:
        """Repeat ``command`` until it succeeds.

        Raises:
            TimeoutError: it never did.
        """
        deadline = time.monotonic() + seconds
        while (done := self.run(*command, check=False)).returncode != 0:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{' '.join(command)}: {done.stdout[-1000:]} {done.stderr[-1000:]}")
            time.sleep(0.2)

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).stdout.strip()

    def journal(self, unit: str) -> str:
        """What a unit logged, since boot."""
        return self.run("journalctl", "--no-pager", "-o", "cat", "-b", "-u", unit).stdout

    def copy_in(self, source: Path, target: str) -> None:
        """Copy a file or directory of ours to ``target`` in the container."""
        inside = self.root / target.lstrip("/")
        inside.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, inside, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, inside)

    def shut_down(self) -> None:
        """Power off in an orderly way; ``start`` boots again with what is on the disk."""
        if self._process is not None:
            self.run("systemctl", "poweroff", check=False)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(BOOT_SECONDS)
        self.cut_power()

    def cut_power(self) -> None:
        """Kill everything at once; ``start`` boots again with what is on the disk."""
        if self._process is not None:
            if self._leader:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._leader, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(120)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process, self._leader = None, 0


def die_with_parent() -> None:
    """In a child before it becomes a program: killed when its parent ends, however that ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _descendants(pid: int) -> Iterator[int]:
    try:
        children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return
    for child in children:
        yield child
        yield from _descendants(child)


def _init_below(pid: int) -> int:
    """The container's process 1 as the host numbers it; 0 while there is none."""
    for candidate in _descendants(pid):
        with contextlib.suppress(OSError, StopIteration):
            status = Path(f"/proc/{candidate}/status").read_text().splitlines()
            numbers = next(line for line in status if line.startswith("NSpid:")).split()[1:]
            if len(numbers) > 1 and numbers[-1] == "1" and Path(f"/proc/{candidate}/comm").read_text() == "systemd\n":
                return candidate
    return 0
