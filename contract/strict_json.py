"""The only way JSON from outside gets in.

``json`` accepts duplicate keys (the last wins), NaN, numbers of any size and nesting until the interpreter's stack
ends; each has been used to make two readers of one document disagree. It also accepts half of a surrogate pair
(``"\\ud83d"``, what JavaScript writes of a text that was cut within an emoji), which no later writer can encode. Here
all of them are refused with a reason code before anything else sees the document.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec

from contract.errors import BundleRefused
from contract.reasons import Reason

T = TypeVar("T")

MAX_DEPTH = 32
"""Levels of nesting. TUF metadata needs 7, a manifest 5, a JSON schema in a request rarely more than 20."""

MAX_INTEGER = 2**63 - 1
"""The largest integer every reader of these formats can hold (SQLite, msgpack, C)."""

# Strings are stepped over in runs, and one without an end to the end of the text: tried again from every quote in it, a
# request of 1 MiB would keep the device busy for hours.
_STRUCTURE = re.compile(rb'"(?>[^"\\]*(?:\\.[^"\\]*)*)(?:"|\\?\Z)|[\[{]|[\]}]', re.DOTALL)

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
"""Only documents with such an escape can hold half of a pair: raw ones are no UTF-8."""

_SURROGATE = re.compile("[\ud800-\udfff]")


def _check_depth(data: bytes, max_depth: int, what: str) -> None:
    depth = 0
    for match in _STRUCTURE.finditer(data):
        first = data[match.start()]
        if first in b"[{":
            depth += 1
            if depth > max_depth:
                raise BundleRefused(Reason.TOO_DEEP, f"{what} is nested deeper than {max_depth} levels")
        elif first in b"]}":
            depth -= 1


def _lone_surrogate(value: Any, path: str = "") -> str | None:
    """The path of a text, or of the object with a key, that holds half of a surrogate pair."""
    if isinstance(value, str):
        return path if _SURROGATE.search(value) else None
    members: Iterable[tuple[str, Any]] = ()
    if isinstance(value, dict):
        if any(_SURROGATE.search(key) for key in value):
            return path
        members = ((f"{path}.{key}".lstrip("."), each) for key, each in value.items())
    elif isinstance(value, list):
        members = ((f"{path}[{number}]", each) for number, each in enumerate(value))
    return next((found for at, each in members if (found := _lone_surrogate(each, at)) is not None), None)


def loads(data: bytes, *, max_bytes: int, what: str, max_depth: int = MAX_DEPTH) -> Any:
    """Parse ``data`` strictly; ``what`` names the document in error messages.

    Raises:
        BundleRefused: with TOO_LARGE, NOT_UTF8, TOO_DEEP, DUPLICATE_KEY, NOT_FINITE, NUMBER_RANGE or NOT_JSON.
    """
    if len(data) > max_bytes:
        raise BundleRefused(Reason.TOO_LARGE, f"{what} has {len(data)} bytes, more than the {max_bytes} allowed")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleRefused(Reason.NOT_UTF8, f"{what} is not valid UTF-8 at byte {error.start}") from error
    _check_depth(data, max_depth, what)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise BundleRefused(Reason.DUPLICATE_KEY, f"{what} has the key {key!r} twice", field=key)
            found[key] = value
        return found

    def constant(name: str) -> Any:
        raise BundleRefused(Reason.NOT_FINITE, f"{what} contains {name}, which is not JSON")

    def integer(digits: str) -> int:
        # Twenty characters hold any 64-bit integer; int() on millions of digits would take minutes.
        if len(digits) > 20 or not -MAX_INTEGER - 1 <= (value := int(digits)) <= MAX_INTEGER:
            raise BundleRefused(Reason.NUMBER_RANGE, f"{what} contains an integer beyond 64 bits")
        return value

    def number(digits: str) -> float:
        if not math.isfinite(value := float(digits)):
            raise BundleRefused(Reason.NOT_FINITE, f"{what} contains a number too large for a float")
        return value

    try:
        document = json.loads(
            text, object_pairs_hook=unique, parse_constant=constant, parse_int=integer, parse_float=number
        )
    except (ValueError, RecursionError) as error:
        raise BundleRefused(Reason.NOT_JSON, f"{what} is not JSON: {error}") from error
    where = _lone_surrogate(document) if _SURROGATE_ESCAPE.search(text) else None
    if where is not None:
        at = f" at {where}" if where else ""
        raise BundleRefused(
            Reason.NOT_UTF8,
            f"{what} contains half of a surrogate pair{at}: a text was cut within a character",
            field=where or None,
        )
    return document


def decode(data: bytes, type_: type[T], *, max_bytes: int, what: str, max_depth: int = MAX_DEPTH) -> T:
    """Parse strictly and convert to ``type_`` (a msgspec type).

    Raises:
        BundleRefused: as :func:`loads`, and SCHEMA_INVALID when the document has not the shape of ``type_``;
            ``field`` then holds the JSON path.
    """
    document = loads(data, max_bytes=max_bytes, what=what, max_depth=max_depth)
    try:
        return msgspec.convert(document, type_)
    except (msgspec.ValidationError, RecursionError) as error:
        text, _, path = str(error).partition(" - at `")
        where = path.rstrip("`").removeprefix("$").lstrip(".") or None
        if text.startswith(("Object contains unknown field `", "Object missing required field `")):
            named = text.split("`")[1]
            where = f"{where}.{named}" if where else named
        at = f" at {where}" if where else ""
        raise BundleRefused(Reason.SCHEMA_INVALID, f"{what} is not valid{at}: {text}", field=where) from error
