"""The ``[telemetry]`` table of the configuration."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct


class PrometheusSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The ``[telemetry.prometheus]`` table: ``port`` 0 leaves the endpoint off; ``host`` is the address it listens on.

    It has neither passwords nor TLS: on another address than loopback everybody who reaches it reads it.
    """

    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    host: Annotated[str, Meta(pattern=r"^[^\x00-\x20\x7f]{1,255}$(?!\n)")] = "127.0.0.1"


class HomeAssistantSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The ``[telemetry.home_assistant]`` table: announce the sensors below ``prefix``, as Home Assistant expects it."""

    enabled: bool = False
    prefix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}(/[A-Za-z0-9_.-]{1,64}){0,3}$(?!\n)")] = "homeassistant"


class TelemetrySettings(Struct, frozen=True, forbid_unknown_fields=True):
    """``interval_seconds`` between two samples of ``telemetry/system`` and ``telemetry/llm``; 0 sends none.
    ``throttle``: answer fewer requests at once while the box is too hot or short of memory.
    """

    interval_seconds: Annotated[float, Meta(ge=0, le=3600)] = 10.0
    throttle: bool = True
    prometheus: PrometheusSettings = PrometheusSettings()
    home_assistant: HomeAssistantSettings = HomeAssistantSettings()
