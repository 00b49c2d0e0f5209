"""A blocking client: ask a device (or a group) and read the answer as it comes."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from typing import Any

from contract.errors import SourceUnavailable, UsageError
from contract.identifiers import is_identifier
from contract.mqtt.topics import DEFAULT_ROOT, Topics
from edge_bundle.broker import BrokerAddress
from edge_bundle.broker_session import BrokerSession
from edge_bundle.completion import Chunk, Completion, to_chunk, to_completion
from edge_bundle.replies import Answer, Found
from edge_bundle.request_session import RequestSession, control_message

GLANCE_SECONDS = 1.0
"""How often a broken connection is looked for while nothing comes."""


def client_name(name: str | None) -> str:
    """A client's name in the topics, a random one for None.

    Raises:
        UsageError: it cannot stand in a topic.
    """
    name = name or f"client-{secrets.token_hex(6)}"
    if not is_identifier(name):
        raise UsageError(f"{name!r} cannot be a client's name: use 1 to 64 of A-Z a-z 0-9 _ . -")
    return name


def session_name(name: str) -> str:
    """The MQTT client id of one connection: a broker ends the older of two that have the same."""
    return f"{name}-{secrets.token_hex(4)}"


class Client:
    """``with Client(address) as client: client.complete(device="kitchen-1", messages=[…])``. For one thread.

    ``device`` or ``group`` says who is asked, ``seconds`` for how long, and the other keywords are the fields of a
    request. A broken connection is bridged, a busy device is waited for (unless ``retry`` is false), and neither costs
    a second run.

    Raises (constructor): SourceUnavailable, UsageError.
    """

    def __init__(self, address: BrokerAddress, *, name: str | None = None, root: str = DEFAULT_ROOT) -> None:
        self.name = client_name(name)
        self._root = root
        self._session = BrokerSession(address, session_name(self.name))
        try:
            # Any device's topics do: the reply filter names only us.
            self._session.subscribe(Topics("any", root).client_replies_filter(self.name))
        except BaseException:
            self._session.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._session.close()

    def complete(
        self,
        *,
        device: str | None = None,
        group: str | None = None,
        seconds: float = 600.0,
        retry: bool = True,
        **fields: Any,
    ) -> Completion:
        """The whole answer.

        Raises:
            SourceUnavailable: no answer in time, or the device cannot answer now. RequestInvalid: the request is at
            fault. EngineFailed: the device failed.
        """
        # The frames of a group say who of it answers.
        body = {"stream": group is not None, **fields}
        for found in self.ask(body, device=device, group=group, seconds=seconds, retry=retry):
            if isinstance(found, Answer):
                return to_completion(found)
        raise AssertionError("asking ends with an answer or an error")

    def stream(
        self,
        *,
        device: str | None = None,
        group: str | None = None,
        seconds: float = 600.0,
        retry: bool = True,
        **fields: Any,
    ) -> Iterator[Chunk]:
        """The answer as it comes; the last chunk says why it ended.

        Raises:
            As :meth:`complete` does.
        """
        request_id = str(fields.setdefault("id", secrets.token_hex(8)))
        for found in self.ask(fields, device=device, group=group, seconds=seconds, retry=retry):
            if (chunk := to_chunk(request_id, found)) is not None:
                yield chunk

    def ask(
        self,
        body: dict[str, Any],
        *,
        device: str | None = None,
        group: str | None = None,
        seconds: float = 600.0,
        retry: bool = False,
    ) -> Iterator[Found]:
        """Send a request and yield what comes of it; an :class:`Answer` is the end.

        ``body`` is the request; it gets an id if it has none.

        Raises:
            SourceUnavailable: no answer within ``seconds``. UsageError, RequestInvalid: as :class:`RequestSession`.
        """
        asking = RequestSession(
            body, name=self.name, root=self._root, device=device, group=group,
            now=time.monotonic(), seconds=seconds, retry=retry,
        )  # fmt: skip
        reconnects = self._session.reconnects
        while True:
            if self._session.reconnects != reconnects:
                reconnects = self._session.reconnects
                asking.reconnected(time.monotonic())
            for action in asking.actions(time.monotonic()):
                # A broker that is away: it is asked again when the connection is back, or the time is up.
                with contextlib.suppress(SourceUnavailable):
                    self._session.publish(*asking.message(action))
            wait = min(GLANCE_SECONDS, max(0.0, asking.due_at() - time.monotonic()))
            message = self._session.next_message(wait)
            if message is None:
                continue
            for found in asking.feed(message.topic, message.payload, time.monotonic()):
                yield found
                if isinstance(found, Answer):
                    return

    def cancel(self, device: str, request_id: str) -> None:
        """End a request of our own; its last frame says ``cancelled``."""
        self._control(device, request_id, "cancel")

    def update(self, device: str, request_id: str, **changes: Any) -> None:
        """Change sampling parameters of a request of our own; asking yields ``Refused`` if that is wrong."""
        self._control(device, request_id, "update", set=changes)

    def resume(self, device: str, request_id: str) -> None:
        """Ask for all text so far, or for the last frame, of a request of our own."""
        self._control(device, request_id, "resume")

    def _control(self, device: str, request_id: str, op: str, **more: Any) -> None:
        self._session.publish(*control_message(self._root, device, self.name, request_id, op, **more))
