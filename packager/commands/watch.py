"""``edge-packager watch``: follow what devices report, one line for each message."""

from __future__ import annotations

import argparse
import datetime
import json
import secrets
from typing import Any

import msgspec

from contract.errors import UsageError
from contract.mqtt.topics import Topics
from contract.names import is_identifier
from packager.client.broker import add_broker, find_broker
from packager.mqtt import BrokerSession, Message

FOREVER_SECONDS = 10 * 365 * 86400.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="D", help="only this one (default: all)")
    add_broker(parser)
    parser.add_argument("--telemetry", action="store_true", help="show telemetry samples, too")
    parser.add_argument("--seconds", type=float, default=FOREVER_SECONDS, metavar="N", help="end after this time")
    parser.add_argument("--json", action="store_true", help="print topic and payload as JSON lines")
    parser.epilog = (
        "examples:\n"
        "  edge-packager watch --device kitchen-1\n"
        "  edge-packager watch --broker mqtts://broker.example.org --telemetry --json"
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.device is not None and not is_identifier(arguments.device):
        raise UsageError(f"{arguments.device!r} cannot name a device: use 1 to 64 of A-Z a-z 0-9 _ . -")
    topics = Topics(arguments.device or "any", arguments.topic_root)
    filters = [topics.status, topics.reported, topics.health, topics.info, topics.event("install")]
    filters[-1] = filters[-1].replace("/event/install", "/event/+")
    if arguments.telemetry:
        filters += [topics.telemetry_system, topics.telemetry_llm]
    if arguments.device is None:
        filters = [topic.replace("/d/any/", "/d/+/", 1) for topic in filters]
    with BrokerSession(find_broker(arguments), f"watch-{secrets.token_hex(6)}") as session:
        session.subscribe(*filters)
        for message in session.messages(arguments.seconds):
            print(_line(message, arguments.topic_root, as_json=arguments.json), flush=True)
    return 0


def _line(message: Message, root: str, *, as_json: bool) -> str:
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
    except (AttributeError, KeyError, TypeError):
        # A device of another version, or no device of ours: shown as it is.
        text = str(body)[:200]
    return f"{now} {device} {kind}: {text}"


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
        progress = body["progress"]
        if progress and progress["total"]:
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
        return json.dumps(body["detail"])
    return str(body)[:200]


def _reference(bundle: dict[str, Any] | None) -> str:
    return "-" if bundle is None else f"{bundle['name']}@{bundle['version']}"
