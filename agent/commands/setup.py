"""``edge-agent setup``: units, accounts, directories, configuration, trust; tells first, then does."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from agent.config import load_config
from agent.setup.paths import SetupPaths, environment, find_unit_files
from agent.setup.plan import DesiredSetup, plan_removal, plan_setup
from agent.setup.steps import Step, systemd_runs
from contract.errors import ConfigInvalid, UsageError

EXAMPLES = """examples:
  edge-agent setup                                            show what would be done, ask, do it
  edge-agent setup --yes --config agent.toml --root-json root.json --device kitchen-1
  edge-agent setup --yes --credential password=./secret       password_file = "credentials/password" in agent.toml
  edge-agent setup --root /mnt/image --yes                    into an image: files only
  edge-agent setup --remove [--purge]                         the service, and with --purge bundles and configuration

A configuration that is there already is kept, unless --replace-config is given. Running it again changes nothing.
exit status: 0 done or nothing to do, 2 wrong option, 5 a step failed, 78 done, but the configuration is wrong
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration to install")
    parser.add_argument("--replace-config", action="store_true", help="also where another one is installed")
    parser.add_argument("--device", metavar="NAME", help="this device's id, where the configuration names none")
    parser.add_argument("--root-json", type=Path, metavar="FILE", help="root of trust to provision")
    parser.add_argument(
        "--credential", action="append", default=[], metavar="NAME=FILE", help="secret for the service; repeatable"
    )
    parser.add_argument("--link", type=Path, metavar="PATH", help="let the units use PATH, and point it to this agent")
    parser.add_argument(
        "--root", type=Path, default=Path("/"), metavar="DIR", help="set up a tree instead of this machine"
    )
    parser.add_argument("--no-start", action="store_true", help="start nothing")
    parser.add_argument("--remove", action="store_true", help="take the service away; state and configuration stay")
    parser.add_argument("--purge", action="store_true", help="with --remove: state and configuration too")
    parser.add_argument("--yes", action="store_true", help="do it without asking")
    parser.add_argument("--dry-run", action="store_true", help="only show the plan")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def run(arguments: argparse.Namespace) -> int:
    if arguments.purge and not arguments.remove:
        raise UsageError("--purge goes with --remove")
    paths = SetupPaths(arguments.root.resolve())
    if paths.live and os.geteuid() != 0 and not arguments.dry_run:
        raise UsageError("setting up this machine needs root: use sudo, or --dry-run to see what would be done")
    plan = (
        plan_removal(paths, purge=arguments.purge) if arguments.remove else plan_setup(_desired_setup(arguments), paths)
    )
    _show(plan, as_json=arguments.json)
    if arguments.dry_run or (plan and not _agreed(arguments)):
        return 0
    for step in plan:
        step_text = step.describe()
        step.apply()
        if not arguments.json:
            print(f"✓ {step_text}", flush=True)
    return 0 if arguments.remove else _check(paths, as_json=arguments.json)


def _desired_setup(arguments: argparse.Namespace) -> DesiredSetup:
    def read(path: Path, option: str) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise UsageError(f"{option} {path} cannot be read: {error.strerror}") from error

    credentials = []
    for pair in arguments.credential:
        name, equals, file = pair.partition("=")
        if not equals:
            raise UsageError(f"--credential wants NAME=FILE, not {pair!r}")
        credentials.append((name, read(Path(file), "--credential")))
    config = None
    if arguments.config is not None:
        try:
            config = read(arguments.config, "--config").decode("utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"--config {arguments.config} is not UTF-8 text") from error
    if arguments.root_json is not None:
        read(arguments.root_json, "--root-json")
    return DesiredSetup(
        units=find_unit_files(),
        environment=environment(),
        link=arguments.link,
        config=config,
        device=arguments.device,
        replace_config=arguments.replace_config,
        credentials=tuple(credentials),
        root_json=arguments.root_json,
        start=not arguments.no_start,
    )


def _show(plan: list[Step], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"steps": [step.describe() for step in plan]}))
    elif not plan:
        print("nothing to do")
    else:
        print("These steps will be done:")
        for step in plan:
            print(f"  {step.describe()}")


def _agreed(arguments: argparse.Namespace) -> bool:
    if arguments.yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError("nothing was done: not a terminal, pass --yes")
    return input("Continue? [y/N] ").strip().lower() in ("y", "yes")


def _check(paths: SetupPaths, *, as_json: bool) -> int:
    """The service says this too, in the journal; here somebody is looking."""
    if not paths.live or not paths.config.is_file():
        return 0
    try:
        config = load_config(paths.config)
    except ConfigInvalid as error:
        raise ConfigInvalid(f"set up, but {error.message}", field=error.field) from error
    if not as_json:
        running = "" if systemd_runs() else " (systemd does not run here: nothing was started)"
        print(f"device {config.device}, broker {config.broker.address}{running}; `edge-agent doctor` checks the rest")
    return 0
