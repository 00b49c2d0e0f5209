"""What is to be done so that this machine is a device: wanted against found. Reads, changes nothing."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from msgspec import Struct

from agent.setup import steps
from agent.setup.places import ACCOUNTS, ENABLED, LINK, UNITS, Places
from agent.setup.steps import Link, Remove, Run, Step, WriteFile
from contract.errors import UsageError
from contract.names import is_identifier

CONFIG_GROUP = "edge-agent"
_DEVICE = re.compile(r"^\s*device\s*=\s*(.*?)\s*(?:#.*)?$", re.MULTILINE)
_TABLE = re.compile(r"^\s*\[", re.MULTILINE)


class Wanted(Struct, frozen=True):
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


def plan_setup(wanted: Wanted, places: Places) -> list[Step]:
    """The steps that are missing, in the order in which they are to be done.

    Raises:
        UsageError: the device has no usable name.
    """
    files = _unit_files(wanted, places)
    made: list[Step] = [file for file in files if _differs(file)]
    units_changed = bool(made)
    links = _links(wanted, places)
    made += [link for link in links if _points_elsewhere(link)]
    if places.live and (units_changed or not all(map(steps.account_exists, ACCOUNTS))):
        made.append(Run(("systemd-sysusers", str(places.sysusers)), "make the accounts"))
        made.append(Run(("systemd-tmpfiles", "--create", str(places.tmpfiles)), "make the directories"))
    config = _config_file(wanted, places)
    if config is not None:
        made.append(config)
    made += [credential for credential in _credential_files(wanted, places) if _differs(credential)]
    if places.live:
        made += _trust(wanted, places)
        if wanted.start and steps.systemd_runs():
            made += _services(changed=bool(made), units_changed=units_changed)
    return made


def plan_removal(places: Places, *, purge: bool) -> list[Step]:
    """Take the service away; ``purge`` also configuration, credentials and every bundle."""
    made: list[Step] = []
    there = [places.units / name for name in UNITS if _exists(places.units / name)]
    if places.live and there and steps.systemd_runs():
        made.append(
            Run(("systemctl", "stop", "edge-agent.service", "edge-agent-worker.socket"), "end it", optional=True)
        )
        made.append(Run(("systemctl", "stop", "edge-agent-worker@*.service"), "end its workers", optional=True))
    enabled = [places.units / wants / name for name, wants in ENABLED.items()]
    candidates = [*enabled, *there, places.sysusers, places.tmpfiles]
    if purge:
        candidates += [places.config.parent, places.state]
    made += [Remove(path) for path in candidates if _exists(path)]
    if there and places.live and steps.systemd_runs():
        made.append(Run(("systemctl", "daemon-reload"), "forget the units"))
    return made


def _unit_files(wanted: Wanted, places: Places) -> list[WriteFile]:
    programs = str(wanted.link or wanted.environment)
    files = [
        WriteFile(places.units / name, (wanted.units / name).read_text().replace(str(LINK), programs).encode())
        for name in UNITS
    ]
    files.append(WriteFile(places.sysusers, (wanted.units / "sysusers.d/edge-agent.conf").read_bytes()))
    files.append(WriteFile(places.tmpfiles, (wanted.units / "tmpfiles.d/edge-agent.conf").read_bytes()))
    return files


def _links(wanted: Wanted, places: Places) -> list[Link]:
    links = [Link(places.units / wants / name, f"/etc/systemd/system/{name}") for name, wants in ENABLED.items()]
    if wanted.link is not None:
        near = wanted.environment.parent == wanted.link.parent
        target = wanted.environment.name if near else str(wanted.environment)
        links.insert(0, Link(places.at(str(wanted.link)), target))
    return links


def _config_file(wanted: Wanted, places: Places) -> WriteFile | None:
    """None: leave what is there, or nothing can be said."""
    found = places.config.read_text() if places.config.is_file() else None
    if found is not None and not (wanted.replace_config and wanted.config is not None):
        return None
    text = name_device(wanted.config or DEFAULT_CONFIG, wanted.device)
    file = WriteFile(places.config, text.encode(), 0o640, CONFIG_GROUP)
    return file if text != found else None


DEFAULT_CONFIG = """\
# Every key is explained in docs/OPERATIONS.md; `edge-agent check-config` says what is wrong.
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


def _credential_files(wanted: Wanted, places: Places) -> list[WriteFile]:
    for name, _ in wanted.credentials:
        if not is_identifier(name) or name.startswith("."):
            raise UsageError(f"{name!r} cannot be the name of a credential: use A-Z a-z 0-9 _ . -")
    return [WriteFile(places.credentials / name, data, 0o600, secret=True) for name, data in wanted.credentials]


def _trust(wanted: Wanted, places: Places) -> list[Step]:
    if wanted.root_json is None or _exists(places.state / "trust"):
        return []
    # The state belongs to the agent's account: root must not leave files there that it cannot write. What that
    # account may not read (a kit unpacked in root's home) is put where it can.
    copy = places.config.parent / "root.json"
    program = str(wanted.environment / "bin" / "edge-agent")
    command = (program, "trust", "provision", str(copy), "--state-dir", str(places.state))
    keep = WriteFile(copy, wanted.root_json.read_bytes(), 0o640, CONFIG_GROUP)
    return [keep, Run(command, "trust the repository", account="edge-agent")]


def _services(*, changed: bool, units_changed: bool) -> list[Step]:
    made: list[Step] = []
    if units_changed:
        made.append(Run(("systemctl", "daemon-reload"), "read the units"))
    if changed or not _active("edge-agent-worker.socket"):
        made.append(Run(("systemctl", "restart", "edge-agent-worker.socket"), "listen for workers"))
    if changed or not _active("edge-agent.service"):
        made.append(Run(("systemctl", "restart", "edge-agent.service"), "start serving"))
    return made


def _active(unit: str) -> bool:
    return subprocess.run(["systemctl", "is-active", "--quiet", unit], check=False, timeout=30).returncode == 0


def _exists(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _differs(file: WriteFile) -> bool:
    try:
        return file.path.read_bytes() != file.data or file.path.stat().st_mode & 0o777 != file.mode
    except OSError:
        return True


def _points_elsewhere(link: Link) -> bool:
    return not link.path.is_symlink() or str(link.path.readlink()) != link.target
