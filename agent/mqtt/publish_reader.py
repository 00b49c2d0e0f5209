"""Reads PUBLISH packets that paho gives up: brokers pass on what its reader of properties refuses.

paho ends a connection at a text with U+FEFF in it, which MQTT 5 allows (1.5.4-3), and at one that is no UTF-8 or holds
U+0000, which some brokers let through. The packet would come again on every new connection, so one message of one
client would cut the device off for good. Here only the properties that matter to the agent are read, and none is
trusted.
"""

from __future__ import annotations

import struct

from paho.mqtt.client import MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

_FIXED = {1: 1, 2: 4, 23: 1, 24: 4, 35: 2}
"""Bytes of the properties that a PUBLISH may have and whose size is fixed (MQTT 5, 2.2.2.2)."""

_TEXTS = {3: 1, 8: 1, 9: 1, 38: 2}
"""How many length-prefixed fields the others have."""

_SUBSCRIPTION_IDENTIFIER = 11


class Unreadable(Exception):
    """There is no telling where a field of the packet ends."""


def read_publish(command: int, packet: bytes, *, five: bool) -> MQTTMessage:
    """The message in a PUBLISH packet without its fixed header, with whatever of its properties can be read.

    Raises:
        Unreadable: not even its topic, packet identifier and payload can be told apart.
    """
    topic, rest = _field(packet)
    qos = (command & 0x06) >> 1
    mid = 0
    if qos:
        mid, rest = int.from_bytes(_take(rest, 2)), rest[2:]
    message = MQTTMessage(mid=mid, topic=topic)
    message.qos = qos
    message.dup = bool(command & 0x08)
    message.retain = bool(command & 0x01)
    if five:
        length, rest = _variable(rest)
        message.properties = _properties(_take(rest, length))
        rest = rest[length:]
    message.payload = rest
    return message


def _properties(data: bytes) -> Properties:
    found = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    try:
        while data:
            identifier, data = _variable(data)
            if identifier in _FIXED:
                value, data = _take(data, _FIXED[identifier]), data[_FIXED[identifier] :]
            elif identifier == _SUBSCRIPTION_IDENTIFIER:
                value, (_, data) = b"", _variable(data)
            elif identifier in _TEXTS:
                for _ in range(_TEXTS[identifier]):
                    value, data = _field(data)
            else:
                break
            if identifier == 2:
                found.MessageExpiryInterval = int.from_bytes(value)
            elif identifier == 8:
                # What is no text is none of our topics, and refused as one that is not.
                found.ResponseTopic = value.decode("utf-8", "replace")
            elif identifier == 9:
                found.CorrelationData = value
    except Unreadable:
        # What was read so far counts: the request may be answered for its other faults, or none.
        pass
    return found


def _take(data: bytes, count: int) -> bytes:
    if len(data) < count:
        raise Unreadable
    return data[:count]


def _field(data: bytes) -> tuple[bytes, bytes]:
    """A field with its length before it, and what follows."""
    end = 2 + struct.unpack("!H", _take(data, 2))[0]
    return _take(data, end)[2:], data[end:]


def _variable(data: bytes) -> tuple[int, bytes]:
    """A variable byte integer (MQTT 5, 1.5.5), and what follows."""
    value = 0
    for index in range(4):
        byte = _take(data[index:], 1)[0]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, data[index + 1 :]
    raise Unreadable
