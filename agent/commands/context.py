"""What several commands share: where the state directory is, and how sizes and tables look on a terminal."""

from __future__ import annotations

import argparse
import os
import pwd
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from agent.install.settings import InstallSettings
from agent.state.layout import StateDirectory
from agent.worker.settings import WorkerSettings
from contract.errors import UsageError
from contract.identifiers import is_identifier
from contract.source.access import Source

DEFAULT_CONFIG = Path("/etc/edge-agent/agent.toml")


class CliContext(Struct, frozen=True):
    """A device's state directory and the settings that go with it."""

    directory: StateDirectory
    install: InstallSettings
    worker: WorkerSettings
    sources: Mapping[str, Source] = {}


def add_context_options(parser: argparse.ArgumentParser) -> None:
    """Options that say where: a configuration, or just the state directory."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--config", type=Path, metavar="FILE", help=f"configuration file (default {DEFAULT_CONFIG})")
    group.add_argument("--state-dir", type=Path, metavar="DIR", help="state directory, with default settings")


def read_context(arguments: argparse.Namespace) -> CliContext:
    """The place that the options name.

    Raises:
        ConfigInvalid: the configuration cannot be used. UsageError: there is none.
    """
    if arguments.state_dir is not None:
        return CliContext(StateDirectory(arguments.state_dir.absolute()), InstallSettings(), WorkerSettings())
    from agent.config import load_config

    path = arguments.config or DEFAULT_CONFIG
    if arguments.config is None and not path.exists():
        raise UsageError(f"specify --config FILE or --state-dir DIR ({path} does not exist)")
    config = load_config(path)
    return CliContext(StateDirectory(config.state_dir), config.install, config.worker, config.sources)


def existing_context(arguments: argparse.Namespace) -> CliContext:
    """As :func:`read_context`, for commands that only look.

    Raises:
        UsageError: there is no state directory; ConfigInvalid.
    """
    context = read_context(arguments)
    if not context.directory.database.is_file():
        raise UsageError(f"{context.directory.root} is not a state directory: nothing was installed there yet")
    return context


def act_as_owner(directory: StateDirectory) -> None:
    """As root, become the account that owns the state for the rest of this process.

    What root left there, a lock or a bundle, the agent could not use.
    """
    if os.geteuid() != 0 or not directory.root.is_dir():
        return
    owner = directory.root.stat()
    if owner.st_uid == 0:
        return
    try:
        os.initgroups(pwd.getpwuid(owner.st_uid).pw_name, owner.st_gid)
    except KeyError:
        os.setgroups([])
    os.setgid(owner.st_gid)
    os.setuid(owner.st_uid)


def absolute_source(given: str) -> str:
    """What the command line says of a source, so that it means the same from any directory: a path becomes absolute, a
    URL or the name of a configured source stays.
    """
    return (
        given if "://" in given or (is_identifier(given) and not Path(given).exists()) else str(Path(given).absolute())
    )


def format_size(count: int | None) -> str:
    """Bytes for people."""
    if count is None:
        return "-"
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if count >= 10**power:
            return f"{count / 10**power:.1f} {unit}"
    return f"{count} B"


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Columns, aligned; the first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip(), file=sys.stdout)
