"""``edge-packager watch``: what devices report, live on a terminal, as lines or as JSON."""

from __future__ import annotations

import argparse
import datetime
import json
import secrets
import sys
import time
from typing import Any

import msgspec

from contract.errors import UsageError
from contract.identifiers import is_identifier
from contract.mqtt.topics import Topics
from edge_bundle.broker import add_broker, find_broker
from edge_bundle.broker_session import BrokerSession, Message
from packager.watch.deployment import HEARD, UNHEARD
from packager.watch.fleet import CONTESTED, FETCHES, Fleet, describe_event, printable

FOREVER_SECONDS = 10 * 365 * 86400.0
DRAW_SECONDS = 0.5
"""Between two pictures; a person sees no more, and a slow line carries it."""

LOOK_SECONDS = 0.5
"""Between two looks at the connection, for those who read lines."""

EXAMPLES = """examples:
  edge-packager watch                                     every device of the broker, one line each
  edge-packager watch --group office                      those of a group
  edge-packager watch --device kitchen-1                  one device in full
  edge-packager watch --device kitchen-1 --lines          one line for each message, also when output is no terminal
  edge-packager watch --telemetry --json --seconds 60     topic and payload as JSON lines, for scripts

On a terminal Ctrl-C ends it. The numbers come with the devices' telemetry, every ten seconds unless they are
configured otherwise; sparklines show the last readings, the newest on the right.
exit status: 0 --seconds are over, 2 wrong option, 4 no connection to the broker, 130 interrupted
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """See :class:`contract.system.command_line.Command`."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--device", metavar="D", help="only this one (default: all)")
    which.add_argument("--group", metavar="G", help="only devices that say they belong to this group")
    add_broker(parser)
    parser.add_argument("--lines", action="store_true", help="one line for each message, also on a terminal")
    parser.add_argument("--telemetry", action="store_true", help="with --lines or --json: telemetry samples, too")
    parser.add_argument("--seconds", type=float, default=FOREVER_SECONDS, metavar="N", help="end after this time")
    parser.add_argument("--json", action="store_true", help="print topic and payload as JSON lines")
    parser.epilog = EXAMPLES


def run(arguments: argparse.Namespace) -> int:
    """See :class:`contract.system.command_line.Command`."""
    for name in (arguments.device, arguments.group):
        if name is not None and not is_identifier(name):
            raise UsageError(f"{name!r} cannot name a device or group: use 1 to 64 of A-Z a-z 0-9 _ . -")
    live = sys.stdout.isatty() and not arguments.json and not arguments.lines
    fleet = Fleet(arguments.topic_root, arguments.group)
    address = find_broker(arguments)
    with BrokerSession(address, f"watch-{secrets.token_hex(6)}") as session:
        session.subscribe(*_filters(arguments, telemetry=live or arguments.telemetry))
        if live:
            _show(session, fleet, arguments, address.name)
        else:
            _print_lines(session, fleet, arguments)
    return 0


def _print_lines(session: BrokerSession, fleet: Fleet, arguments: argparse.Namespace) -> None:
    end = time.monotonic() + arguments.seconds
    connected = True
    while (now := time.monotonic()) < end:
        for message in session.messages(min(LOOK_SECONDS, end - now)):
            for each in fleet.feed(message, time.monotonic()):
                print(line(each, arguments.topic_root, as_json=arguments.json), flush=True)
            while fleet.contested:
                print(warning_line(fleet.contested.pop(0), CONTESTED, as_json=arguments.json), flush=True)
        if session.connected != connected:
            connected = not connected
            print(_broker_line(session, connected, as_json=arguments.json), flush=True)


def _broker_line(session: BrokerSession, connected: bool, *, as_json: bool) -> str:
    if as_json:
        return json.dumps({"device": None, "kind": "broker", "body": {"connected": connected}, "retained": False})
    now = datetime.datetime.now().astimezone().strftime("%H:%M:%S")
    return f"{now} broker {session.address.name}: {HEARD if connected else UNHEARD}"


def _filters(arguments: argparse.Namespace, *, telemetry: bool) -> list[str]:
    topics = Topics(arguments.device or "any", arguments.topic_root)
    filters = [topics.status, topics.reported, topics.health, topics.info]
    filters.append(topics.event("install").replace("/event/install", "/event/+"))
    if telemetry:
        filters += [topics.telemetry_system, topics.telemetry_llm]
    if arguments.device is None:
        filters = [topic.replace("/d/any/", "/d/+/", 1) for topic in filters]
    return filters


def _show(session: BrokerSession, fleet: Fleet, arguments: argparse.Namespace, broker: str) -> None:
    # Imported here: scripts that read lines need no terminal library.
    from rich.console import Console
    from rich.live import Live

    from packager.watch.screen import draw

    console = Console()
    end = time.monotonic() + arguments.seconds
    what = arguments.device or (f"group {arguments.group}" if arguments.group else "all devices")
    with Live(console=console, screen=True, auto_refresh=False) as screen:
        while (now := time.monotonic()) < end:
            picture = draw(
                fleet,
                title=f"{what} at {broker}",
                only=arguments.device,
                connected=session.connected,
                now=now,
                width=console.width,
                height=console.height,
            )
            screen.update(picture, refresh=True)
            for message in session.messages(min(DRAW_SECONDS, end - now)):
                fleet.feed(message, time.monotonic())


def warning_line(device: str, text: str, *, as_json: bool) -> str:
    """What was noticed here, as a line."""
    if as_json:
        return json.dumps({"device": device, "kind": "warning", "body": {"message": text}, "retained": False})
    return f"{datetime.datetime.now().astimezone().strftime('%H:%M:%S')} {device} warning: {text}"


def line(message: Message, root: str, *, as_json: bool) -> str:
    """One message as a line: of JSON, or for people."""
    device, _, kind = message.topic.removeprefix(f"{root}/d/").partition("/")
    try:
        body: Any = msgspec.json.decode(message.payload) if message.payload else None
    except msgspec.MsgspecError:
        body = message.payload.decode("utf-8", "replace")[:200]
    if as_json:
        return json.dumps({"device": device, "kind": kind, "body": body, "retained": message.retained})
    now = datetime.datetime.now().astimezone().strftime("%H:%M:%S")
    try:
        text = _describe(kind, body)
    except (AttributeError, KeyError, TypeError, ValueError):
        # A device of another version, or no device of ours: shown as it is.
        text = str(body)[:200]
    return f"{now} {device} {printable(kind)}: {printable(text)}"


def _describe(kind: str, body: Any) -> str:  # noqa: PLR0911 # one line for each kind
    if body is None:
        return "cleared"
    if kind == "status":
        return "online" if body["online"] else "offline"
    if kind == "health":
        state = "ready" if body["ready"] else "not ready: " + ", ".join(body["reasons"])
        return f"{state} · {body['active']} active, {body['queue']} queued"
    if kind == "info":
        engine = body["engine"] or {}
        return f"{_reference(body['bundle'])} · engine {engine.get('engine', '-')} · agent {body['versions']['agent']}"
    if kind == "reported":
        text = f"{body['phase'].lower()} · active {_reference(body['active'])}"
        progress, probation = body["progress"], body.get("probation")
        if probation:
            text += f" · {probation['seconds']:.0f} of {probation['of_seconds']:.0f} s"
            if "of_requests" in probation:
                text += f" or {probation['requests']} of {probation['of_requests']} answers"
        elif body["phase"] in FETCHES and progress and progress["total"]:
            text += f" · {100 * progress['done'] // progress['total']} %"
        if body["error"]:
            text += f" · {body['error']['message']} [{body['error']['reason']}]"
        return text
    if kind == "telemetry/system":
        memory = body["memory"]
        return f"cpu {body['cpu']['percent']} % · {memory['available'] >> 20} of {memory['total'] >> 20} MB free"
    if kind == "telemetry/llm":
        done = sum(body["requests"].values())
        return f"{done} answered · {body['gen_ai.usage.output_tokens']} tokens · {body['active']} active"
    if kind.startswith("event/"):
        return describe_event(kind.removeprefix("event/"), body["detail"])
    return str(body)[:200]


def _reference(bundle: dict[str, Any] | None) -> str:
    return "-" if bundle is None else f"{bundle['name']}@{bundle['version']}"
