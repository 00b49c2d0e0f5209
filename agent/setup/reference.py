"""Every key of ``agent.toml``, read from the types that read the file: what it is, its default, its bounds.

``edge-agent setup`` installs it as a file of comments; ``docs/CONFIGURATION.md`` is written from it.
"""

from __future__ import annotations

import json
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import NODEFAULT, Meta, Struct, UnsetType

from agent.config import AgentConfig
from agent.config_faults import struct_of

WIDTH = 100
"""Of the comments."""

_UNITS = {"_bytes_per_second": "bytes per second", "_bytes": "bytes", "_seconds": "seconds", "_ms": "milliseconds"}
"""What the end of a name says of its unit."""

_NAMES = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path"}


class Key(Struct, frozen=True):
    """One key. ``default`` is as TOML writes it; None: there is none. ``needed``: the file must have it."""

    name: str
    type: str
    default: str | None
    needed: bool
    unit: str
    bounds: str
    description: str


class Table(Struct, frozen=True):
    """One table (``name`` is empty for the top). Where ``optional``, it does something by being there."""

    name: str
    description: str
    keys: tuple[Key, ...]
    optional: bool = False


def tables() -> Iterator[Table]:
    """All tables of the configuration, in the order of the types."""
    yield from _tables("", AgentConfig, optional=False)


def _tables(name: str, type_: type[Struct], *, optional: bool) -> Iterator[Table]:
    hints = typing.get_type_hints(type_, include_extras=True)
    fields = {f"{name}.{field.name}".lstrip("."): field for field in msgspec.structs.fields(type_)}
    plain = [field for field in fields.values() if _struct_in(hints[field.name]) is None]
    yield Table(name, _sentence(type_), tuple(_key(field, hints[field.name]) for field in plain), optional)
    for path, field in fields.items():
        inner = _struct_in(hints[field.name])
        if inner is not None and typing.get_origin(hints[field.name]) is dict:
            yield Table(path, *_named_by_operator(path))
            yield from _tables(f"{path}.NAME", inner, optional=True)
        elif inner is not None:
            yield from _tables(path, inner, optional=field.default is None)


def _struct_in(annotation: Any) -> type[Struct] | None:
    """The table that a field is; for a table of tables whose names are the operator's, one of those."""
    is_dict = typing.get_origin(annotation) is dict
    return struct_of(typing.get_args(annotation)[1] if is_dict else annotation)


def _named_by_operator(path: str) -> tuple[str, tuple[Key, ...]]:
    """A table of values or of tables, under names of the operator's own: there is one, the sources."""
    description = f"`[{path}]`: where bundles may come from, under names of your own. `NAME` stands for one of them."
    value = "a directory, an `.edgebundle` file or an http(s) URL; or a table of its own, below"
    return description, (Key("NAME", "text or table", None, False, "", "", value),)


def _key(field: msgspec.structs.FieldInfo, annotation: Any) -> Key:
    metas = list(_metas(annotation))
    default = None
    if field.default is not NODEFAULT:
        default = _toml(field.default)
    elif field.default_factory is not NODEFAULT:
        default = _toml(field.default_factory())
    stated = next((meta.extra["unit"] for meta in metas if meta.extra and "unit" in meta.extra), None)
    named = next((unit for end, unit in _UNITS.items() if field.name.endswith(end)), "")
    described = next((meta.description for meta in metas if meta.description), "")
    return Key(
        field.encode_name, _type(annotation), default, field.required, stated or named, _bounds(metas), described
    )


def _metas(annotation: Any) -> Iterator[Meta]:
    """What is stated of a value itself, not of what it holds; the outer first."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        inner, *rest = typing.get_args(annotation)
        yield from (meta for meta in reversed(rest) if isinstance(meta, Meta))
        yield from _metas(inner)
    elif origin in {types.UnionType, typing.Union}:
        for part in typing.get_args(annotation):
            yield from _metas(part)


def _type(annotation: Any) -> str:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(parts[0])
    if origin is typing.Literal:
        return " or ".join(f"`{json.dumps(value)}`" for value in parts)
    if origin is list:
        return f"list of {_type(parts[0])}s"
    if origin is dict:
        return f"table of {_type(parts[1])}s"
    if parts:
        return next(_type(part) for part in parts if part not in {type(None), UnsetType})
    return _NAMES[annotation]


def _bounds(metas: list[Meta]) -> str:
    """As people write them; patterns are not for people: descriptions say what they mean."""

    def of(name: str) -> Any:
        return next((getattr(meta, name) for meta in metas if getattr(meta, name) is not None), None)

    least, above, most, length = of("ge"), of("gt"), of("le"), of("max_length")
    found = []
    if least is not None and most is not None:
        found.append(f"{_number(least)} to {_number(most)}")
    elif least is not None:
        found.append(f"at least {_number(least)}")
    elif above is not None:
        found.append(f"above {_number(above)}" + ("" if most is None else f", at most {_number(most)}"))
    if length is not None:
        found.append(
            f"at most {length} of them" if least is None and not of("pattern") else f"at most {length} characters"
        )
    return ", ".join(found)


def _number(value: float) -> str:
    power = int(value).bit_length() - 1
    return f"2^{power}" if value == 2**power and power > 20 else f"{value:.10g}"


def _toml(value: Any) -> str | None:
    """The value as TOML writes it; None for one that is left out."""
    if value is None:
        return None
    if isinstance(value, dict):
        return "{}"
    return json.dumps(str(value) if isinstance(value, Path) else value)


def _sentence(type_: type[Struct]) -> str:
    return " ".join((type_.__doc__ or "").split()).replace("``", "`")


FILE_HEAD = """\
# Every key of agent.toml, with its default. Nothing reads this file: copy what you need into agent.toml, then
# `edge-agent check-config` says whether it is right, and `systemctl restart edge-agent` makes it count.
"""


def example() -> str:
    """A TOML file in which every key is commented out, with what it means above it."""
    lines = [FILE_HEAD]
    for table in tables():
        if table.name:
            lines += ["", _comment(table.description), f"{'#' if table.optional else ''}[{table.name}]"]
        for key in table.keys:
            lines += ["", _comment(key.description), _comment(_kind(key)), f"#{key.name} = {_value(key)}"]
    return "\n".join(lines) + "\n"


def _kind(key: Key) -> str:
    """Type, unit and bounds, and whether it may be left out."""
    parts = [key.type, key.unit, key.bounds, "needed" if key.needed else "" if key.default else "not set by default"]
    return f"({'; '.join(part for part in parts if part)})"


def _value(key: Key) -> str:
    if key.default is not None:
        return key.default
    return "[]" if key.type.startswith("list") else "0.1" if key.type == "number" else '"…"'


def _comment(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
