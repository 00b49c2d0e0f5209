"""``edge-packager deploy``: tell devices which bundle to run, through the retained ``desired`` topic."""

from __future__ import annotations

import argparse
import json
import secrets
import time

import msgspec
from msgspec import UNSET

from contract.errors import BundleRefused, SourceUnavailable, UsageError
from contract.identifiers import is_identifier, parse_reference
from contract.mqtt.messages import Reported
from contract.mqtt.topics import Topics
from contract.reasons import Reason
from edge_bundle.broker import add_broker, find_broker
from edge_bundle.broker_session import BrokerSession

STATUS_SECONDS = 2.0
"""How long retained documents of a group's devices may take to arrive."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="NAME@VERSION", nargs="?", help="what to run")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--device", metavar="D", action="append", help="may be repeated")
    where.add_argument("--group", metavar="G", help="every device that says it belongs to this group")
    add_broker(parser)
    parser.add_argument("--source", metavar="S", help="name of a source in the device's configuration (default: any)")
    parser.add_argument("--revision", metavar="R", help="what the device echoes (default: a random one)")
    parser.add_argument("--clear", action="store_true", help="withdraw the desired bundle instead of setting one")
    parser.add_argument("--wait", action="store_true", help="follow it until it is active everywhere or refused")
    parser.add_argument("--timeout", type=float, default=3600.0, metavar="SECONDS", help="for --wait; default 3600")
    parser.add_argument("--json", action="store_true", help="print what happens as JSON lines")
    parser.epilog = (
        "The broker retains the desired bundle: a device that is offline follows it when it reconnects.\n\n"
        "examples:\n"
        "  edge-packager deploy --device kitchen-1 smollm2@1.1.0 --wait\n"
        "  edge-packager deploy --group office --source depot smollm2@1.1.0 --broker mqtts://broker.example.org\n"
        "  edge-packager deploy --device kitchen-1 --clear"
    )


def run(arguments: argparse.Namespace) -> int:
    if (arguments.bundle is None) != arguments.clear:
        raise UsageError("give NAME@VERSION, or --clear to withdraw the desired bundle")
    payload, revision = b"", None
    if not arguments.clear:
        payload, revision = _document(arguments)
    for name in arguments.device or [arguments.group]:
        if not is_identifier(name):
            raise UsageError(f"{name!r} cannot name a device or group: use 1 to 64 of A-Z a-z 0-9 _ . -")
    with BrokerSession(find_broker(arguments), f"deploy-{secrets.token_hex(6)}") as session:
        devices = arguments.device or find_group(session, arguments.topic_root, arguments.group)
        if not devices:
            raise SourceUnavailable(f"no device of group {arguments.group!r} has reported to this broker")
        if arguments.wait and revision is not None:
            session.subscribe(*(Topics(device, arguments.topic_root).reported for device in devices))
        for device in devices:
            session.publish(Topics(device, arguments.topic_root).desired, payload, retain=True)
            _print_event(arguments, {"device": device, "revision": revision, "bundle": arguments.bundle}, "asked")
        if arguments.wait and revision is not None:
            _follow(session, arguments, devices, revision)
    return 0


def _document(arguments: argparse.Namespace) -> tuple[bytes, str]:
    name, version = parse_reference(arguments.bundle)
    revision = arguments.revision or secrets.token_hex(6)
    document = {"revision": revision, "bundle": {"name": name, "version": version}}
    if arguments.source is not None:
        document["source"] = arguments.source
    return json.dumps(document).encode(), revision


def find_group(session: BrokerSession, root: str, group: str) -> list[str]:
    """Devices whose retained ``info`` names ``group``.

    Raises:
        SourceUnavailable: the broker is gone.
    """
    session.subscribe(Topics("any", root).info.replace("/any/", "/+/"))
    found = set()
    for message in session.messages(STATUS_SECONDS):
        try:
            info = msgspec.json.decode(message.payload)
            if group in info["groups"]:
                found.add(str(info["device"]))
        except (msgspec.MsgspecError, KeyError, TypeError):
            continue
    return sorted(found)


def _follow(session: BrokerSession, arguments: argparse.Namespace, devices: list[str], revision: str) -> None:
    waiting = {Topics(device, arguments.topic_root).reported: device for device in devices}
    refused: list[tuple[str, str, str]] = []
    last_phase: dict[str, str] = {}
    failing: dict[str, str] = {}
    end = time.monotonic() + arguments.timeout
    while waiting and time.monotonic() < end:
        for message in session.messages(min(1.0, max(0.0, end - time.monotonic()))):
            device = waiting.get(message.topic)
            if device is None:
                continue
            try:
                reported = msgspec.json.decode(message.payload, type=Reported)
            except msgspec.MsgspecError:
                continue
            if reported.revision != revision:
                continue
            phase = _phase_text(reported)
            if last_phase.get(device) != phase:
                last_phase[device] = phase
                _print_event(arguments, {"device": device, "reported": msgspec.to_builtins(reported)}, phase)
            if reported.error is not None and reported.error.retry_in_seconds is not UNSET:
                failing[device] = reported.error.message
            elif reported.error is not None and reported.phase == "IDLE":
                refused.append((device, reported.error.reason, reported.error.message))
                del waiting[message.topic]
            elif reported.phase == "IDLE" and _is_active(reported, arguments.bundle):
                del waiting[message.topic]
            if not waiting:
                break
    if refused:
        device, reason, text = refused[0]
        known = Reason(reason) if reason in set(Reason) else Reason.DESIRED_INVALID
        more = f" (and {len(refused) - 1} more devices)" if len(refused) > 1 else ""
        raise BundleRefused(known, f"{device} refused it: {text}{more}")
    if waiting:
        last = "".join(f"; {device}: {failing[device]}" for device in sorted(waiting.values()) if device in failing)
        raise SourceUnavailable(
            f"not done within {arguments.timeout:.0f} s: {', '.join(sorted(waiting.values()))}{last}"
        )


def _is_active(reported: Reported, bundle: str) -> bool:
    in_force = [reported.active, *(reported.adapters or [])]
    return any(each is not None and f"{each.name}@{each.version}" == bundle for each in in_force)


def _phase_text(reported: Reported) -> str:
    text = reported.phase.lower()
    if reported.phase == "IDLE":
        if reported.error is not None and reported.error.retry_in_seconds is not UNSET:
            return f"waiting: {reported.error.message} [{reported.error.reason}]"
        if reported.error is not None:
            return f"failed: {reported.error.message} [{reported.error.reason}]"
        text = "idle" if reported.active is None else f"active {reported.active.name}@{reported.active.version}"
    if reported.progress is not None and reported.progress.total and reported.phase == "FETCH":
        # In steps of ten, so that a log does not drown.
        text += f" {100 * reported.progress.done // reported.progress.total // 10 * 10} %"
    if reported.queue_pause_ms is not UNSET and reported.phase in ("PROBATION", "COMMIT"):
        text += f" (requests waited {reported.queue_pause_ms:.0f} ms)"
    return text


def _print_event(arguments: argparse.Namespace, event: dict[str, object], text: str) -> None:
    if arguments.json:
        print(json.dumps(event), flush=True)
    else:
        print(f"{event['device']}: {text}", flush=True)
