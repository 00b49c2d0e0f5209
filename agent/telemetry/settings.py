"""The ``[telemetry]`` table of the configuration."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct


class TelemetrySettings(Struct, frozen=True, forbid_unknown_fields=True):
    """``interval_seconds`` between two samples of ``telemetry/system`` and ``telemetry/llm``; 0 turns them off."""

    interval_seconds: Annotated[float, Meta(ge=0, le=3600)] = 10.0
