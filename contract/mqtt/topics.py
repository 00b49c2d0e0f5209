"""Topic names. The publisher's identity is always a whole topic level, where a broker's ACL can hold it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from contract.errors import ConfigInvalid
from contract.identifiers import is_identifier
from contract.mqtt.pictures import PicturePart, read_part

DEFAULT_ROOT = "edge/v1"

NO_ID = "-"
"""Stands for the id in the reply topic when a request carries none that can be read."""

EventType = Literal["install", "swap", "rollback", "throttle", "refused", "broker"]

_ROOT = re.compile(r"[A-Za-z0-9_.-]{1,64}(?:/[A-Za-z0-9_.-]{1,64}){0,7}")


def make_client_id(name: str) -> str:
    """An MQTT client id made of ``name``, another one for every name. NATS refuses dots there, not in topics; no name
    of ours has a colon.
    """
    return name.replace(".", ":")


@dataclass(frozen=True)
class Inbound:
    """A message for this device, as its topic says: ``kind``, the publishing ``client`` and, for groups, the group;
    ``part`` of a picture, if the topic names one as it should.
    """

    kind: Literal["generate", "group_generate", "control", "desired", "picture"]
    client: str | None = None
    group: str | None = None
    part: PicturePart | None = None


class Topics:
    """All topics below one root for one device.

    Raises:
        ConfigInvalid: root or device cannot stand in a topic.
    """

    def __init__(self, device: str, root: str = DEFAULT_ROOT) -> None:
        if _ROOT.fullmatch(root) is None:
            raise ConfigInvalid(f"{root!r} cannot be the topic root: use levels of A-Z a-z 0-9 _ . -", field="root")
        if not is_identifier(device):
            raise ConfigInvalid(f"{device!r} cannot be a device id: use 1 to 64 of A-Z a-z 0-9 _ . -", field="device")
        self.root = root
        self.device = device
        self._base = f"{root}/d/{device}"

    # What the device listens to.
    @property
    def generate_filter(self) -> str:
        return f"{self._base}/generate/+"

    @property
    def control_filter(self) -> str:
        return f"{self._base}/control/+"

    @property
    def desired(self) -> str:
        return f"{self._base}/desired"

    @property
    def picture_filter(self) -> str:
        return f"{self._base}/picture/+/+/+"

    def group_filter(self, group: str) -> str:
        return f"$share/{group}/{self.root}/g/{group}/generate/+"

    # What clients publish.
    def generate(self, client: str) -> str:
        return f"{self._base}/generate/{client}"

    def control(self, client: str) -> str:
        return f"{self._base}/control/{client}"

    def picture(self, client: str, part: PicturePart) -> str:
        return f"{self._base}/picture/{client}/{part.digest}/{part.level}"

    def group_generate(self, group: str, client: str) -> str:
        return f"{self.root}/g/{group}/generate/{client}"

    # What the device publishes.
    def reply(self, client: str, request_id: str) -> str:
        return f"{self.root}/c/{client}/r/{self.device}/{request_id}"

    @property
    def reported(self) -> str:
        return f"{self._base}/reported"

    @property
    def status(self) -> str:
        return f"{self._base}/status"

    @property
    def info(self) -> str:
        return f"{self._base}/info"

    @property
    def health(self) -> str:
        return f"{self._base}/health"

    @property
    def telemetry_system(self) -> str:
        return f"{self._base}/telemetry/system"

    @property
    def telemetry_llm(self) -> str:
        return f"{self._base}/telemetry/llm"

    @property
    def doctor(self) -> str:
        """What the device says to itself, to see whether the broker delivers."""
        return f"{self._base}/doctor"

    def event(self, kind: EventType) -> str:
        return f"{self._base}/event/{kind}"

    def client_replies_filter(self, client: str) -> str:
        """What ``client`` subscribes to, from every device."""
        return f"{self.root}/c/{client}/r/+/+"

    def parse(self, topic: str) -> Inbound | None:
        """Whose message this is, or None if the topic is none of ours."""
        if topic == self.desired:
            return Inbound("desired")
        if topic.startswith(f"{self._base}/picture/"):
            return self._parse_picture(*topic.removeprefix(f"{self._base}/picture/").split("/"))
        head, _, client = topic.rpartition("/")
        if not is_identifier(client):
            return None
        kinds: dict[str, Literal["generate", "control"]] = {
            f"{self._base}/generate": "generate", f"{self._base}/control": "control"
        }  # fmt: skip
        if head in kinds:
            return Inbound(kinds[head], client)
        prefix = f"{self.root}/g/"
        if head.startswith(prefix) and head.endswith("/generate"):
            group = head[len(prefix) : -len("/generate")]
            if is_identifier(group):
                return Inbound("group_generate", client, group)
        return None

    def _parse_picture(self, client: str, *levels: str) -> Inbound | None:
        if not is_identifier(client) or len(levels) != 2:
            return None
        return Inbound("picture", client, part=read_part(*levels))
