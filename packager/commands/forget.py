"""``edge-packager forget``: remove what the broker keeps of devices that are gone."""

from __future__ import annotations

import argparse
import secrets

from contract.errors import SourceUnavailable, UsageError
from contract.identifiers import is_identifier
from contract.mqtt.topics import Topics
from edge_bundle.broker import add_broker, find_broker
from edge_bundle.broker_session import BrokerSession
from edge_bundle.presence import Presence

SETTLE_SECONDS = 1.0
"""How long retained documents may take to arrive."""

KEPT = ("status", "health", "info", "reported", "desired")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("device", metavar="DEVICE", nargs="+")
    add_broker(parser)
    parser.epilog = (
        "Removes the retained documents of devices that will not come back, so that watch, prompt and deploy do not\n"
        "know them. One that is online is left alone; one that comes back publishes everything again, and what is\n"
        "desired must be deployed to it again. The broker's user must be allowed to write status, health, info,\n"
        "reported and desired of the device.\n\n"
        "examples:\n"
        "  edge-packager forget kitchen-7 attic-2\n\n"
        "exit status: 0 nothing is kept of them; 2 the command line, or one is online; 4 no broker, or it does not\n"
        "let this user remove it"
    )


def run(arguments: argparse.Namespace) -> int:
    for name in arguments.device:
        if not is_identifier(name):
            raise UsageError(f"{name!r} cannot name a device: use 1 to 64 of A-Z a-z 0-9 _ . -")
    with BrokerSession(find_broker(arguments), f"forget-{secrets.token_hex(6)}") as session:
        presence, kept = _read(session, arguments.topic_root, arguments.device)
        online = [name for name in arguments.device if (known := presence.device(name)) is not None and known.online]
        if online:
            raise UsageError(f"{online[0]} is online: a device that is there is not forgotten")
        for topic in kept:
            session.publish(topic, b"", retain=True)
    # Another connection sees what the broker still keeps.
    with BrokerSession(find_broker(arguments), f"forget-{secrets.token_hex(6)}") as session:
        _, left = _read(session, arguments.topic_root, arguments.device)
    if left:
        raise SourceUnavailable(f"the broker still keeps {left[0]}: it does not let this user remove it")
    for name in arguments.device:
        found = any(f"/d/{name}/" in topic for topic in kept)
        print(f"{name}: {'forgotten' if found else 'nothing was kept of it'}")
    return 0


def _read(session: BrokerSession, root: str, devices: list[str]) -> tuple[Presence, list[str]]:
    """What the broker keeps of ``devices``, and on which topics."""
    presence, kept = Presence(), []
    session.subscribe(*(getattr(Topics(device, root), kind) for device in devices for kind in KEPT))
    for message in session.messages(SETTLE_SECONDS):
        if message.retained and message.payload:
            kept.append(message.topic)
            *_, device, kind = message.topic.split("/")
            presence.hear(device, kind, message.payload)
    return presence, kept
