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
import threading
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import msgspec

from contract.errors import BundleRefused, Fault
from contract.reasons import Reason
from contract.schema_faults import MAX_FAULTS, as_meant, join_path, schema_faults

T = TypeVar("T")

_prepared: set[Any] = set()
_preparing = threading.Lock()

MAX_DEPTH = 32
"""Levels of nesting. TUF metadata needs 7, a manifest 5, a JSON schema in a request rarely more than 20."""

MAX_FIELD = 200
"""Bytes of a name that is told."""

MAX_INTEGER = 2**63 - 1
"""The largest integer every reader of these formats can hold (SQLite, msgpack, C)."""

# Strings are stepped over in runs, and one without an end to the end of the text: tried again from every quote in it, a
# request of 1 MiB would keep the device busy for hours.
_STRUCTURE = re.compile(rb'"(?>[^"\\]*(?:\\.[^"\\]*)*)(?:"|\\?\Z)|[\[{]|[\]}]', re.DOTALL)

_WHOLE = re.compile(rb"\.0|\d[eE]")
"""Stands in every whole number that is written as a float."""

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
"""Only documents with such an escape can hold half of a pair: raw ones are no UTF-8."""

_SURROGATE = re.compile("[\ud800-\udfff]")


class _Flaw(NamedTuple):
    """Stands in the document for a value that must not be there."""

    reason: Reason
    text: str


class _Twice(dict[str, Any]):
    """An object with a key that it has more than once."""

    key = ""


def _check_depth(data: bytes, max_depth: int, what: str) -> None:
    depth = 0
    member = b""
    for match in _STRUCTURE.finditer(data):
        first = data[match.start()]
        if first in b"[{":
            depth += 1
            if depth > max_depth:
                # The last text before the first bracket inside an object is the name of what it opens.
                field = member.decode("utf-8", "replace") or None
                at = f" at {field}" if field else ""
                raise BundleRefused(
                    Reason.TOO_DEEP, f"{what} is nested deeper than {max_depth} levels{at}", field=field
                )
        elif first in b"]}":
            depth -= 1
        elif depth == 1:
            member = match[0][1:-1][:MAX_FIELD]


def _parse(data: bytes, max_bytes: int, what: str, max_depth: int) -> tuple[Any, list[tuple[str, _Flaw]]]:
    """The document, and what in it is refused, with its path; what there is of the latter stands in the document, too.

    Raises:
        BundleRefused: it is too large, too deep, or not JSON at all.
    """
    if len(data) > max_bytes:
        raise BundleRefused(Reason.TOO_LARGE, f"{what} has {len(data)} bytes, more than the {max_bytes} allowed")
    try:
        text = data.decode("utf-8")
        undecodable = None
    except UnicodeDecodeError as error:
        # What is not UTF-8 becomes halves of pairs, which are found below, with their places.
        text = data.decode("utf-8", "surrogateescape")
        undecodable = error.start
    _check_depth(data, max_depth, what)
    flawed = undecodable is not None or _SURROGATE_ESCAPE.search(text) is not None

    def flaw(reason: Reason, words: str) -> _Flaw:
        nonlocal flawed
        flawed = True
        return _Flaw(reason, words)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal flawed
        found = dict(pairs)
        if len(found) < len(pairs):
            flawed = True
            seen: set[str] = set()
            found = _Twice(found)
            found.key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        return found

    def constant(name: str) -> Any:
        return flaw(Reason.NOT_FINITE, f"contains {name}, which is not JSON")

    def integer(digits: str) -> Any:
        # Twenty characters hold any 64-bit integer; int() on millions of digits would take minutes.
        if len(digits) > 20 or not -MAX_INTEGER - 1 <= (value := int(digits)) <= MAX_INTEGER:
            return flaw(Reason.NUMBER_RANGE, "contains an integer beyond 64 bits")
        return value

    def number(digits: str) -> Any:
        if not math.isfinite(value := float(digits)):
            return flaw(Reason.NOT_FINITE, "contains a number too large for a float")
        return value

    try:
        document = json.loads(
            text, object_pairs_hook=unique, parse_constant=constant, parse_int=integer, parse_float=number
        )
    except (ValueError, RecursionError) as error:
        if undecodable is not None:
            raise BundleRefused(Reason.NOT_UTF8, f"{what} is not valid UTF-8 at byte {undecodable}") from error
        raise BundleRefused(Reason.NOT_JSON, f"{what} is not JSON: {_syntax(text, error)}") from error
    return document, list(islice(_flaws(document), MAX_FAULTS)) if flawed else []


def _syntax(text: str, error: Exception) -> str:
    """What keeps ``text`` from being JSON, and the mend where programs are known to do that."""
    if text.startswith("\ufeff"):
        return "it begins with a byte order mark, which has to be left out"
    if text.endswith("\0"):
        return "a NUL follows it: send the text without its terminator"
    if isinstance(error, json.JSONDecodeError) and text.startswith(("//", "/*", "#"), error.pos):
        return f"there is a comment at position {error.pos}, and JSON has none"
    if isinstance(error, json.JSONDecodeError) and re.search(r",\s*\Z", text[: error.pos]):
        return f"there is a comma too many before position {error.pos}"
    return str(error)


def _flaws(value: Any, path: str = "") -> Iterator[tuple[str, _Flaw]]:
    """Whatever is refused below ``value``, with its path."""
    if isinstance(value, _Flaw):
        yield path, value
    elif isinstance(value, str):
        if (found := _SURROGATE.search(value)) is not None:
            yield path, _not_utf8(found[0])
    elif isinstance(value, dict):
        if isinstance(value, _Twice):
            yield join_path(path, value.key), _Flaw(Reason.DUPLICATE_KEY, f"has the key {value.key!r} twice")
        for key, each in value.items():
            if (found := _SURROGATE.search(key)) is not None:
                yield join_path(path, key), _not_utf8(found[0])
            yield from _flaws(each, join_path(path, key))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _flaws(each, f"{path}[{number}]")


def _not_utf8(half: str) -> _Flaw:
    if "\udc80" <= half <= "\udcff":
        return _Flaw(Reason.NOT_UTF8, "contains what is not valid UTF-8, or half of a surrogate pair")
    return _Flaw(Reason.NOT_UTF8, "contains half of a surrogate pair: a text was cut within a character")


def refused(what: str, faults: list[tuple[Reason, Fault]]) -> BundleRefused:
    """The error that tells all ``faults`` of ``what``, the first one in words."""
    reason, first = faults[0]
    rest = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return BundleRefused(
        reason, f"{what} {first.message}{rest}", field=first.field, details=tuple(fault for _, fault in faults)
    )


def _as_fault(path: str, flaw: _Flaw) -> tuple[Reason, Fault]:
    verb, _, words = flaw.text.partition(" ")
    at = f" at {path}" if path and flaw.reason is not Reason.DUPLICATE_KEY else ""
    words, colon, more = words.partition(", ") if ", " in words else words.partition(": ")
    return flaw.reason, Fault(path or None, f"{verb} {words}{at}{colon}{more}")


def loads(data: bytes, *, max_bytes: int, what: str, max_depth: int = MAX_DEPTH) -> Any:
    """Parse ``data`` strictly; ``what`` names the document in error messages.

    Raises:
        BundleRefused: with TOO_LARGE, NOT_UTF8, TOO_DEEP, DUPLICATE_KEY, NOT_FINITE, NUMBER_RANGE or NOT_JSON;
            ``field`` is the JSON path of the first fault that has one, ``details`` are all of them.
    """
    document, flaws = _parse(data, max_bytes, what, max_depth)
    if flaws:
        raise refused(what, [_as_fault(path, flaw) for path, flaw in flaws])
    return document


def prepare(*types: Any) -> None:
    """Have msgspec look into ``types`` before they are used: two threads that use a type for the first time at the same
    moment crash the process (msgspec 0.22). :func:`decode` does it by itself.
    """
    for each in types:
        if each not in _prepared:
            with _preparing:
                msgspec.json.Decoder(each)
            _prepared.add(each)


class Examined(NamedTuple):
    """A document with everything that is wrong with it: ``members`` are those of the outermost object that are there,
    ``sound`` those without a fault.
    """

    faults: list[tuple[Reason, Fault]]
    members: frozenset[str]
    sound: dict[str, Any]


def decode(data: bytes, type_: type[T], *, max_bytes: int, what: str, max_depth: int = MAX_DEPTH) -> T:
    """Parse strictly and convert to ``type_`` (a msgspec type).

    Raises:
        BundleRefused: as :func:`loads`, and SCHEMA_INVALID when the document has not the shape of ``type_``;
            ``field`` then holds the JSON path.
    """
    found = examine(data, type_, max_bytes=max_bytes, what=what, max_depth=max_depth)
    if isinstance(found, Examined):
        raise refused(what, found.faults)
    return found


def examine(
    data: bytes,
    type_: type[T],
    *,
    max_bytes: int,
    what: str,
    max_depth: int = MAX_DEPTH,
    as_sent: bool = False,
) -> T | Examined:
    """As :func:`decode`, except that a document with faults is told about. ``as_sent``: what programs
    send is read as it is meant (:func:`~contract.schema_faults.as_meant`).

    Raises:
        BundleRefused: it is too large, too deep, or not JSON at all.
    """
    prepare(type_)
    document, flaws = _parse(data, max_bytes, what, max_depth)
    if as_sent and (b"null" in data or _WHOLE.search(data) is not None):
        document = as_meant(document, type_)
    try:
        if not flaws:
            return msgspec.convert(document, type_)
    except (msgspec.ValidationError, RecursionError):
        pass
    faults = [_as_fault(path, flaw) for path, flaw in flaws]
    for fault in islice(schema_faults(document, type_, [path for path, _ in flaws]), MAX_FAULTS - len(faults)):
        at = f" at {fault.field}" if fault.field else ""
        faults.append((Reason.SCHEMA_INVALID, fault._replace(message=f"is not valid{at}: {fault.message}")))
    members = document if isinstance(document, dict) else {}
    wrong = {re.split(r"[.\[]", fault.field or "", maxsplit=1)[0] for _, fault in faults}
    return Examined(faults, frozenset(members), {name: each for name, each in members.items() if name not in wrong})
