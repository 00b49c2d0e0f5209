"""What the columns of ``state.db`` may hold. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from contract.errors import BundleRefused
from contract.identifiers import check_bundle_name, check_version
from contract.mqtt.desired import MAX_DESIRED_BYTES
from contract.mqtt.reports import Phase
from contract.reasons import Reason

MAX_CONTENT = 2000
"""Characters of a row that are kept."""

YEAR_9999 = 253_402_300_799
"""The last second that a date can name."""

# As contract.trust.store counts them: those of an era of keys stand apart.
_ROLE = re.compile(r"(?:root|timestamp|snapshot|targets)(?:@[0-9a-f]{16})?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class UndecodableText(Struct, frozen=True):
    """Bytes that are stored as a text, and are none."""

    data: bytes


Check = Callable[[Any], bool]


def whole_number(minimum: int, maximum: int) -> Check:
    return lambda value: type(value) is int and minimum <= value <= maximum


def _number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and 0 <= value < 1e15


def _text(maximum: int) -> Check:
    return lambda value: isinstance(value, str) and len(value) <= maximum and "\0" not in value


def _bytes(maximum: int) -> Check:
    return lambda value: isinstance(value, bytes) and len(value) <= maximum


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def is_digest(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _passes(check: Callable[[str], str], *, empty: bool = False) -> Check:
    def passes(value: object) -> bool:
        if not isinstance(value, str):
            return False
        try:
            return (empty and not value) or bool(check(value))
        except BundleRefused:
            return False

    return passes


_TIME = whole_number(0, YEAR_9999)
_FLAG = whole_number(0, 1)
_REASON: Check = lambda value: isinstance(value, str) and value in set(Reason)  # noqa: E731 # one of many alike
_PHASES = frozenset(Phase.__args__)  # type: ignore[attr-defined] # of a Literal

TABLES: Mapping[str, Mapping[str, Check]] = {
    "bundles": {
        "digest": is_digest,
        "name": _passes(check_bundle_name),
        "version": _passes(check_version),
        "security_epoch": whole_number(0, 2**63 - 1),
        "bytes": whole_number(0, 2**53),
        "installed_at": _TIME,
        "tokens_per_second": _or_none(_number),
        "tokens_per_second_each": _or_none(_number),
    },
    "adapters": {"digest": is_digest, "base": is_digest, "committed": _FLAG},
    "history": {"number": whole_number(1, 2**53), "digest": is_digest, "undone": _FLAG},
    "attempts": {"digest": is_digest, "count": whole_number(0, 1_000_000)},
    "quarantine": {
        "digest": is_digest,
        "name": _passes(check_bundle_name, empty=True),
        "version": _passes(check_version, empty=True),
        "reason": _REASON,
        "message": _text(100_000),
        "at": _TIME,
    },
    "swaps": {"at": _TIME, "digest": is_digest},
    "warnings": {
        "reason": _REASON,
        "digest": lambda value: value == "" or is_digest(value),
        "message": _text(100_000),
        "at": _TIME,
    },
    "role_versions": {
        "role": lambda value: isinstance(value, str) and _ROLE.fullmatch(value) is not None,
        "version": whole_number(0, 2**63 - 1),
    },
    "metadata_expiry": {"role": _text(64), "at": whole_number(0, 2**63 - 1)},
    "set_aside": {
        "number": whole_number(1, 2**53),
        "source": _text(64),
        "reason": _text(1000),
        "content": _text(2 * MAX_CONTENT),
        "at": _TIME,
        "told": _FLAG,
    },
}  # fmt: skip
"""What the columns of every table may hold, but for those of :data:`INSTALLATION` and of the answers
(:mod:`agent.state.answer_integrity`)."""

INSTALLATION: Mapping[str, tuple[Check, object]] = {
    "phase": (lambda value: value in _PHASES, "IDLE"),
    "active": (_or_none(is_digest), None),
    "previous": (_or_none(is_digest), None),
    "candidate": (_or_none(is_digest), None),
    "failure_reason": (_or_none(_REASON), None),
    "failure_message": (_or_none(_text(100_000)), None),
    "desired": (_or_none(_bytes(MAX_DESIRED_BYTES)), None),
    "overridden": (_FLAG, 0),
    "epoch": (whole_number(0, 2**63 - 1), 0),
    "clock_floor": (_TIME, 0),
}
"""Of the one row: what a column may hold, and what it gets when it does not."""
