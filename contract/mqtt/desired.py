"""What an operator wants of a device: the ``desired`` document, with its policy."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from contract.mqtt.labels import Identifier
from contract.windows import MAX_WINDOWS, WindowDocument

MAX_DESIRED_BYTES = 16 << 10
"""A desired document: a few hundred bytes of policy at most."""

MAX_REVISION = 128
"""Characters."""


class BundleReference(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    version: str


class Policy(Struct, frozen=True, forbid_unknown_fields=True):
    """What a ``desired`` document may tighten, never loosen, against the device's configuration; and when.

    The bundle becomes active not before ``not_before`` (UTC, RFC 3339) and only while the ``window``, or one of
    several, is open. Until then nothing happens; with ``prefetch`` it is fetched and verified at once.
    """

    probation_seconds: Annotated[int, Meta(ge=0, le=7 * 86400)] | UnsetType = UNSET
    probation_requests: Annotated[int, Meta(ge=0, le=1_000_000)] | UnsetType = UNSET
    min_tokens_per_second: Annotated[float, Meta(ge=0, le=1e6)] | UnsetType = UNSET
    swap: Literal["overlap", "drain"] | UnsetType = UNSET
    on_revoked: Literal["keep", "replace"] | UnsetType = UNSET
    not_before: Annotated[str, Meta(max_length=40)] | UnsetType = UNSET
    window: WindowDocument | Annotated[list[WindowDocument], Meta(min_length=1, max_length=MAX_WINDOWS)] | UnsetType = (
        UNSET
    )
    prefetch: bool = False

    @property
    def windows(self) -> tuple[WindowDocument, ...]:
        if self.window is UNSET:
            return ()
        return tuple(self.window) if isinstance(self.window, list) else (self.window,)


class Desired(Struct, frozen=True, forbid_unknown_fields=True):
    """Which bundle the device should run. ``revision`` is opaque: echoed, never ordered."""

    revision: Annotated[str, Meta(max_length=MAX_REVISION)]
    bundle: BundleReference
    source: Identifier | UnsetType = UNSET
    policy: Policy | UnsetType = UNSET
