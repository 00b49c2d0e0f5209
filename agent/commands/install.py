"""``edge-agent install``: bring a bundle onto this device, by the running agent or, where none runs, right here."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from agent.commands.context import (
    CliContext,
    absolute_source,
    act_as_owner,
    add_context_options,
    format_size,
    read_context,
)
from agent.install.offline import install_offline
from agent.install.reporter import delay_text
from agent.operator.control import AgentRefused, Order, call_agent, install_target, raise_for
from contract.errors import EdgeBundleError, SourceUnavailable
from contract.identifiers import parse_reference
from contract.mqtt.reports import Reported
from contract.source.access import location_of
from contract.system.backoff import Backoff

TIMEOUT_SECONDS = 600.0
"""How long a source that is out of reach is tried again: a captive portal is passed, a server restarted by then."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="an .edgebundle file, a repository directory or its URL, or the name of a configured source",
    )
    parser.add_argument("bundle", metavar="NAME@VERSION")
    add_context_options(parser)
    parser.add_argument(
        "--root", type=Path, metavar="ROOT_JSON", help="provision this root of trust if the device has none"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=TIMEOUT_SECONDS,
        metavar="SECONDS",
        help=f"give up when the source could not be used for so long (default {TIMEOUT_SECONDS:.0f})",
    )
    parser.add_argument("--no-retry", action="store_true", help="give up at once")
    parser.add_argument("--json", action="store_true", help="print phases and outcome as JSON lines")
    parser.epilog = (
        "The bundle is verified, tried in a worker of its own and made active; what failed before is tried again.\n"
        "A URL that cannot be reached, or that a captive portal or cache answers for, is tried again with growing\n"
        "waits; a file or directory is not. What was fetched is kept.\n\n"
        "examples:\n"
        "  edge-agent install /media/usb/smollm2.edgebundle smollm2@1.1.0\n"
        "  edge-agent install depot smollm2@1.1.0    # a source of the configuration, with its credentials\n"
        "  edge-agent install https://models.example.org smollm2@1.1.0 --config /etc/edge-agent/agent.toml\n"
        "  edge-agent install ./repository smollm2@1.0.0 --state-dir ./state --root ./repository/metadata/1.root.json\n"
        "\n"
        "exit status: 0 active, 2 the command line, 3 refused (final), 4 the source could not be used until the\n"
        "timeout, 5 disk full or broken, 6 it did not pass its canary, 78 the configuration, 130 interrupted\n"
    )


def run(arguments: argparse.Namespace) -> int:
    name, version = parse_reference(arguments.bundle)
    context = read_context(arguments)
    source = absolute_source(arguments.source)
    root = None if arguments.root is None else str(arguments.root.absolute())
    order = Order(op="install", name=name, version=version, source=source, root=root)
    # How it goes is told below, and how it ends; the log is for those who read a service's.
    logging.getLogger("edge_agent").addHandler(logging.NullHandler())
    printer = ProgressPrinter(as_json=arguments.json)
    # A stick that is not there, or not whole, stays so until somebody comes.
    remote = not location_of(context.sources.get(source, source)).startswith("/")
    try:
        retry(
            lambda: _attempt(context, order, printer),
            Backoff(context.install.retry_first_seconds, context.install.retry_longest_seconds, random.uniform),
            timeout=arguments.timeout if remote and not arguments.no_retry else 0.0,
            on_wait=printer.wait,
        )
    finally:
        printer.finish()
    if arguments.json:
        print(json.dumps({"ok": True, "active": arguments.bundle}))
    else:
        print(f"{arguments.bundle} is active")
    return 0


def _attempt(context: CliContext, order: Order, printer: ProgressPrinter) -> None:
    if call_agent(context.directory, order, printer.show) is None:
        # What only root can read, the account that does the work cannot: better said now than tried again.
        act_as_owner(context.directory)
        target = install_target(order, context.install, context.sources)
        raise_for(asyncio.run(install_offline(context.directory, target, context.worker, printer.show)))


def retry(
    attempt: Callable[[], None],
    backoff: Backoff,
    *,
    timeout: float,
    on_wait: Callable[[EdgeBundleError, float], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Do ``attempt`` until it works, or a source could not be used for ``timeout`` seconds.

    Raises:
        EdgeBundleError: the last one, or the first that says nothing about a source.
    """
    end = clock() + timeout
    while True:
        try:
            attempt()
        except EdgeBundleError as error:
            retry_after = error.retry_after if isinstance(error, SourceUnavailable | AgentRefused) else None
            delay = backoff.after_failure(retry_after)
            if error.exit_status != SourceUnavailable.exit_status or clock() + delay > end:
                raise
            on_wait(error, delay)
            sleep(delay)
        else:
            return


class ProgressPrinter:
    """Tells how an installation goes: JSON lines, one line that is overwritten on a terminal, or a line each phase."""

    def __init__(self, *, as_json: bool) -> None:
        self._json = as_json
        self._terminal = sys.stderr.isatty() and not as_json
        self._phase = ""
        self._width = 0

    def show(self, reported: Reported) -> None:
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
            text += (
                f" {'█' * (share // 5):░<20} {share:3} %  {format_size(progress.done)} of {format_size(progress.total)}"
            )
            if progress.reused:
                text += f", {format_size(progress.reused)} reused"
        if self._terminal:
            sys.stderr.write("\r" + text.ljust(self._width))
            sys.stderr.flush()
            self._width = len(text)
        elif reported.phase not in (self._phase, "IDLE"):
            print(reported.phase.lower(), file=sys.stderr, flush=True)
        self._phase = reported.phase

    def wait(self, error: EdgeBundleError, delay: float) -> None:
        """The source could not be used; the next attempt is ``delay`` seconds away."""
        if self._json:
            failure = {"reason": error.reason, "message": error.message}
            print(json.dumps({"phase": "IDLE", "error": failure, "retry_in_seconds": round(delay, 1)}), flush=True)
            return
        self.finish()
        print(f"{error.message}; retrying in {delay_text(delay)}", file=sys.stderr, flush=True)
        self._phase = ""

    def finish(self) -> None:
        """Leave the terminal clean."""
        if self._terminal and self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
            self._width = 0
