"""``edge-agent install``: bring a bundle onto this device, by the running agent or, where none runs, right here."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

from agent.commands.place import act_as_owner, add_place, find_place, size_text
from agent.control import Order, call_agent, install_wish, raise_for
from agent.install.alone import carry_out_alone
from contract.mqtt.messages import Reported
from contract.names import parse_reference


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="an .edgebundle file, a repository directory or its URL")
    parser.add_argument("bundle", metavar="NAME@VERSION")
    add_place(parser)
    parser.add_argument(
        "--root", type=Path, metavar="ROOT_JSON", help="trust this root if the device trusts nobody yet"
    )
    parser.add_argument("--json", action="store_true", help="print phases and outcome as JSON lines")
    parser.epilog = (
        "The bundle is verified, tried in a worker of its own and made active; what failed before is tried again.\n\n"
        "examples:\n"
        "  edge-agent install /media/usb/smollm2.edgebundle smollm2@1.1.0\n"
        "  edge-agent install https://models.example.org smollm2@1.1.0 --config /etc/edge-agent/agent.toml\n"
        "  edge-agent install ./repository smollm2@1.0.0 --state-dir ./state --root ./repository/metadata/1.root.json"
    )


def run(arguments: argparse.Namespace) -> int:
    name, version = parse_reference(arguments.bundle)
    place = find_place(arguments)
    source = arguments.source if "://" in arguments.source else str(Path(arguments.source).absolute())
    root = None if arguments.root is None else str(arguments.root.absolute())
    order = Order(op="install", name=name, version=version, source=source, root=root)
    teller = Teller(as_json=arguments.json)
    try:
        if call_agent(place.directory, order, teller.tell) is None:
            act_as_owner(place.directory)
            wish = install_wish(order, place.install)
            raise_for(asyncio.run(carry_out_alone(place.directory, wish, place.worker, teller.tell)))
    finally:
        teller.finish()
    if arguments.json:
        print(json.dumps({"ok": True, "active": arguments.bundle}))
    else:
        print(f"{arguments.bundle} is active")
    return 0


class Teller:
    """Tells how an installation goes: JSON lines, one line that is overwritten on a terminal, or a line each phase."""

    def __init__(self, *, as_json: bool) -> None:
        self._json = as_json
        self._terminal = sys.stderr.isatty() and not as_json
        self._phase = ""
        self._width = 0

    def tell(self, reported: Reported) -> None:
        """Say what is new."""
        progress = reported.progress
        if self._json:
            line: dict[str, object] = {"phase": reported.phase}
            if progress is not None:
                line |= {"done": progress.done, "total": progress.total, "reused": progress.reused}
            print(json.dumps(line), flush=True)
            return
        text = reported.phase.lower()
        if progress is not None and reported.phase == "FETCH":
            share = 100 * progress.done // progress.total if progress.total else 100
            text += f" {'█' * (share // 5):░<20} {share:3} %  {size_text(progress.done)} of {size_text(progress.total)}"
            if progress.reused:
                text += f", {size_text(progress.reused)} reused"
        if self._terminal:
            sys.stderr.write("\r" + text.ljust(self._width))
            sys.stderr.flush()
            self._width = len(text)
        elif reported.phase not in (self._phase, "IDLE"):
            print(reported.phase.lower(), file=sys.stderr, flush=True)
        self._phase = reported.phase

    def finish(self) -> None:
        """Leave the terminal clean."""
        if self._terminal and self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
