"""The ``[install]`` table of the configuration, and how a ``desired`` document may tighten it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from contract.bundle.device_plan import PREPACKED_BYTES
from contract.errors import BundleRefused
from contract.mqtt.desired import Policy
from contract.reasons import Reason
from contract.source.access import Source

Bytes = Annotated[int, Meta(ge=0, le=2**53)]


class InstallSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """``[install]``: how this device installs and activates bundles. A ``desired`` document may be stricter, never
    looser.
    """

    quota_bytes: Annotated[
        Bytes, Meta(description="most that bundles and downloads may take of the disk; 0: no limit but the disk")
    ] = 0
    keep_previous: Annotated[
        int, Meta(ge=0, le=100, description="bundles before the active one that stay, to roll back to")
    ] = 1
    prepacked_bytes: Annotated[
        Bytes,
        Meta(
            description="most disk that prepacked weights of one bundle may take; six tenths of the bundle they always "
            "may"
        ),
    ] = PREPACKED_BYTES
    offline_grace: Annotated[
        bool, Meta(description="accept timestamp and snapshot of a medium for 30 days after they expired")
    ] = True
    download_bytes_per_second: Annotated[
        int, Meta(ge=0, le=2**40, description="most that downloads take of the line; 0: no limit")
    ] = 0
    parallel_fetches: Annotated[int, Meta(ge=1, le=16, description="ranges that are fetched at a time")] = 4
    canary_seconds: Annotated[
        float, Meta(gt=0, le=86400, description="longest that a candidate's canary run may take")
    ] = 600.0
    canary_tolerance: Annotated[
        Annotated[float, Meta(gt=0, le=100)] | None,
        Meta(
            extra={"unit": "nats per token"},
            description="furthest that a candidate's scores may be from those of its build, where that is less than "
            "the bundle allows",
        ),
    ] = None
    max_rss_bytes: Annotated[
        Bytes,
        Meta(description="most memory that a candidate may take in its canary run; 0: nine tenths of the memory"),
    ] = 0
    swap: Annotated[
        Literal["overlap", "drain"],
        Meta(
            description="`overlap`: old and new model run side by side where memory allows it, else as `drain`; "
            "`drain`: the old one ends first"
        ),
    ] = "overlap"
    reserve_bytes: Annotated[Bytes, Meta(description="memory that an overlapping swap must leave free")] = 128 * 2**20
    probation_seconds: Annotated[
        float, Meta(ge=0, le=7 * 86400, description="time in which a new bundle may still be rolled back by itself")
    ] = 60.0
    probation_requests: Annotated[
        int, Meta(ge=0, le=1_000_000, description="answers after which probation ends earlier; 0: never earlier")
    ] = 0
    probation_failures: Annotated[
        int, Meta(ge=0, le=1_000_000, description="requests that may fail in probation without a rollback")
    ] = 0
    min_tokens_per_second: Annotated[
        float,
        Meta(
            ge=0,
            le=1e6,
            extra={"unit": "tokens per second"},
            description="a slower candidate is rolled back, whatever else runs; of all answers together; 0: no floor",
        ),
    ] = 0.0
    speed_ratio: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            extra={"unit": "ratio"},
            description="least speed of a candidate relative to its predecessor's on this device, less by the part of "
            "probation in which something waited for a core",
        ),
    ] = 0.5
    max_attempts: Annotated[
        int, Meta(ge=1, le=100, description="tries of a bundle that ends before it is active, until it is quarantined")
    ] = 3
    swaps_per_hour: Annotated[
        int, Meta(ge=0, le=1000, description="changes of the active bundle; more have to wait; 0: no limit")
    ] = 20
    retry_first_seconds: Annotated[
        float, Meta(gt=0, le=86400, description="first wait before something that may pass is tried again; it doubles")
    ] = 5.0
    retry_longest_seconds: Annotated[float, Meta(gt=0, le=86400, description="longest such wait")] = 900.0
    on_revoked: Annotated[
        Literal["keep", "replace"],
        Meta(
            description="when the active bundle is revoked: `keep` serves on with a warning, `replace` goes back to "
            "the previous bundle, or to none"
        ),
    ] = "keep"
    trust_refresh_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=30 * 86400,
            description="time between two looks whether what is installed was revoked or changed, or metadata expires; "
            "0: never",
        ),
    ] = 86400.0


def tighten(settings: InstallSettings, policy: Policy | UnsetType) -> InstallSettings:
    """``settings`` as the ``desired`` document wants them, which may be stricter and never looser.

    Raises:
        BundleRefused: POLICY_LOOSER, ``field`` names which.
    """
    if policy is UNSET:
        return settings

    def looser(field: str, allowed: object) -> BundleRefused:
        return BundleRefused(
            Reason.POLICY_LOOSER,
            f"policy.{field} is looser than this device's own ({allowed}); it may only be stricter",
            field=f"policy.{field}",
        )

    changed: dict[str, object] = {}
    if policy.probation_seconds is not UNSET:
        if policy.probation_seconds < settings.probation_seconds:
            raise looser("probation_seconds", settings.probation_seconds)
        changed["probation_seconds"] = float(policy.probation_seconds)
    if policy.probation_requests is not UNSET:
        # 0 means that no number of requests ends probation early, which is the strictest.
        if _or_endless(policy.probation_requests) < _or_endless(settings.probation_requests):
            raise looser("probation_requests", settings.probation_requests)
        changed["probation_requests"] = policy.probation_requests
    if policy.min_tokens_per_second is not UNSET:
        if policy.min_tokens_per_second < settings.min_tokens_per_second:
            raise looser("min_tokens_per_second", settings.min_tokens_per_second)
        changed["min_tokens_per_second"] = policy.min_tokens_per_second
    if policy.swap is not UNSET:
        # Draining needs less memory than overlapping.
        if policy.swap == "overlap" and settings.swap == "drain":
            raise looser("swap", settings.swap)
        changed["swap"] = policy.swap
    if policy.on_revoked is not UNSET:
        if policy.on_revoked == "keep" and settings.on_revoked == "replace":
            raise looser("on_revoked", settings.on_revoked)
        changed["on_revoked"] = policy.on_revoked
    return msgspec.structs.replace(settings, **changed)


def _or_endless(count: int) -> float:
    return count or float("inf")


class InstallConfig(Struct, frozen=True):
    """What the configuration says of installations: ``[install]``, and the sources by their names."""

    settings: InstallSettings
    sources: Mapping[str, Source]
