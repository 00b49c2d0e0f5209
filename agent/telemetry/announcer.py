"""Announces this device to Home Assistant, and takes back what was announced once that is switched off or gone.

A retained document outlives the agent: what is published is written down before, so that an agent that is started with
other settings can still remove it.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec import Struct

from agent.telemetry.home_assistant import Components, discovery, discovery_topic
from agent.telemetry.settings import HomeAssistantSettings
from contract.errors import StoreBroken, StoreFull
from contract.mqtt.topics import Topics
from contract.system.durable import Disk

log = logging.getLogger("edge_agent.home_assistant")

MAX_RECORD_BYTES = 256 << 10
"""A hundred components take 4 kB."""

_KEY = re.compile(r"[A-Za-z0-9_-]{1,160}")
_PLATFORM = re.compile(r"[a-z_]{1,32}")
_TOPIC = re.compile(r"[A-Za-z0-9_.-]{1,64}(/[A-Za-z0-9_.-]{1,64}){0,3}/device/[A-Za-z0-9_-]{1,80}/config")

Record = dict[str, dict[str, str]]
"""Platform by component, by topic."""


class Identity(Struct, frozen=True):
    """As what the device is announced."""

    device: str
    topics: Topics
    version: str


class AnnouncementRecord:
    """The file that says what was announced; ``earlier`` is what it said at the start."""

    def __init__(self, file: Path, disk: Disk) -> None:
        self._file = file
        self._disk = disk
        self._recorded = self.earlier = _read(file)

    def note(self, record: Record) -> None:
        """Write it down; what the disk does not take is logged."""
        if record == self._recorded:
            return
        try:
            if record:
                self._disk.write_file(self._file, msgspec.json.encode(record), 0o600)
            else:
                self._disk.remove(self._file)
        except (StoreBroken, StoreFull) as error:
            log.warning("what is announced to Home Assistant could not be stored: %s", error.message)
        # Once is enough: the disk is somebody else's business.
        self._recorded = record


class Outlet(Protocol):
    """Where retained documents go; the gateway is one."""

    def announce(self, documents: dict[str, bytes]) -> None:
        """Keep them, by topic."""
        ...

    @property
    def all_delivered(self) -> bool:
        """The broker has everything that was published."""
        ...


class Announcer:
    """Announces one device, and notes that in ``record`` before."""

    def __init__(
        self, settings: HomeAssistantSettings, identity: Identity, record: AnnouncementRecord, outlet: Outlet
    ) -> None:
        self._enabled = settings.enabled
        self._prefix = settings.prefix
        self._identity = identity
        self._record = record
        self._outlet = outlet
        self._components: dict[str, dict[str, object]] = {}
        self._removed = False

    def announce(self, components: Components) -> None:
        """Publish what is new since the last call; a component that is missing for a moment stays."""
        me, earlier = self._identity, self._record.earlier
        topic = discovery_topic(me.device, self._prefix)
        documents = {other: b"" for other in earlier if not (self._enabled and other == topic)}
        wanted: Record = {}
        if self._enabled:
            self._components |= components
            gone = {key: kind for key, kind in earlier.get(topic, {}).items() if key not in self._components}
            made = discovery(me.device, me.topics, self._components, prefix=self._prefix, version=me.version, gone=gone)
            documents[topic] = made.payload
            wanted = {topic: made.platforms}
        # Until the broker has it, it may have to be taken back by the next agent.
        self._record.note(wanted if self._removed and self._outlet.all_delivered else _union(earlier, wanted))
        self._outlet.announce(documents)
        self._removed = True


def _union(one: Record, other: Record) -> Record:
    return {topic: one.get(topic, {}) | other.get(topic, {}) for topic in {**one, **other}}


def _read(file: Path) -> Record:
    """What an agent before wrote down; nothing where it cannot be read."""
    try:
        data = file.read_bytes()
        if len(data) > MAX_RECORD_BYTES:
            raise msgspec.ValidationError("it is too large")
        found = msgspec.json.decode(data, type=Record)
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.warning("%s cannot be read, so that Home Assistant may keep what is gone: %s", file, error)
        return {}
    return {
        topic: {key: kind for key, kind in components.items() if _KEY.fullmatch(key) and _PLATFORM.fullmatch(kind)}
        for topic, components in found.items()
        if _TOPIC.fullmatch(topic)
    }
