"""``model`` of a request: ``device:NAME``, ``group:NAME``, or a bundle (NAME or NAME@VERSION) on any device. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct

from contract.errors import RequestInvalid
from contract.schema_faults import nearest
from edge_bundle.presence import Device, Presence

OWNER = "edge-bundle"


class Wanted(Struct, frozen=True):
    """Who is meant; ``text`` as it was written."""

    kind: Literal["device", "group", "bundle"]
    name: str
    text: str


def read_model(text: str) -> Wanted:
    """Whom ``text`` means."""
    kind, colon, name = text.partition(":")
    if colon and kind == "device":
        return Wanted("device", name, text)
    if colon and kind == "group":
        return Wanted("group", name, text)
    return Wanted("bundle", text, text)


def candidates(presence: Presence, wanted: Wanted) -> Mapping[str, Device]:
    """Devices that ``wanted`` means, whether they can answer now or not.

    Raises:
        RequestInvalid: 404, there is none; the nearest name is told.
    """
    if wanted.kind == "device":
        device = presence.device(wanted.name)
        if device is not None:
            return {wanted.name: device}
    elif wanted.kind == "group":
        members = presence.members(wanted.name)
        if members:
            return members
    else:
        running = presence.running(wanted.name)
        if running:
            return running
    raise not_found(wanted.text, presence)


def not_found(text: str, presence: Presence) -> RequestInvalid:
    """404 for a model that is not there, with the nearest name."""
    known = names(presence)
    # Whoever leaves out the prefix means a device or a group.
    near = next((each for each in (f"device:{text}", f"group:{text}") if each in known), None) or nearest(text, known)
    hint = f"; did you mean {near!r}?" if near else "; GET /v1/models lists those that there are"
    return RequestInvalid(
        f"the model {text!r} does not exist: no device, group or bundle of this name is known{hint}",
        field="model",
        code=404,
        kind="model_not_found",
    )


def names(presence: Presence) -> list[str]:
    """Everything that ``model`` may say."""
    return [each["id"] for each in listing(presence, created=0, offline=True)]


def listing(presence: Presence, *, created: int, offline: bool = False) -> list[dict[str, Any]]:
    """OpenAI's model objects: bundles, groups, devices; of devices that are online, unless ``offline``."""
    bundles: set[str] = set()
    groups: set[str] = set()
    devices: list[str] = []
    for name, device in presence.devices().items():
        if not device.online and not offline:
            continue
        bundles.update(device.references)
        groups.update(device.groups)
        devices.append(f"device:{name}")
    found = [*sorted(bundles), *(f"group:{each}" for each in sorted(groups)), *devices]
    return [{"id": each, "object": "model", "created": created, "owned_by": OWNER} for each in found]


def reference(device: Device) -> str:
    """NAME@VERSION of what a device runs; empty where it runs nothing."""
    return device.references[-1] if device.references else ""
