"""The agent's only way to a broker: paho driven by asyncio, without threads and without blocking.

``sockets`` connects, TLS included; ``link`` is one connection with a paho client of its own, so that an acknowledgement
can never reach another connection than the one its message came from; ``connection`` keeps the session over as many
links as it takes, ``connector`` opens each of them, ``handler`` is told; ``sender`` is what we want the broker to have,
``subscriber`` what from it. paho encodes and decodes packets, and does nothing else for us. ``gateway`` is the device's
own handler. ``size_limit``, ``unconfirmed``, ``filters`` and ``loss`` (all pure) conclude from lost connections what
the broker does not take, which subscription it does not bear, and that another client uses our name.
"""

from agent.mqtt.connection import MAX_TURN_SECONDS, Connection
from agent.mqtt.handler import Handler, Session
from agent.mqtt.link import Received, Will
from agent.mqtt.outbox import Undeliverable
from agent.mqtt.sender import Sender
from agent.mqtt.size_limit import FoundLimit, SizeLimit

__all__ = [
    "MAX_TURN_SECONDS",
    "Connection",
    "FoundLimit",
    "Handler",
    "Received",
    "Sender",
    "Session",
    "SizeLimit",
    "Undeliverable",
    "Will",
]
