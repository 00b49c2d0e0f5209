"""``edge-packager deploy``: tell devices which bundle to run, through the retained ``desired`` topic."""

from __future__ import annotations

import argparse
import json
import secrets
import time

import msgspec

from contract.errors import BundleRefused, SourceUnavailable, UsageError
from contract.identifiers import is_identifier, parse_reference
from contract.mqtt.device import Status
from contract.mqtt.reading import parse_desired
from contract.mqtt.topics import Topics
from edge_bundle.broker import add_broker, find_broker
from edge_bundle.broker_session import BrokerSession, Message
from edge_bundle.presence import DOCUMENTS, Presence
from packager.watch.deployment import Deployment

GLANCE_SECONDS = 1.0
"""How long retained documents of the devices that were named may take to arrive."""

STATUS_SECONDS = 2.0
"""The same for those of all devices."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="NAME@VERSION", nargs="?", help="what to run")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--device", metavar="D", action="append", help="may be repeated")
    where.add_argument("--group", metavar="G", help="every device that says it belongs to this group")
    add_broker(parser)
    parser.add_argument("--source", metavar="S", help="name of a source in the device's configuration (default: any)")
    parser.add_argument("--revision", metavar="R", help="what the device echoes (default: a random one)")
    parser.add_argument("--not-before", metavar="TIME", help="activate not before then: 2026-12-01T02:00:00Z")
    parser.add_argument(
        "--window",
        metavar="W",
        action="append",
        help="activate only within it: '[DAYS] FROM-UNTIL ZONE', as 'sat,sun 22:00-05:00 Europe/Oslo'; may be repeated",
    )
    parser.add_argument("--prefetch", action="store_true", help="fetch and verify at once, activate when it is time")
    parser.add_argument("--clear", action="store_true", help="withdraw the desired bundle instead of setting one")
    parser.add_argument("--force", action="store_true", help="also for a device that this broker has never heard of")
    parser.add_argument("--wait", action="store_true", help="follow it until it is active everywhere or refused")
    parser.add_argument("--timeout", type=float, default=3600.0, metavar="SECONDS", help="for --wait; default 3600")
    parser.add_argument("--json", action="store_true", help="print what happens as JSON lines")
    parser.epilog = (
        "The broker retains the desired bundle: a device that is offline follows it when it reconnects. --wait does\n"
        "not wait for one that is offline to begin with.\n\n"
        "examples:\n"
        "  edge-packager deploy --device kitchen-1 smollm2@1.1.0 --wait\n"
        "  edge-packager deploy --group office --source depot smollm2@1.1.0 --broker mqtts://broker.example.org\n"
        "  edge-packager deploy --group office smollm2@1.1.0 --window '02:00-05:00 Europe/Oslo' --prefetch\n"
        "  edge-packager deploy --device kitchen-1 --clear\n\n"
        "exit status: 0 published, with --wait active everywhere; 2 the command line; 3 a device refused the bundle;\n"
        "4 no broker, an unknown device, or with --wait a device that is offline, still at it or trying again;\n"
        "130 interrupted (what is desired stays)"
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.clear and (arguments.not_before or arguments.window or arguments.prefetch):
        raise UsageError("--clear takes no --not-before, --window or --prefetch")
    if (arguments.bundle is None) != arguments.clear:
        raise UsageError("give NAME@VERSION, or --clear to withdraw the desired bundle")
    payload, revision = b"", None
    if not arguments.clear:
        payload, revision = _document(arguments)
    for name in arguments.device or [arguments.group]:
        if not is_identifier(name):
            raise UsageError(f"{name!r} cannot name a device or group: use 1 to 64 of A-Z a-z 0-9 _ . -")
    with BrokerSession(find_broker(arguments), f"deploy-{secrets.token_hex(6)}") as session:
        look = _Look(session, arguments.topic_root)
        devices = _devices(look, arguments)
        offline = [each for each in devices if (known := look.presence.device(each)) is None or not known.online]
        follow = bool(arguments.wait and revision is not None)
        if follow:
            look.read_reports(devices)
        for device in devices:
            session.publish(Topics(device, arguments.topic_root).desired, payload, retain=True)
            text = "asked; it is offline and follows when it is back" if device in offline else "asked"
            _print_event(arguments, {"device": device, "revision": revision, "bundle": arguments.bundle}, text)
        if follow:
            assert revision is not None
            followed = [device for device in devices if device not in offline]
            deployment = Deployment(arguments.bundle, revision, followed, time.monotonic())
            for device, before in look.reports.items():
                if (through := deployment.reported_before(device, before)) is not None:
                    _print_event(arguments, {"device": device}, through)
            _follow(session, arguments, deployment)
            deployment.conclude(arguments.timeout, offline)
    return 0


def _document(arguments: argparse.Namespace) -> tuple[bytes, str]:
    name, version = parse_reference(arguments.bundle)
    revision = arguments.revision or secrets.token_hex(6)
    document: dict[str, object] = {"revision": revision, "bundle": {"name": name, "version": version}}
    if arguments.source is not None:
        document["source"] = arguments.source
    if policy := _policy(arguments):
        document["policy"] = policy
    payload = json.dumps(document).encode()
    if policy:
        _check(payload)
    return payload, revision


def _policy(arguments: argparse.Namespace) -> dict[str, object]:
    """When it is to be activated."""
    policy: dict[str, object] = {}
    if arguments.not_before is not None:
        policy["not_before"] = arguments.not_before
    if arguments.window:
        policy["window"] = [_window(text) for text in arguments.window]
    if arguments.prefetch:
        if not policy:
            raise UsageError("--prefetch fetches ahead of a time: give --not-before or --window, too")
        policy["prefetch"] = True
    return policy


def _window(text: str) -> dict[str, object]:
    """A window in one line; what is in it is checked with the document."""
    *days, times, zone = text.split() if len(text.split()) in (2, 3) else ("", "", "")
    start, dash, end = times.partition("-")
    if not dash:
        form = "'[DAYS] FROM-UNTIL ZONE', as 'sat,sun 22:00-05:00 Europe/Oslo'"
        raise UsageError(f"{text!r} is not a window: write {form}")
    window: dict[str, object] = {"from": start, "until": end, "zone": zone}
    if days and days[0]:
        window["days"] = days[0].lower().split(",")
    return window


def _check(payload: bytes) -> None:
    """As devices read it.

    Raises:
        UsageError: they would refuse it.
    """
    try:
        parse_desired(payload)
    except BundleRefused as refused:
        raise UsageError(f"{refused.field}: {refused.message}") from refused


class _Look:
    """What the broker knows of devices before they are asked."""

    def __init__(self, session: BrokerSession, root: str) -> None:
        self.presence = Presence()
        self.reports: dict[str, bytes] = {}
        self._session = session
        self._root = root

    def read(self, device: str = "+") -> None:
        """Their retained documents; of one, until its status is here.

        Raises:
            SourceUnavailable: the broker is gone, or refuses to say.
        """
        topics = Topics("any", self._root)
        self._session.subscribe(*(getattr(topics, kind).replace("/any/", f"/{device}/", 1) for kind in DOCUMENTS))
        for message in self._session.messages(STATUS_SECONDS if device == "+" else GLANCE_SECONDS):
            self._hear(message)
            if (known := self.presence.device(device)) is not None and known.online:
                return

    def read_reports(self, devices: list[str]) -> None:
        """What they report now, so that it is not taken for their answer. From here on, their status, too."""
        expected = {device for device in devices if self.presence.device(device) is not None}
        self._session.subscribe(*(Topics(device, self._root).status for device in devices))
        self._session.subscribe(*(Topics(device, self._root).reported for device in devices))
        for message in self._session.messages(GLANCE_SECONDS):
            self._hear(message)
            if expected <= set(self.reports):
                return

    def _hear(self, message: Message) -> None:
        device, _, kind = message.topic.removeprefix(f"{self._root}/d/").partition("/")
        if kind == "reported":
            self.reports[device] = message.payload
        elif is_identifier(device):
            self.presence.hear(device, kind, message.payload)


def _devices(look: _Look, arguments: argparse.Namespace) -> list[str]:
    """Who is asked.

    Raises:
        SourceUnavailable: the group has nobody, or a device was never heard of (unless --force).
    """
    if arguments.group is not None:
        look.read()
        found = sorted(look.presence.members(arguments.group))
        if not found:
            known = {each for device in look.presence.devices().values() for each in device.groups}
            raise SourceUnavailable(look.presence.unknown("group", arguments.group, known))
        return found
    devices: list[str] = list(dict.fromkeys(arguments.device))
    # What is withdrawn may well belong to a name that was never right.
    if arguments.clear:
        return devices
    for device in devices:
        look.read(device)
    unknown = [device for device in devices if look.presence.device(device) is None]
    if unknown and not arguments.force:
        look.read()
        unknown = [device for device in unknown if look.presence.device(device) is None]
    if unknown and not arguments.force:
        text = look.presence.unknown("device", unknown[0], look.presence.devices())
        raise SourceUnavailable(f"{text}; --force leaves the desired bundle with the broker until it comes")
    return devices


def _follow(session: BrokerSession, arguments: argparse.Namespace, deployment: Deployment) -> None:
    end = time.monotonic() + arguments.timeout
    while deployment.waiting and (now := time.monotonic()) < end:
        message = session.next_message(min(1.0, end - now))
        if (text := deployment.broker(session.connected, time.monotonic())) is not None:
            _print_broker(arguments, session, text)
        for device, text in deployment.reminders(time.monotonic()):
            _print_event(arguments, {"device": device, "waiting": text}, text)
        if message is None:
            continue
        device, _, kind = message.topic.removeprefix(f"{arguments.topic_root}/d/").partition("/")
        if kind == "reported":
            news = deployment.report(device, message.payload, time.monotonic())
            if news is not None:
                _print_event(arguments, {"device": device, "reported": msgspec.to_builtins(news[0])}, news[1])
        elif kind == "status" and (status := _status(message.payload)) is not None:
            changed = deployment.status(device, status.online, time.monotonic())
            if changed is not None:
                _print_event(arguments, {"device": device, "online": status.online}, changed)


def _status(payload: bytes) -> Status | None:
    try:
        return msgspec.json.decode(payload, type=Status)
    except msgspec.MsgspecError:
        return None


def _print_broker(arguments: argparse.Namespace, session: BrokerSession, text: str) -> None:
    name = session.address.name
    print(json.dumps({"broker": name, "message": text}) if arguments.json else f"broker {name}: {text}", flush=True)


def _print_event(arguments: argparse.Namespace, event: dict[str, object], text: str) -> None:
    if arguments.json:
        print(json.dumps(event), flush=True)
    else:
        print(f"{event['device']}: {text}", flush=True)
