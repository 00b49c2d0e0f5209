"""A blocking client: ask a device (or a group) and read the answer as it comes."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from typing import Any

from contract.errors import SourceUnavailable, UsageError
from contract.mqtt.topics import DEFAULT_ROOT, Topics
from contract.names import is_identifier
from packager.client.broker import BrokerAddress
from packager.client.replies import Answer, Piece, Reassembly
from packager.mqtt import BrokerSession

SILENCE_SECONDS = 15.0
"""Without any frame for so long, the device is asked again: the same id never costs a second run."""


class Client:
    """``with Client(address) as client: for piece in client.ask(...)``. Not safe for several threads.

    Raises (constructor): SourceUnavailable.
    """

    def __init__(self, address: BrokerAddress, *, name: str | None = None, root: str = DEFAULT_ROOT) -> None:
        self.name = name or f"client-{secrets.token_hex(6)}"
        if not is_identifier(self.name):
            raise UsageError(f"{self.name!r} cannot be a client's name: use 1 to 64 of A-Z a-z 0-9 _ . -")
        self._root = root
        self._session = BrokerSession(address, self.name)
        # Any device's topics do: the reply filter names only us.
        self._session.subscribe(Topics("any", root).client_replies_filter(self.name))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._session.close()

    def ask(
        self, body: dict[str, Any], *, device: str | None = None, group: str | None = None, seconds: float = 600.0
    ) -> Iterator[Piece | Answer]:
        """Send a request and yield pieces of text as they come, then the :class:`Answer`.

        ``body`` is the request; it gets an id if it has none. A broken connection is bridged: the request is sent
        again, and the device answers it once.

        Raises:
            SourceUnavailable: no answer within ``seconds``. UsageError: neither or both of device and group.
        """
        if (device is None) == (group is None):
            raise UsageError("name either a device or a group")
        request_id = str(body.setdefault("id", secrets.token_hex(8)))
        payload = json.dumps(body).encode()
        topics = Topics(device or "any", self._root)
        topic = topics.generate(self.name) if device else topics.group_generate(str(group), self.name)
        self._session.publish(topic, payload)
        reassembly = Reassembly()
        reconnects = self._session.reconnects
        deadline = time.monotonic() + seconds
        heard = time.monotonic()
        while (left := deadline - time.monotonic()) > 0:
            for message in self._session.messages(min(left, 1.0)):
                if message.topic.rsplit("/", 1)[-1] != request_id:
                    continue
                heard = time.monotonic()
                for found in reassembly.feed(message.payload):
                    yield found
                    if isinstance(found, Answer):
                        return
            if self._session.reconnects != reconnects or time.monotonic() - heard > SILENCE_SECONDS:
                reconnects, heard = self._session.reconnects, time.monotonic()
                if device:
                    self._session.publish(topic, payload)
        raise SourceUnavailable(f"no answer from {device or group} within {seconds:.0f} s; is it online?")

    def cancel(self, device: str, request_id: str) -> None:
        """End a request of our own; its last frame says ``cancelled``."""
        self._control(device, {"id": request_id, "op": "cancel"})

    def update(self, device: str, request_id: str, **changes: Any) -> None:
        """Change sampling parameters of a running request of our own."""
        self._control(device, {"id": request_id, "op": "update", "set": changes})

    def resume(self, device: str, request_id: str) -> None:
        """Ask for all text so far, or for the last frame, of a request of our own."""
        self._control(device, {"id": request_id, "op": "resume"})

    def _control(self, device: str, message: dict[str, Any]) -> None:
        self._session.publish(Topics(device, self._root).control(self.name), json.dumps(message).encode())
