"""The agent's only way to a broker: paho driven by asyncio, without threads and without blocking.

``sockets`` connects, TLS included; ``link`` is one connection with a paho client of its own, so that an acknowledgement
can never reach another connection than the one its message came from; ``connection`` keeps the session over as many
links as it takes, ``opening`` each of them; ``sending`` is what we want the broker to have, ``subscribing`` what from
it. paho encodes and decodes packets, and does nothing else for us. ``size_limit``, ``unproven``, ``filters`` and
``loss`` (all pure) conclude from lost connections what the broker does not take, which subscription it does not bear,
and that another client uses our name.
"""

from agent.mqtt.connection import MAX_TURN_SECONDS, Connection
from agent.mqtt.link import Received, Will
from agent.mqtt.size_limit import FoundLimit, SizeLimit, Undeliverable

__all__ = ["MAX_TURN_SECONDS", "Connection", "FoundLimit", "Received", "SizeLimit", "Undeliverable", "Will"]
