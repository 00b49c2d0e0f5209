"""What went wrong, as OpenAI's interface says it: a status, an error object, headers. Pure."""

from __future__ import annotations

import math
from typing import Any

from msgspec import UNSET, Struct

from contract.errors import EdgeBundleError, EngineFailed, RequestInvalid, SourceUnavailable, StoreBroken, StoreFull
from contract.mqtt.faults import ErrorBody
from fleet.gateway.quota import QuotaExceeded

RETRY_SECONDS = 2.0
"""Where nobody says when to come back: devices load and swap in seconds."""

GATEWAY_TIMEOUT = 504


class Problem(Struct, frozen=True):
    """``type``, ``code`` and ``param`` as OpenAI's error object has them; ``retry_after`` in seconds."""

    status: int
    message: str
    type: str
    code: str | None = None
    param: str | None = None
    retry_after: float | None = None
    more_headers: dict[str, str] = {}

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Those that tell a client when to come back, and how to say who it is."""
        found = dict(self.more_headers)
        if self.retry_after is not None:
            found["retry-after"] = str(max(1, math.ceil(self.retry_after)))
        if self.status == 401:
            found["www-authenticate"] = "Bearer"
        return found


_TYPES = {401: "invalid_request_error", 403: "permission_error", 429: "rate_limit_error"}


def _type_of(status: int) -> str:
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


def of_error(error: EdgeBundleError) -> Problem:
    """What is said about an error of ours."""
    match error:
        case QuotaExceeded():
            return Problem(429, error.message, error.unit, error.kind, None, error.retry_after, error.headers)
        case RequestInvalid():
            kind = None if error.kind == "invalid_request" else error.kind
            return Problem(error.code, error.message, _type_of(error.code), kind, error.field)
        case SourceUnavailable():
            return Problem(503, error.message, "server_error", "unavailable", None, error.retry_after or RETRY_SECONDS)
        case StoreBroken() | StoreFull():
            return Problem(503, error.message, "server_error", "store_unavailable", None, RETRY_SECONDS)
        case EngineFailed():
            return Problem(500, error.message, "server_error", "engine_failed")
    return Problem(500, error.message, "server_error", "internal_error")


def of_device(error: ErrorBody, device: str) -> Problem:
    """What is said about the error of a device: that nobody has room is no fault of the one who asks."""
    field = error.field if error.field is not UNSET else None
    if error.code in (429, 503):
        retry = RETRY_SECONDS if error.retry_after_ms is UNSET else error.retry_after_ms / 1000
        return Problem(503, f"{device}: {error.message}", "server_error", error.type, field, retry)
    code = None if error.type == "invalid_request" else error.type
    message = error.message if error.code < 500 else f"{device}: {error.message}"
    return Problem(error.code, message, _type_of(error.code), code, field)


def may_ask_another(error: ErrorBody) -> bool:
    """Whether another device may be asked instead: this one turned the request away, or was stopped, and nothing of its
    answer was shown. A request that brings a model's process down must not be handed on to the next one.
    """
    return error.code in (429, 503) or (error.code == 404 and error.type == "model_not_found")


def timed_out(seconds: float, message: str) -> Problem:
    """Nothing, or not all of it, came within the time a request has."""
    return Problem(GATEWAY_TIMEOUT, message or f"no answer within {seconds:g} s", "server_error", "timeout")


INTERNAL = Problem(500, "the gateway failed at this request; its log says why", "server_error", "internal_error")
