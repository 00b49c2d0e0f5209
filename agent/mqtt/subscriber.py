"""Subscriptions of a session: asked for on each of its links, together or, after losses, one by one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from paho.mqtt.subscribeoptions import SubscribeOptions

from agent.mqtt.filters import FilterSuspicion
from agent.mqtt.link import Link
from agent.mqtt.sender import Sender

log = logging.getLogger("edge_agent.mqtt")

ASK_AGAIN_SECONDS = 60.0
"""Until what the broker refused is asked for again: nodes of NATS that have just lost another one refuse some of many
filters. Where rules forbid it, that costs a message a minute.
"""

LEFT_OUT = "the broker ends the connection when we subscribe to it"


class Subscriber:
    """``wanted``: what we subscribe to. Refusals are noted with ``sender``."""

    def __init__(self, wanted: Sequence[str], sender: Sender) -> None:
        self.wanted = list(wanted)
        self._sender = sender
        self._suspicion = FilterSuspicion()
        self._refused: set[str] = set()
        self._ask_again_at = 0.0

    @property
    def suspicious(self) -> bool:
        """Nothing else should be said until the broker has answered: it may be what it ends connections for."""
        return bool(self.wanted) and self._suspicion.suspicious

    def begin(self, link: Link) -> None:
        """Ask for everything on ``link``."""
        self._refused.clear()
        for topic in self._suspicion.left_out:
            self._sender.note_refusal(topic, LEFT_OUT)
        if self.wanted:
            self._ask_for(link, self.wanted)

    def change(self, link: Link | None, wanted: Sequence[str]) -> None:
        """Subscribe to exactly ``wanted`` from now on."""
        dropped = [topic for topic in self.wanted if topic not in wanted]
        self.wanted = list(wanted)
        if link is None:
            return
        if dropped:
            link.client.unsubscribe(dropped)
        if self.wanted:
            self._ask_for(link, self.wanted)
        link.watch_writes()

    def answer(self, link: Link, number: int, reasons: list[Any]) -> None:
        """The broker has answered a subscription."""
        for topic, reason in zip(link.asked.pop(number, []), reasons, strict=False):
            self._suspicion.answered(topic)
            self._sender.refused.pop(topic, None)
            if reason.is_failure:
                self._sender.note_refusal(topic, str(reason))
                if topic not in self._refused:
                    log.error("the broker refuses the subscription to %s: %s", topic, reason)
                self._refused.add(topic)
            elif topic in self._refused:
                self._refused.remove(topic)
                log.info("the broker grants the subscription to %s now", topic)
        self._ask(link)

    def ask_again(self, link: Link, now: float) -> None:
        """Now and then, for what was refused on ``link``: it may have been refused in a bad moment."""
        refused = [topic for topic in self.wanted if topic in self._refused]
        busy = not link.subscribed or link.asked or link.to_ask
        if refused and not busy and now < self._ask_again_at:
            return
        self._ask_again_at = now + ASK_AGAIN_SECONDS
        if refused and not busy:
            self._ask_for(link, refused)

    def lost(self, link: Link, *, blameless: bool) -> bool:
        """``link`` is gone; whether the broker owed the answer to a subscription."""
        outstanding = [topic for asked in link.asked.values() for topic in asked]
        if outstanding and not blameless:
            for topic in self._suspicion.lost(outstanding):
                log.error("the broker ends the connection when we subscribe to %s: left out from now on", topic)
        return bool(outstanding)

    def _ask_for(self, link: Link, topics: Sequence[str]) -> None:
        link.to_ask = list(topics)
        self._ask(link)

    def _ask(self, link: Link) -> None:
        if not link.shares:
            for topic in [topic for topic in link.to_ask if topic.startswith("$share/")]:
                # Asked all the same, the broker would have to end the connection.
                self._sender.note_refusal(topic, "it has no subscription of that name")
                link.to_ask.remove(topic)
        topics = self._suspicion.next(link.to_ask)
        if not topics:
            link.to_ask = []
            if not link.asked:
                self._complete(link)
            return
        link.to_ask = [topic for topic in link.to_ask if topic not in topics]
        # noLocal and the like do not apply to us; QoS 1 is what requests need.
        if link.protocol == "5":
            _, number = link.client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in topics])
        else:
            _, number = link.client.subscribe([(topic, 1) for topic in topics])
        if number is not None:
            link.asked[number] = topics
        link.watch_writes()

    def _complete(self, link: Link) -> None:
        self._suspicion.complete()
        link.subscribed = True
        then, link.on_subscribed = link.on_subscribed, None
        if then is not None:
            then()
