"""Who sends: clients that stay, clients that come for one message, and one that never reads."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import MQTTException, Properties

from tests.siege.shots import Shot

ALONE_SECONDS = 2.0
"""A client that came for one message waits so long for the broker, which may have cut it."""

REPLIES = "edge/v1/c/+/r/+/+"


def make_client(protocol: str, name: str = "") -> mqtt.Client:
    """A client with a session that ends with the connection."""
    version = mqtt.MQTTv5 if protocol == "5" else mqtt.MQTTv311
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=version)
    client.reconnect_delay_set(1, 1)
    client.max_inflight_messages_set(100)
    return client


def properties_of(shot: Shot) -> Properties | None:
    """For paho; None where there are none.

    Raises:
        MQTTException: paho does not send such a thing.
    """
    if not shot.properties:
        return None
    made = Properties(PacketTypes.PUBLISH)
    for name, value in shot.properties.items():
        setattr(made, name, value)
    return made


class Gunners:
    """``fire`` sends one shot, whatever becomes of it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.unsendable = 0
        """Not sent, since paho refuses."""
        self._steady = {protocol: make_client(protocol, f"gunner-{protocol}") for protocol in ("5", "3.1.1")}
        for client in self._steady.values():
            client.connect("127.0.0.1", port)
            client.loop_start()
        self._sleeper: mqtt.Client | None = None

    def close(self) -> None:
        self.wake()
        for client in self._steady.values():
            client.disconnect()
            client.loop_stop()

    def fire(self, shot: Shot) -> None:
        """Send it; a QoS 1 message of a client that stays is sent again if the connection breaks."""
        try:
            properties = properties_of(shot)
            if shot.alone:
                self._fire_alone(shot, properties)
            else:
                self._steady[shot.protocol].publish(shot.topic, shot.payload, shot.qos, shot.retain, properties)
        except (ValueError, MQTTException):
            self.unsendable += 1

    def _fire_alone(self, shot: Shot, properties: Properties | None) -> None:
        client = make_client(shot.protocol)
        done: list[Any] = []
        client.on_publish = lambda *_: done.append(True)
        client.on_disconnect = lambda *_: done.append(False)
        deadline = time.monotonic() + ALONE_SECONDS
        # The broker may be away just now, or cut us.
        with contextlib.suppress(OSError):
            client.connect("127.0.0.1", self._port)
            while not client.is_connected() and time.monotonic() < deadline:
                if client.loop(0.05) != mqtt.MQTT_ERR_SUCCESS:
                    return
            client.publish(shot.topic, shot.payload, shot.qos, shot.retain, properties)
            while not done and time.monotonic() < deadline:
                if client.loop(0.05) != mqtt.MQTT_ERR_SUCCESS:
                    return
            if shot.number % 2:
                client.disconnect()

    def sleep(self) -> None:
        """A client subscribes to every answer and reads none of them."""
        self.wake()
        client = make_client("5")
        with contextlib.suppress(OSError):
            client.connect("127.0.0.1", self._port)
            client.loop(0.2)
            client.subscribe(REPLIES, 1)
            client.loop_write()
            self._sleeper = client

    def wake(self) -> None:
        """It is gone without a word."""
        if self._sleeper is not None and (connection := self._sleeper.socket()) is not None:
            connection.close()
        self._sleeper = None
