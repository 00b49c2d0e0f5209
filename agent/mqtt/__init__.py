"""The agent's only way to a broker: paho driven by asyncio, without threads and without blocking.

``sockets`` connects, TLS included; ``link`` is one connection with a paho client of its own, so that an acknowledgement
can never reach another connection than the one its message came from; ``connection`` keeps the session over as many
links as it takes. paho encodes and decodes packets, and does nothing else for us.
"""

from agent.mqtt.connection import LONGEST_TURN_SECONDS, Connection
from agent.mqtt.link import Received, Will

__all__ = ["LONGEST_TURN_SECONDS", "Connection", "Received", "Will"]
