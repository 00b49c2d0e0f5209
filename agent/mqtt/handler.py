"""What a connection is made with: the session that it keeps, and who is told of what becomes of it."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from agent.mqtt.link import Received, Will


class Session(Struct, frozen=True):
    """As whom we connect. ``clean``: the broker forgets the session with its connection. ``quiet``: a passing visit, of
    which the log need not tell.
    """

    client_id: str
    will: Will | None = None
    subscriptions: tuple[str, ...] = ()
    clean: bool = False
    quiet: bool = False


class Handler:
    """Told by a :class:`~agent.mqtt.connection.Connection`, in the event loop; nothing may block. Whoever need not know
    of something leaves its method as it is.
    """

    def on_message(self, received: Received, acknowledge: Callable[[], None]) -> None:
        """A message arrived; see to it that it is acknowledged."""
        raise NotImplementedError

    def on_up(self, session_present: bool) -> None:
        """The broker has accepted us (CONNACK)."""

    def on_down(self, why: str) -> None:
        """The connection is lost."""

    def on_writable(self) -> None:
        """The socket takes data again."""

    def on_rivalry(self) -> None:
        """What is known of another client that uses our client id may have changed."""

    async def is_rival_at_work(self) -> bool | None:
        """Whether somebody else uses our client id at this moment; None where that cannot be found out."""
        return None
