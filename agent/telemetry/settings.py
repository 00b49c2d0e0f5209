"""The ``[telemetry]`` table of the configuration."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct


class PrometheusSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """``[telemetry.prometheus]``: a page of metrics, without password and TLS: on another address than
    loopback, everybody who reaches it reads it.
    """

    port: Annotated[int, Meta(ge=0, le=65535, description="0: off; 9464 is usual")] = 0
    host: Annotated[str, Meta(pattern=r"^[^\x00-\x20\x7f]{1,255}$(?!\n)", description="address to listen on")] = (
        "127.0.0.1"
    )


class HomeAssistantSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """``[telemetry.home_assistant]``: announce this device and its sensors to Home Assistant."""

    enabled: Annotated[bool, Meta(description="false takes away what was announced")] = False
    prefix: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9_.-]{1,64}(/[A-Za-z0-9_.-]{1,64}){0,3}$(?!\n)",
            description="first levels of the topics in which Home Assistant looks for devices",
        ),
    ] = "homeassistant"


class TelemetrySettings(Struct, frozen=True, forbid_unknown_fields=True):
    """``[telemetry]``: samples of the machine and of what the model did."""

    interval_seconds: Annotated[
        float,
        Meta(ge=0, le=3600, description="time between two samples of `telemetry/system` and `telemetry/llm`; 0: none"),
    ] = 10.0
    throttle: Annotated[
        bool, Meta(description="answer fewer requests at once while the device is too hot or short of memory")
    ] = True
    prometheus: PrometheusSettings = PrometheusSettings()
    home_assistant: HomeAssistantSettings = HomeAssistantSettings()
