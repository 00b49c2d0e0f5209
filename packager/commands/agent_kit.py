"""``edge-packager agent-kit``: one archive that installs the agent on a box without a network."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from msgspec import to_builtins

from packager.build.progress import choose_progress
from packager.kit.archive import Kit, read_config, read_root, write_kit
from packager.kit.target import ARCHITECTURES, check_target
from packager.kit.wheels import fetch_dependencies, own_wheel

EXAMPLES = """examples:
  edge-packager agent-kit --arch aarch64 --out kit.tar --root-json repo/metadata/1.root.json --config agent.toml
  edge-packager agent-kit --arch x86_64 --python 3.13 --out kit.tar --root-json root.json --config agent.toml --json

then, on the device:
  tar xf kit.tar && sudo ./edge-agent-*/install.sh --device kitchen-1

Packages have the versions that are installed here. Wheels are fetched through pip as it is configured here.
exit status: 0 written, 2 wrong option or file, 4 packages could not be fetched, 5 the disk
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """See :class:`contract.system.command_line.Command`."""
    parser.epilog = EXAMPLES
    parser.add_argument("--arch", required=True, metavar="ARCH", help=f"of the device: {' or '.join(ARCHITECTURES)}")
    parser.add_argument("--python", default="3.11", metavar="X.Y", help="the device's Python (default 3.11, Debian 12)")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the tar to write")
    parser.add_argument("--root-json", required=True, type=Path, metavar="FILE", help="root of trust for the devices")
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="agent.toml; device may be left out")
    parser.add_argument("--wheel", type=Path, metavar="FILE", help="the agent's own wheel (default: built from here)")
    parser.add_argument("--json", action="store_true", help="print facts and file list as JSON")


def run(arguments: argparse.Namespace) -> int:
    """See :class:`contract.system.command_line.Command`."""
    target = check_target(arguments.arch, arguments.python)
    root, config = read_root(arguments.root_json), read_config(arguments.config)
    progress = choose_progress(quiet=arguments.json)
    try:
        with tempfile.TemporaryDirectory(prefix="edge-kit-") as scratch:
            progress.stage(1, 3, "build the agent's wheel")
            wheel = own_wheel(arguments.wheel, Path(scratch))
            progress.stage(2, 3, f"fetch what it needs on {target.name}")
            wheels = fetch_dependencies(target, wheel, Path(scratch))
            progress.stage(3, 3, "write the archive")
            kit = write_kit(arguments.out.absolute(), target, wheels, root=root, config=config)
    finally:
        progress.close()
    if arguments.json:
        print(json.dumps(to_builtins(kit) | {"file": str(kit.file), "bytes": kit.file.stat().st_size}))
    else:
        _print(kit)
    return 0


def _print(kit: Kit) -> None:
    print(f"{kit.file}: agent {kit.version} for {kit.target.name}, {kit.file.stat().st_size / 1e6:.1f} MB")
    for member in sorted(kit.members, key=lambda member: -member.size):
        print(f"  {member.size / 1e6:7.2f} MB  {member.path}")
    print(f"  installed: {kit.installed_bytes / 1e6:.0f} MB before Python compiles it, without a model")
