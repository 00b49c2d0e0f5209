"""The n-th message of a siege, from its seed alone: any of them can be made again without those before it."""

from __future__ import annotations

from random import Random
from typing import Any

from tests.siege import bodies
from tests.siege.shots import Protocol, Shot

DEVICE = "siege"
GROUP = "yard"
ROOT = "edge/v1"

FORGER = "forger"
"""Publishes what only devices should; nobody listens."""

CLIENTS = ("c0", "c1", "c2", "c3", "c4", "c5", "C.6_-", "n" * 64)
"""Whose answers are counted."""

ODD_CLIENTS = (
    "a" * 65, "ä", "a b", "", " ", "$SYS", "😀", "a\tb", "%2F", "..", "-", "a/b", "x" * 5000, "\u202e", "\ufeff",
    "+a", "a#",
)  # fmt: skip
"""Of which some may not publish to a topic at all: that is the broker's to say."""

ODD_TOPICS = (
    "edge", "edge/v1", "edge/v1/d/siege", "edge/v1/d/siege/", "edge/v1/d//generate/c0", "edge/v1/d/other/generate/c0",
    "edge/v1/d/siege/generate", "edge/v1/d/siege/generate/c0/", "edge/v1/d/siege/generate/c0/more",
    "/edge/v1/d/siege/desired",
    "edge/v1/d/siege/desired/", "edge/v1/d/siege/control", "edge/v1/d/siege/doctor", "edge/v1/d/SIEGE/desired",
    "edge/v1/g//generate/c0",
    "edge/v1/g/other/generate/c0", "edge/v1/g/yard/generate", "edge/v1/g/yard/generate/", "edge/v1/d/+/generate/c0",
    "#", "+", "/",
    "$SYS/broker/uptime", "$share/yard/edge/v1/g/yard/generate/c0", "$queue/x", "edge/v1/d/siege/telemetry/system",
    "a" * 60_000,
    f"{ROOT}/c/{FORGER}/r/siege/x", f"{ROOT}/c/{FORGER}/r/siege/", "homeassistant/status",
    "edge/v1/d/siege/event/refused", "edge/v1/d/siege/picture/c0", "edge/v1/d/siege/picture/c0/1-1",
    "edge/v1/d/siege/picture/c0/0/1-1/more",
)  # fmt: skip

RETAINING_CLIENTS = ("kept0", "kept1", "kept2")
"""Retained requests come again at every reconnect: there are only so many of them."""

VERSIONS = ("1.1.0", "1.2.0")
"""Published before the siege begins."""

BACK = 30
"""How far back a message looks for an id that was used already."""


class Grammar:
    """``shot(n)`` for every n ≥ 0."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def _random(self, number: int, use: str = "") -> Random:
        return Random(f"{self._seed}/{number}/{use}")

    def shot(self, number: int) -> Shot:
        random = self._random(number)
        kind = self._kind(random)
        if kind in ("twin", "control"):
            earlier = self._earlier(number, random)
            if earlier is None:
                kind = "request"
            elif kind == "twin":
                return self._twin(number, earlier, random)
            else:
                return self._control(number, earlier, random)
        if kind == "request":
            return self._request(number, f"{ROOT}/d/{DEVICE}/generate")
        if kind == "group":
            return self._request(number, f"{ROOT}/g/{GROUP}/generate")
        if kind == "desired":
            data = bodies.desired(VERSIONS, number, random)
            return self._plain(number, f"{ROOT}/d/{DEVICE}/desired", data, kind, random, retain=random.random() < 0.7)
        if kind == "picture":
            levels, data = bodies.picture_part(random)
            topic = f"{ROOT}/d/{DEVICE}/picture/{random.choice(CLIENTS)}/{levels}"
            return self._plain(number, topic, data, kind, random, retain=random.random() < 0.02)
        body = bodies.request(f"s{number}", random).data
        if kind == "odd client":
            place = random.choice(
                (f"{ROOT}/d/{DEVICE}/generate/", f"{ROOT}/d/{DEVICE}/control/", f"{ROOT}/g/{GROUP}/generate/")
            )
            return self._plain(number, place + random.choice(ODD_CLIENTS), body, kind, random, alone=True)
        if kind == "odd topic":
            retain = random.random() < 0.2
            return self._plain(number, random.choice(ODD_TOPICS), body, kind, random, alone=True, retain=retain)
        client = random.choice(RETAINING_CLIENTS)
        data = random.choice((body, body, b""))
        place = random.choice(("generate", "generate", "control"))
        return self._plain(number, f"{ROOT}/d/{DEVICE}/{place}/{client}", data, kind, random, retain=True)

    def _plain(
        self,
        number: int,
        topic: str,
        data: bytes,
        what: str,
        random: Random,
        *,
        retain: bool = False,
        alone: bool = False,
    ) -> Shot:
        properties = self._harmless(random) if random.random() < 0.1 else {}
        return Shot(
            number, topic, data, qos=random.choice((0, 1, 1, 1, 2)), retain=retain, properties=properties, alone=alone,
            protocol=random.choice(("5", "5", "3.1.1")) if not properties else "5", what=what,
        )  # fmt: skip

    def _request(self, number: int, place: str) -> Shot:
        """A request with an id that no other message uses, unless a later one is its twin."""
        random = self._random(number, "request")
        client = random.choice(CLIENTS)
        request_id = self._id(number, random)
        body = bodies.request(request_id, random)
        topic = f"{place}/{client}"
        qos = random.choices((0, 1, 2), (10, 80, 10))[0]
        properties: dict[str, Any] = {}
        owed = body.findable and self._twin_of(number) is None
        if random.random() < 0.25:
            properties = self._harmless(random)
            owed = self._addressing(properties, topic, client, request_id, random) and owed
        protocol: Protocol = "5" if properties or random.random() < 0.8 else "3.1.1"
        return Shot(
            number, topic, body.data, qos=qos, properties=properties,
            alone=random.random() < 0.03 or "ResponseTopic" in properties, client=client,
            id=request_id, owed=owed, what=body.what, protocol=protocol,
        )  # fmt: skip

    def _id(self, number: int, random: Random) -> str:
        short = f"s{number}"
        return random.choice(
            (short, short, short, short + "-" * 20, f"{short}.{'L' * 64}"[:64], f"-{short}", f"._{short}")
        )

    def _harmless(self, random: Random) -> dict[str, Any]:
        """Properties that change nothing."""
        found: dict[str, Any] = {}
        if random.random() < 0.4:
            found["PayloadFormatIndicator"] = random.choice((0, 1))
        if random.random() < 0.3:
            found["ContentType"] = random.choice(("application/json", "", "text/html", "😀" * 100))
        if random.random() < 0.3:
            pair = random.choice((("a", "b"), ("", ""), ("k" * 3000, "v" * 3000), ("😀", "\u202e")))
            found["UserProperty"] = [pair] * random.choice((1, 2, 30))
        if random.random() < 0.2:
            found["TopicAlias"] = 1
        return found

    def _addressing(self, found: dict[str, Any], topic: str, client: str, request_id: str, random: Random) -> bool:
        """Properties that say where the answer goes, until when and as what; whether one is owed at the id."""
        owed = True
        if random.random() < 0.4:
            right = f"{ROOT}/c/{client}/r/{DEVICE}/{request_id}"
            found["ResponseTopic"] = random.choice(
                (
                    right,
                    right,
                    topic,
                    "somewhere/else",
                    f"{ROOT}/c/c1/r/{DEVICE}/x",
                    "😀",
                    "a" * 60_000,
                    "x/+",
                    "$SYS/x",
                )
            )
            # The broker may cut who says so; what arrives is a fault of the request's and is answered like others.
            owed = "+" not in found["ResponseTopic"]
        if random.random() < 0.5:
            data = request_id.encode()
            wrong = (
                b"",
                b"\0",
                b"\xff" * 16,
                bytes(64 << 10)[:-1],
                b"-",
                "ä".encode(),
                data + b"\n",
                b"other",
                b"x" * 65,
            )
            found["CorrelationData"] = data if random.random() < 0.6 else random.choice(wrong)
            owed = owed and found["CorrelationData"] == data
        if random.random() < 0.3:
            found["MessageExpiryInterval"] = random.choice((0, 1, 5, 3600, 2**32 - 1))
            owed = owed and found["MessageExpiryInterval"] >= 3600
        return owed

    def _twin_of(self, number: int) -> int | None:
        """The first later message that uses this one's id again."""
        for later in range(number + 1, number + BACK + 1):
            random = self._random(later)
            if self._kind(random) == "twin" and self._earlier(later, random) == number:
                return later
        return None

    def _kind(self, random: Random) -> str:
        return random.choices(
            ("request", "twin", "group", "control", "desired", "odd client", "odd topic", "retained", "picture"),
            (60, 7, 4, 12, 4, 4, 6, 2, 5),
        )[0]

    def _earlier(self, number: int, random: Random) -> int | None:
        """A request before ``number`` whose id it uses."""
        first = number - 1 - random.randrange(BACK)
        for found in range(first, max(-1, number - BACK - 1), -1):
            if self._kind(self._random(found)) == "request":
                return found
        return None

    def _twin(self, number: int, earlier: int, random: Random) -> Shot:
        """The id of ``earlier`` again: with the same bytes, or with others."""
        first = self._request(earlier, f"{ROOT}/d/{DEVICE}/generate")
        data = first.payload if random.random() < 0.5 else bodies.request(first.id, random).data
        return Shot(number, first.topic, data, client=first.client, id=first.id, what="twin")

    def _control(self, number: int, earlier: int, random: Random) -> Shot:
        first = self._request(earlier, f"{ROOT}/d/{DEVICE}/generate")
        client = first.client if random.random() < 0.8 else random.choice(CLIENTS)
        return self._plain(
            number, f"{ROOT}/d/{DEVICE}/control/{client}", bodies.control(first.id, random), "control", random
        )
