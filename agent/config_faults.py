"""All faults of a configuration at once: an operator mends a file in one go, not one key for each attempt."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from contract.errors import ConfigInvalid

MAX_LISTED = 20
"""In one sentence; a file with more faults is another kind of file."""

S = TypeVar("S", bound=Struct)


class Faults:
    """What is wrong so far, in the order in which it was found; each fault once for each key."""

    def __init__(self, convert: Callable[[type[Any], Any], Any]) -> None:
        self._convert = convert
        self._found: dict[str, ConfigInvalid] = {}

    def add(self, message: str, field: str) -> None:
        self.note(ConfigInvalid(message, field=field))

    def note(self, fault: ConfigInvalid) -> None:
        self._found.setdefault(fault.field or "", fault)

    def touches(self, *keys: str) -> bool:
        """Whether one of ``keys`` or what is below it has a fault: then nothing else can be said of it."""
        return any(field == key or field.startswith(f"{key}.") for field in self._found for key in keys)

    def check(self, find: Callable[[], Iterator[ConfigInvalid]], *keys: str) -> None:
        """Note what ``find`` finds, unless ``keys``, which it looks at, are wrong already."""
        if not self.touches(*keys):
            for fault in find():
                self.note(fault)

    def raise_any(self) -> None:
        """Raises ConfigInvalid if anything was found: with ``faults``, and all of them in one sentence."""
        found = list(self._found.values())
        if not found:
            return
        if len(found) == 1:
            raise found[0]
        listed = "; ".join(fault.message for fault in found[:MAX_LISTED])
        more = f"; and {len(found) - MAX_LISTED} more" if len(found) > MAX_LISTED else ""
        raise ConfigInvalid(f"{len(found)} faults: {listed}{more}", field=found[0].field, faults=tuple(found))

    def read(self, table: dict[str, Any], type_: type[S], prefix: str = "") -> S | None:
        """``table`` as a ``type_``, wrong keys left at their defaults; None when it cannot be one at all."""
        known = {field.name: field for field in msgspec.structs.fields(type_)}
        values: dict[str, Any] = {}
        meant: set[str] = set()
        for key, value in table.items():
            where = f"{prefix}{key}"
            if key not in known:
                meant |= self._unknown(where, prefix, key, list(known))
                continue
            each = _struct_of_values(known[key].type)
            if each is not None and isinstance(value, dict):
                values[key] = self._read_each(value, each, known[key].type, where)
                continue
            inner = struct_of(known[key].type)
            if inner is not None and isinstance(value, dict):
                made = self.read(value, inner, f"{where}.")
                if made is not None:
                    values[key] = made
                continue
            self._convert_to(known[key].type, value, where, values, key)
        for name, field in known.items():
            if field.required and name not in table and name not in meant:
                self.add(f"{prefix}{name} is missing", f"{prefix}{name}")
        try:
            return type_(**values)
        except TypeError:
            # A key that it cannot be without is wrong or missing, and noted.
            return None

    def _convert_to(self, type_: Any, value: Any, where: str, values: dict[str, Any], key: str) -> None:
        try:
            values[key] = msgspec.convert(value, type_, dec_hook=self._convert)
        except msgspec.ValidationError as error:
            text, _, path = str(error).partition(" - at `$")
            field = where + path.rstrip("`")
            self.add(f"{field}: {text[:1].lower() + text[1:]}", field)

    def _read_each(self, table: dict[str, Any], struct: type[Struct], type_: Any, where: str) -> dict[str, Any]:
        """A table whose keys are names of the operator's own, each with a value or a table of ``struct``."""
        found: dict[str, Any] = {}
        for name, value in table.items():
            if isinstance(value, dict):
                made = self.read(value, struct, f"{where}.{name}.")
                if made is not None:
                    found[name] = made
            else:
                self._convert_to(typing.get_args(type_)[1], value, f"{where}.{name}", found, name)
        return found

    def _unknown(self, where: str, prefix: str, key: str, known: list[str]) -> set[str]:
        """Note a key that there is not; the one that is meant, probably."""
        near = difflib.get_close_matches(key, known, 3, 0.6)
        # Two letters that changed places are the likeliest slip.
        near = sorted(near, key=lambda name: sorted(name) != sorted(key))[:1]
        hint = f"did you mean {prefix}{near[0]}?" if near else f"use one of {', '.join(sorted(known))}"
        self.add(f"{where} is not a key of the configuration: {hint}", where)
        return set(near)


def struct_of(annotation: Any) -> type[Struct] | None:
    """The struct in an annotation such as ``X`` or ``X | None``."""
    if isinstance(annotation, type) and issubclass(annotation, Struct):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return next((found for part in typing.get_args(annotation) if (found := struct_of(part))), None)
    return None


def _struct_of_values(annotation: Any) -> type[Struct] | None:
    """The struct in an annotation such as ``dict[str, X | Struct]``."""
    return struct_of(typing.get_args(annotation)[1]) if typing.get_origin(annotation) is dict else None


_HEADER = re.compile(r"\s*\[+\s*([^\]]*?)\s*\]+")
_KEY = re.compile(r"\s*([^=#]+?)\s*=")


def line_of(text: str, field: str) -> int | None:
    """The line (from 1) of TOML ``text`` on which ``field`` is set, or the table that lacks it begins; None where it
    cannot be found: tomllib keeps no positions.
    """
    wanted = re.split(r"[.\[]", field)
    table: list[str] = []
    best: tuple[int, int] | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        header, key = _HEADER.match(line), _KEY.match(line)
        if header:
            path = table = _names(header[1])
        elif key:
            path = [*table, *_names(key[1])]
        else:
            continue
        if path == wanted[: len(path)] and (best is None or len(path) > best[0]):
            best = len(path), number
    return None if best is None else best[1]


def _names(dotted: str) -> list[str]:
    return [name.strip().strip("\"'") for name in dotted.split(".")]
