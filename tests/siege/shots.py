"""What a siege consists of, as values that can be written down and sent again."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Protocol = Literal["5", "3.1.1"]


@dataclass(frozen=True)
class Shot:
    """One PUBLISH; ``properties`` are those of MQTT 5. ``alone``: on a connection of its own, since the broker may cut
    it. ``owed``: exactly one last frame for ``client`` and ``id``, which no other message uses.
    """

    number: int
    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    properties: dict[str, Any] = field(default_factory=dict)
    alone: bool = False
    protocol: Protocol = "5"
    client: str = ""
    id: str = ""
    owed: bool = False
    what: str = ""

    def line(self) -> str:
        """As JSON; binary values in base64."""
        flat = asdict(self)
        flat["payload"] = _pack(self.payload)
        flat["properties"] = {name: _pack(value) for name, value in self.properties.items()}
        return json.dumps(flat)


@dataclass(frozen=True)
class Blow:
    """Something breaks."""

    kind: str

    def line(self) -> str:
        return json.dumps({"blow": self.kind})


Step = Shot | Blow


def read_step(line: str) -> Step:
    """What ``line`` wrote."""
    flat = json.loads(line)
    return Blow(flat["blow"]) if "blow" in flat else read_shot(line)


def read_shot(line: str) -> Shot:
    """What :meth:`Shot.line` wrote."""
    flat = json.loads(line)
    flat["payload"] = _unpack(flat["payload"])
    flat["properties"] = {name: _unpack(value) for name, value in flat["properties"].items()}
    return Shot(**flat)


def _pack(value: Any) -> Any:
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _unpack(value: Any) -> Any:
    if isinstance(value, dict) and "base64" in value:
        return base64.b64decode(value["base64"])
    return [tuple(pair) for pair in value] if isinstance(value, list) else value
