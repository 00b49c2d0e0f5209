"""Where an installation belongs, below a root that tests and image builders choose."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import agent
from contract.errors import UsageError

LINK = Path("/opt/edge-agent/current")
"""What the shipped units point to; a kit moves it from version to version."""

UNITS = ("edge-agent.service", "edge-agent-worker@.service", "edge-agent-worker.socket", "edge-agent.slice")
ENABLED = {
    "edge-agent.service": "multi-user.target.wants",
    "edge-agent-worker.socket": "sockets.target.wants",
}
ACCOUNTS = ("edge-agent", "edge-agent-worker")

UNREACHABLE = ("/home", "/root", "/var", "/tmp", "/run", "/etc")  # noqa: S108
"""The units hide these from the agent or forbid to run code from them."""


class SetupPaths:
    """Paths below ``root``; ``/`` for the machine itself."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    @property
    def live(self) -> bool:
        """Whether this is the running machine, where accounts and services can be made, and not an image."""
        return self.root == Path("/")

    def at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    @property
    def units(self) -> Path:
        return self.at("/etc/systemd/system")

    @property
    def sysusers(self) -> Path:
        return self.at("/etc/sysusers.d/edge-agent.conf")

    @property
    def tmpfiles(self) -> Path:
        return self.at("/etc/tmpfiles.d/edge-agent.conf")

    @property
    def config(self) -> Path:
        return self.at("/etc/edge-agent/agent.toml")

    @property
    def reference(self) -> Path:
        """Every key of the configuration, as comments."""
        return self.at("/etc/edge-agent/agent.reference.toml")

    @property
    def credentials(self) -> Path:
        return self.at("/etc/edge-agent/credentials")

    @property
    def state(self) -> Path:
        return self.at("/var/lib/edge-agent")


def find_unit_files() -> Path:
    """The directory of unit files that came with this agent: in its checkout, or below its environment.

    Raises:
        UsageError: they are not there.
    """
    checkout = Path(agent.__file__).resolve().parent.parent / "systemd"
    installed = Path(sysconfig.get_path("data")) / "share" / "edge-bundle" / "systemd"
    for directory in (checkout, installed):
        if all((directory / name).is_file() for name in UNITS):
            return directory
    raise UsageError(f"the unit files are missing below {installed}: install edge-bundle again, from its wheel")


def environment() -> Path:
    """The Python environment that this agent runs from.

    Raises:
        UsageError: the units could not reach it.
    """
    prefix = Path(sys.prefix).resolve()
    hidden = next((top for top in UNREACHABLE if prefix.is_relative_to(top)), None)
    if hidden is not None:
        raise UsageError(
            f"this agent is installed in {prefix}, and its service may run nothing below {hidden}; "
            "install it below /opt, for example /opt/edge-agent"
        )
    return prefix
