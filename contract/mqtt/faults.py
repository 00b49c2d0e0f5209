"""What is wrong, as clients and operators are told it."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import UNSET, Struct, UnsetType

from contract.errors import Fault, printable

MAX_MESSAGE = 1000
"""Characters of a message about a fault: what came from outside may stand in it."""

MAX_FIELD = 200


class FaultDetail(Struct, frozen=True):
    """One of the faults of a body: the JSON path of the field, what is wrong, and the name that was probably meant."""

    message: str
    field: str | UnsetType = UNSET
    suggestion: str | UnsetType = UNSET


class ErrorBody(Struct, frozen=True):
    """``code`` follows HTTP, ``type`` is stable for programs, ``message`` is one sentence for a person; ``details`` are
    all the faults of a body, of which ``message`` and ``field`` tell the first.
    """

    code: int
    type: str
    message: str
    field: str | UnsetType = UNSET
    retry_after_ms: int | UnsetType = UNSET
    details: list[FaultDetail] | UnsetType = UNSET


class ReportedError(Struct, frozen=True):
    """``reason`` is one of :class:`contract.reasons.Reason`; ``details`` are all the faults of a document.

    ``retry_in_seconds``: it is not final, the device tries again by itself so long after this report.
    """

    reason: str
    message: str
    field: str | UnsetType = UNSET
    retry_in_seconds: float | UnsetType = UNSET
    details: list[FaultDetail] | UnsetType = UNSET


def fault_details(details: Iterable[Fault]) -> list[FaultDetail] | UnsetType:
    """All faults as they are told, none of them at length."""
    found = [
        FaultDetail(
            message=printable(message[:MAX_MESSAGE]),
            field=UNSET if field is None else printable(field[:MAX_FIELD]),
            suggestion=UNSET if suggestion is None else suggestion,
        )
        for field, message, suggestion in details
    ]
    return found or UNSET
