"""What setup can do, one step at a time: each tells itself in a line and carries itself out."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path

from msgspec import Struct

from contract.errors import StoreBroken
from contract.system.durable import Disk, translate

COMMAND_SECONDS = 300
"""Starting the service waits for READY=1, which opens state and checks a seal."""

_DISK = Disk()


class WriteFile(Struct, frozen=True, tag="write"):
    """Make or replace a file. ``group`` gets it when that account exists."""

    path: Path
    data: bytes
    mode: int = 0o644
    group: str | None = None
    secret: bool = False

    def describe(self) -> str:
        return (
            f"{'replace' if self.path.exists() else 'write'} {self.path} ({len(self.data)} bytes, mode {self.mode:o})"
        )

    def apply(self) -> None:
        _DISK.make_directory(self.path.parent, 0o700 if self.secret else 0o755)
        _DISK.write_file(self.path, self.data, self.mode)
        if self.group is not None:
            give_group(self.path, self.group)


class Link(Struct, frozen=True, tag="link"):
    """A symbolic link, moved in one step if it is there already."""

    path: Path
    target: str

    def describe(self) -> str:
        return f"link {self.path} -> {self.target}"

    def apply(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            making = self.path.with_name(f".{self.path.name}.new")
            making.unlink(missing_ok=True)
            making.symlink_to(self.target)
            making.replace(self.path)
        except OSError as error:
            raise translate(error, f"linking {self.path}") from error


class Remove(Struct, frozen=True, tag="remove"):
    """A file, link or whole directory."""

    path: Path

    def describe(self) -> str:
        return f"remove {self.path}"

    def apply(self) -> None:
        _DISK.remove(self.path)


class RunCommand(Struct, frozen=True, tag="run"):
    """A command of the system; ``account`` runs it without root's rights, ``optional`` lets it fail."""

    command: tuple[str, ...]
    why: str
    account: str | None = None
    optional: bool = False

    def describe(self) -> str:
        as_whom = f" as {self.account}" if self.account else ""
        return f"run {' '.join(self.command)}{as_whom}: {self.why}"

    def apply(self) -> None:
        try:
            done = subprocess.run(
                self.command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False, cwd="/",
                user=self.account, group=self.account, extra_groups=[] if self.account else None,
                umask=0o027 if self.account else -1,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            if self.optional:
                return
            raise StoreBroken(f"{self.command[0]} could not be run: {error}") from error
        if done.returncode != 0 and not self.optional:
            output = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise StoreBroken(f"{' '.join(self.command)} failed: {output[-1][:300] if output else done.returncode}")


Step = WriteFile | Link | Remove | RunCommand


def give_group(path: Path, group: str) -> None:
    """Let ``group`` read ``path`` as its mode says; an account that does not exist (in an image) is made later."""
    try:
        os.chown(path, -1, pwd.getpwnam(group).pw_gid)
    except KeyError:
        return
    except OSError as error:
        raise translate(error, f"giving {path} to {group}") from error


def account_exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def systemd_runs() -> bool:
    """Whether this machine was booted with systemd (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir() and shutil.which("systemctl") is not None
