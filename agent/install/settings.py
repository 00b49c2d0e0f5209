"""The ``[install]`` table of the configuration, and how a ``desired`` document may tighten it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from contract.errors import BundleRefused
from contract.mqtt.messages import Policy
from contract.reasons import Reason

Seconds = Annotated[float, Meta(ge=0, le=7 * 86400)]


class InstallSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """How this device installs and activates bundles. Sizes in bytes, times in seconds; 0 means no limit.

    ``swap``: ``overlap`` runs old and new side by side where memory allows, else drains; ``drain`` never overlaps.
    Probation ends after ``probation_seconds``, or as soon as ``probation_requests`` were answered.
    ``speed_ratio``: the least a candidate's speed may be of its predecessor's, measured on this device; less by the
    part of probation in which something waited for a core. ``min_tokens_per_second`` is a floor whatever else runs,
    for all answers together.
    ``reserve_bytes``: memory that an overlapping swap must leave free.
    ``trust_refresh_seconds``: how often to look whether what is installed was revoked or metadata expired.
    """

    quota_bytes: Annotated[int, Meta(ge=0, le=2**53)] = 0
    keep_previous: Annotated[int, Meta(ge=0, le=100)] = 1
    offline_grace: bool = True
    download_bytes_per_second: Annotated[int, Meta(ge=0, le=2**40)] = 0
    parallel_fetches: Annotated[int, Meta(ge=1, le=16)] = 4
    canary_seconds: Annotated[float, Meta(gt=0, le=86400)] = 600.0
    canary_tolerance: Annotated[float, Meta(gt=0, le=100)] | None = None
    max_rss_bytes: Annotated[int, Meta(ge=0, le=2**53)] = 0
    swap: Literal["overlap", "drain"] = "overlap"
    reserve_bytes: Annotated[int, Meta(ge=0, le=2**53)] = 128 * 2**20
    probation_seconds: Seconds = 60.0
    probation_requests: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    probation_failures: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    min_tokens_per_second: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    speed_ratio: Annotated[float, Meta(ge=0, le=1)] = 0.5
    max_attempts: Annotated[int, Meta(ge=1, le=100)] = 3
    swaps_per_hour: Annotated[int, Meta(ge=0, le=1000)] = 20
    retry_first_seconds: Annotated[float, Meta(gt=0, le=86400)] = 5.0
    retry_longest_seconds: Annotated[float, Meta(gt=0, le=86400)] = 900.0
    on_revoked: Literal["keep", "replace"] = "keep"
    trust_refresh_seconds: Annotated[float, Meta(ge=0, le=30 * 86400)] = 86400.0


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
