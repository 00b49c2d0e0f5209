"""From errors to HTTP: whose fault decides the status."""

from __future__ import annotations

import logging

from contract.errors import BundleRefused, EdgeBundleError, RequestInvalid, SourceUnavailable
from fleet.documents import ErrorBody, ErrorDocument, FaultDocument

log = logging.getLogger("edge_fleet.web")

RETRY_AFTER = "5"
"""Seconds, for what is away."""


def status_of(error: Exception) -> int:
    if isinstance(error, RequestInvalid):
        return error.code
    if isinstance(error, BundleRefused):
        return 422
    return 503 if isinstance(error, EdgeBundleError) else 500


def describe_error(error: Exception) -> ErrorDocument:
    """For programs; what we did not foresee is told to the log alone."""
    code = status_of(error)
    if isinstance(error, RequestInvalid):
        details = [FaultDocument(each.message, each.field, each.suggestion) for each in error.details]
        return ErrorDocument(ErrorBody(code, error.kind, error.message, error.field, details=details))
    if isinstance(error, BundleRefused):
        return ErrorDocument(ErrorBody(code, "refused", error.message, error.field, str(error.reason)))
    if isinstance(error, EdgeBundleError):
        kind = "unavailable" if isinstance(error, SourceUnavailable) else "storage"
        log.warning("%s", error.message)
        return ErrorDocument(ErrorBody(code, kind, error.message, reason=str(error.reason) if error.reason else None))
    log.error("a request failed, which is our fault", exc_info=error)
    return ErrorDocument(ErrorBody(code, "internal", "this is a fault of ours; the log of the service has it"))


def headers_of(error: Exception) -> dict[str, str]:
    code = status_of(error)
    found = {}
    if code == 401:
        found["www-authenticate"] = 'Bearer realm="edge-fleet"'
    if code == 503:
        found["retry-after"] = RETRY_AFTER
    if (wait := getattr(error, "retry_after", None)) is not None:
        found["retry-after"] = str(max(1, round(wait)))
    return found
