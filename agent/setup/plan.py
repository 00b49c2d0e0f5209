"""What is to be done so that this machine is a device: wanted against found. Reads, changes nothing."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from msgspec import Struct

from agent.setup import steps
from agent.setup.paths import ACCOUNTS, ENABLED, LINK, UNITS, SetupPaths
from agent.setup.reference import example
from agent.setup.steps import Link, Remove, RunCommand, Step, WriteFile
from contract.errors import UsageError
from contract.identifiers import is_identifier

CONFIG_GROUP = "edge-agent"

SYSTEMD_SECONDS = 30.0
"""Until systemctl has said whether a unit runs."""

_DEVICE = re.compile(r"^\s*device\s*=\s*(.*?)\s*(?:#.*)?$", re.MULTILINE)
_TABLE = re.compile(r"^\s*\[", re.MULTILINE)


class DesiredSetup(Struct, frozen=True):
    """``environment`` is where the agent lies, ``link`` what its units shall point to, if not there directly;
    ``credentials`` are (name, contents); ``root_json`` is a file to trust, ``config`` the text of a configuration.
    """

    units: Path
    environment: Path
    link: Path | None = None
    config: str | None = None
    device: str | None = None
    replace_config: bool = False
    credentials: tuple[tuple[str, bytes], ...] = ()
    root_json: Path | None = None
    start: bool = True


def plan_setup(desired: DesiredSetup, paths: SetupPaths) -> list[Step]:
    """The steps that are missing, in the order in which they are to be done.

    Raises:
        UsageError: the device has no usable name.
    """
    files = _unit_files(desired, paths)
    made: list[Step] = [file for file in files if _differs(file)]
    units_changed = bool(made)
    links = _links(desired, paths)
    made += [link for link in links if _points_elsewhere(link)]
    if paths.live and (units_changed or not all(map(steps.account_exists, ACCOUNTS))):
        made.append(RunCommand(("systemd-sysusers", str(paths.sysusers)), "make the accounts"))
        made.append(RunCommand(("systemd-tmpfiles", "--create", str(paths.tmpfiles)), "make the directories"))
    config = _config_file(desired, paths)
    if config is not None:
        made.append(config)
    made += [credential for credential in _credential_files(desired, paths) if _differs(credential)]
    # Nothing reads it, so it alone restarts nothing.
    reference = WriteFile(paths.reference, example().encode())
    explained: list[Step] = [reference] if _differs(reference) else []
    if paths.live:
        made += _trust(desired, paths)
        if desired.start and steps.systemd_runs():
            made += _services(changed=bool(made), units_changed=units_changed)
    return explained + made


def plan_removal(paths: SetupPaths, *, purge: bool) -> list[Step]:
    """Take the service away; ``purge`` also configuration, credentials and every bundle."""
    made: list[Step] = []
    there = [paths.units / name for name in UNITS if _exists(paths.units / name)]
    if paths.live and there and steps.systemd_runs():
        made.append(
            RunCommand(("systemctl", "stop", "edge-agent.service", "edge-agent-worker.socket"), "end it", optional=True)
        )
        made.append(RunCommand(("systemctl", "stop", "edge-agent-worker@*.service"), "end its workers", optional=True))
    enabled = [paths.units / wants / name for name, wants in ENABLED.items()]
    candidates = [*enabled, *there, paths.sysusers, paths.tmpfiles, paths.reference]
    if purge:
        candidates += [paths.config.parent, paths.state]
    made += [Remove(path) for path in candidates if _exists(path)]
    if there and paths.live and steps.systemd_runs():
        made.append(RunCommand(("systemctl", "daemon-reload"), "forget the units"))
    return made


def _unit_files(desired: DesiredSetup, paths: SetupPaths) -> list[WriteFile]:
    programs = str(desired.link or desired.environment)
    files = [
        WriteFile(paths.units / name, (desired.units / name).read_text().replace(str(LINK), programs).encode())
        for name in UNITS
    ]
    files.append(WriteFile(paths.sysusers, (desired.units / "sysusers.d/edge-agent.conf").read_bytes()))
    files.append(WriteFile(paths.tmpfiles, (desired.units / "tmpfiles.d/edge-agent.conf").read_bytes()))
    return files


def _links(desired: DesiredSetup, paths: SetupPaths) -> list[Link]:
    links = [Link(paths.units / wants / name, f"/etc/systemd/system/{name}") for name, wants in ENABLED.items()]
    if desired.link is not None:
        near = desired.environment.parent == desired.link.parent
        target = desired.environment.name if near else str(desired.environment)
        links.insert(0, Link(paths.at(str(desired.link)), target))
    return links


def _config_file(desired: DesiredSetup, paths: SetupPaths) -> WriteFile | None:
    """None: leave what is there, or nothing can be said."""
    found = paths.config.read_text() if paths.config.is_file() else None
    if found is not None and not (desired.replace_config and desired.config is not None):
        return None
    text = name_device(desired.config or DEFAULT_CONFIG, desired.device)
    file = WriteFile(paths.config, text.encode(), 0o640, CONFIG_GROUP)
    return file if text != found else None


DEFAULT_CONFIG = """\
# Every key, with its default and what it means: /etc/edge-agent/agent.reference.toml
# `edge-agent check-config` says what is wrong, `systemctl restart edge-agent` makes a change count.
[broker]
host = "localhost"
port = 1883

[sources]
"""


IMAGE_NAMES = frozenset((
    "alarm", "archlinux", "armbian", "bananapi", "beaglebone", "buildroot", "coreelec", "debian", "dietpi", "fedora",
    "hassio", "homeassistant", "host", "imx8mm", "imx8mp", "jetson", "jetson-nano", "khadas", "libreelec",
    "linaro-alip", "linux", "localhost", "nanopi", "nixos", "nvidia-desktop", "odroid", "opensuse", "openwrt",
    "orangepi", "orangepi5", "pine64", "poky", "radxa", "raspberry", "raspberrypi", "raspbian", "rock-5a", "rock-5b",
    "rock64", "rockpi", "rockpi-4b", "rockpro64", "ubuntu", "ubuntu-server", "unassigned", "unknown", "volumio",
    "yocto",
))  # fmt: skip
"""Host names that images come with: two devices of one name take the broker's connection from each other."""


def name_device(text: str, device: str | None) -> str:
    """``text`` with a ``device`` in it: the one given, or the host's name where the file names none.

    Raises:
        UsageError: the file names another one, or there is no usable name.
    """
    first_table = _TABLE.search(text)
    head = text[: first_table.start()] if first_table else text
    found = _DEVICE.search(head)
    if found is not None:
        named = found[1].strip("\"'")
        if device is not None and device != named:
            raise UsageError(
                f"the configuration names this device {named!r}, --device says {device!r}; drop one of them"
            )
        return text
    name = device or os.uname().nodename.partition(".")[0]
    if device is None and name.lower() in IMAGE_NAMES:
        raise UsageError(
            f"this machine is called {name!r}, as every machine made from that image is: give --device NAME, or "
            "give it a name of its own first (hostnamectl set-hostname NAME)"
        )
    if not is_identifier(name):
        raise UsageError(f"{name!r} cannot be a device id: give --device NAME, 1 to 64 of A-Z a-z 0-9 _ . -")
    return f'device = "{name}"\n{text}'


def _credential_files(desired: DesiredSetup, paths: SetupPaths) -> list[WriteFile]:
    for name, _ in desired.credentials:
        if not is_identifier(name) or name.startswith("."):
            raise UsageError(f"{name!r} cannot be the name of a credential: use A-Z a-z 0-9 _ . -")
    return [WriteFile(paths.credentials / name, data, 0o600, secret=True) for name, data in desired.credentials]


def _trust(desired: DesiredSetup, paths: SetupPaths) -> list[Step]:
    if desired.root_json is None or _exists(paths.state / "trust"):
        return []
    # The state belongs to the agent's account: root must not leave files there that it cannot write. What that
    # account may not read (a kit unpacked in root's home) is put where it can.
    copy = paths.config.parent / "root.json"
    program = str(desired.environment / "bin" / "edge-agent")
    command = (program, "trust", "provision", str(copy), "--state-dir", str(paths.state))
    keep = WriteFile(copy, desired.root_json.read_bytes(), 0o640, CONFIG_GROUP)
    return [keep, RunCommand(command, "trust the repository", account="edge-agent")]


def _services(*, changed: bool, units_changed: bool) -> list[Step]:
    made: list[Step] = []
    if units_changed:
        made.append(RunCommand(("systemctl", "daemon-reload"), "read the units"))
    if changed or not _active("edge-agent-worker.socket"):
        made.append(RunCommand(("systemctl", "restart", "edge-agent-worker.socket"), "listen for workers"))
    if changed or not _active("edge-agent.service"):
        made.append(RunCommand(("systemctl", "restart", "edge-agent.service"), "start serving"))
    return made


def _active(unit: str) -> bool:
    """Whether it is known to run: one that is not is started."""
    command = ["systemctl", "is-active", "--quiet", unit]
    try:
        return subprocess.run(command, check=False, timeout=SYSTEMD_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _exists(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _differs(file: WriteFile) -> bool:
    try:
        return file.path.read_bytes() != file.data or file.path.stat().st_mode & 0o777 != file.mode
    except OSError:
        return True


def _points_elsewhere(link: Link) -> bool:
    return not link.path.is_symlink() or str(link.path.readlink()) != link.target
