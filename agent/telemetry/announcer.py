"""Announces this device to Home Assistant, and takes back what was announced once that is switched off or gone.

A retained document outlives the agent: what is published is written down before, so that an agent that is started with
other settings can still remove it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import msgspec

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


class Announcer:
    """``publish`` keeps retained documents by topic; ``delivered``: the broker has everything that was published.

    ``record`` is the file that says what was announced.
    """

    def __init__(
        self,
        settings: HomeAssistantSettings,
        device: str,
        topics: Topics,
        *,
        version: str,
        record: Path,
        disk: Disk,
        publish: Callable[[dict[str, bytes]], None],
        delivered: Callable[[], bool],
    ) -> None:
        self._enabled = settings.enabled
        self._prefix = settings.prefix
        self._device = device
        self._topics = topics
        self._version = version
        self._file = record
        self._disk = disk
        self._publish = publish
        self._delivered = delivered
        self._recorded = _read(record)
        self._earlier = self._recorded
        self._components: dict[str, dict[str, object]] = {}
        self._removed = False

    def announce(self, components: Components) -> None:
        """Publish what is new since the last call; a component that is missing for a moment stays."""
        topic = discovery_topic(self._device, self._prefix)
        documents = {other: b"" for other in self._earlier if not (self._enabled and other == topic)}
        wanted: Record = {}
        if self._enabled:
            self._components |= components
            gone = {key: kind for key, kind in self._earlier.get(topic, {}).items() if key not in self._components}
            made = discovery(
                self._device, self._topics, self._components, prefix=self._prefix, version=self._version, gone=gone
            )
            documents[topic] = made.payload
            wanted = {topic: made.platforms}
        # Until the broker has it, it may have to be taken back by the next agent.
        self._note(wanted if self._removed and self._delivered() else _union(self._earlier, wanted))
        self._publish(documents)
        self._removed = True

    def _note(self, record: Record) -> None:
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
