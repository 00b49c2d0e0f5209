"""All the faults of a document that has not the shape of its type. msgspec stops at the first one, and who corrects a
document wants to know of the others before the next attempt; names that are nearly right are named.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal, Union

import msgspec

from contract.errors import Fault

MAX_FAULTS = 16
"""That are told of one document."""

MAX_EXACT = 1 << 53
"""Up to here a float is one whole number and no other."""

MAX_COMPARED = 64
"""Characters of a name that is compared with those that exist: comparing takes their product."""


def join_path(path: str, name: str) -> str:
    """The path of the member ``name``."""
    return f"{path}.{name}" if path else name


FOREIGN_NAMES = {
    "max_new_tokens": "max_tokens", "max_length": "max_tokens", "num_predict": "max_tokens", "n_predict": "max_tokens",
    "maxTokens": "max_tokens", "max_output_tokens": "max_tokens", "stop_sequences": "stop", "num_return_sequences": "n",
    "best_of": "n", "repeat_penalty": "repetition_penalty", "typical_p": "top_p",
    "format": "response_format", "guided_json": "response_format", "guided_regex": "response_format",
    "guided_choice": "response_format", "guided_grammar": "response_format", "grammar": "response_format",
    "json_schema": "response_format", "functions": "tools", "function_call": "tool_choice", "lora": "adapter",
    "system": "messages", "input": "messages", "think": "reasoning_effort", "reasoning": "reasoning_effort",
    "timeout": "deadline_ms", "request_id": "id",
}  # fmt: skip
"""What other programs call what is called otherwise here."""


def nearest(name: object, known: Sequence[str]) -> str | None:
    """What was probably meant by ``name``."""
    if not isinstance(name, str) or len(name) > MAX_COMPARED:
        return None
    if (ours := FOREIGN_NAMES.get(name)) in known:
        return ours
    return next(iter(difflib.get_close_matches(name.lower(), known, 1)), None)


def schema_faults(document: Any, type_: Any, flawed: Sequence[str] = (), path: str = "") -> Iterator[Fault]:
    """Every fault of ``document``; those at ``flawed`` paths and of what holds them are known already."""
    if any(each == path for each in flawed):
        return
    try:
        msgspec.convert(document, type_)
        return
    except RecursionError:
        yield Fault(path or None, "it is nested too deep")
        return
    except msgspec.ValidationError as error:
        first = str(error)
    except UnicodeError:
        # It cannot name a member whose name cannot be encoded; that one is known already.
        first = "it has a name that is no text"
    count = 0
    for fault in _inner(document, type_, flawed, path):
        count += 1
        yield fault
    if not count and not any(each.startswith(path) for each in flawed):
        yield _fault_of(first, document, type_, path)


def _fault_of(words: str, value: Any, type_: Any, path: str) -> Fault:
    text, _, inside = words.partition(" - at `")
    inside = inside.rstrip("`").removeprefix("$")
    where = f"{path}{inside}" if path else inside.lstrip(".")
    if text.startswith(("Object contains unknown field `", "Object missing required field `")):
        where = join_path(where, text.split("`")[1])
    if text.startswith("Expected `str` matching regex") and not inside:
        text = next((f"Expected {words}" for words in _expected(type_)), text)
    options = [
        each for choice in _choices(type_) if typing.get_origin(choice) is Literal for each in typing.get_args(choice)
    ]
    suggestion = None if inside else nearest(value, [each for each in options if isinstance(each, str)])
    if options and not inside:
        text = f"{text}: it is one of {', '.join(map(str, options))}"
    return Fault(where or None, _with(text, suggestion), suggestion)


def _with(text: str, suggestion: str | None) -> str:
    return text if suggestion is None else f"{text}; did you mean `{suggestion}`?"


def _choices(type_: Any) -> list[Any]:
    """The types that a value may have, without what is said of them."""
    origin = typing.get_origin(type_)
    if origin is Annotated:
        return _choices(typing.get_args(type_)[0])
    if origin in (Union, types.UnionType):
        return [choice for each in typing.get_args(type_) for choice in _choices(each)]
    return [type_]


def _expected(type_: Any) -> Iterator[str]:
    """A pattern in words: ``expected`` among a type's extras."""
    if typing.get_origin(type_) is Annotated:
        for each in typing.get_args(type_)[1:]:
            if isinstance(each, msgspec.Meta) and each.extra is not None and "expected" in each.extra:
                yield each.extra["expected"]
    for each in typing.get_args(type_):
        yield from _expected(each)


def _inner(value: Any, type_: Any, flawed: Sequence[str], path: str) -> Iterator[Fault]:
    """Faults of the parts of ``value``; none where it has no parts, or is itself what is wrong."""
    choices = _choices(type_)
    if isinstance(value, dict):
        structs = _structs(value, choices)
        if len(structs) == 1:
            yield from _members(value, structs[0], flawed, path)
        for each in choices if not structs else []:
            if typing.get_origin(each) is dict:
                for key, member in value.items():
                    yield from schema_faults(member, typing.get_args(each)[1], flawed, join_path(path, key))
    elif isinstance(value, list):
        for each in choices:
            if typing.get_origin(each) is list:
                for number, member in enumerate(value):
                    yield from schema_faults(member, typing.get_args(each)[0], flawed, f"{path}[{number}]")


def _structs(value: dict[str, Any], choices: Sequence[Any]) -> list[type[msgspec.Struct]]:
    """Those of ``choices`` that ``value`` may be meant for."""
    structs = [each for each in choices if isinstance(each, type) and issubclass(each, msgspec.Struct)]
    if len(structs) > 1:
        structs = [each for each in structs if value.get(_config(each).tag_field or "") == _config(each).tag]
    return structs


def as_meant(value: Any, type_: Any) -> Any:
    """``value`` as programs mean it, as deep as ``type_`` has structs: a member that is null and might have been left
    out is left out, and where a whole number is wanted, ``5.0`` is 5 (number fields of Home Assistant and of Lua know
    no other).
    """
    choices = _choices(type_)
    if isinstance(value, dict):
        structs = _structs(value, choices)
        if len(structs) != 1:
            return value
        fields, hints = _fields(structs[0]), _hints(structs[0])
        return {
            key: as_meant(member, hints[fields[key].name]) if key in fields else member
            for key, member in value.items()
            if member is not None or key not in fields or fields[key].required
        }
    if isinstance(value, list):
        items = next((typing.get_args(each)[0] for each in choices if typing.get_origin(each) is list), None)
        return value if items is None else [as_meant(member, items) for member in value]
    if isinstance(value, float) and int in choices and float not in choices:
        return int(value) if value.is_integer() and abs(value) <= MAX_EXACT else value
    return value


def _config(struct: type[msgspec.Struct]) -> Any:
    return struct.__struct_config__


@cache
def _hints(struct: type[msgspec.Struct]) -> Mapping[str, Any]:
    return typing.get_type_hints(struct, include_extras=True)


@cache
def _fields(struct: type[msgspec.Struct]) -> Mapping[str, msgspec.structs.FieldInfo]:
    """By their names in JSON. Finding them out takes a millisecond, and a client may send faults as fast as it can."""
    return {field.encode_name: field for field in msgspec.structs.fields(struct)}


def _members(value: dict[str, Any], struct: type[msgspec.Struct], flawed: Sequence[str], path: str) -> Iterator[Fault]:
    fields = _fields(struct)
    hints = _hints(struct)
    for key, member in value.items():
        where = join_path(path, key)
        if where in flawed:
            continue
        if key in fields:
            yield from schema_faults(member, hints[fields[key].name], flawed, where)
        elif key != _config(struct).tag_field and _config(struct).forbid_unknown_fields:
            suggestion = nearest(key, [name for name in fields if name not in value])
            yield Fault(where, _with(f"Object contains unknown field `{key}`", suggestion), suggestion)
    missing: Sequence[str] = getattr(struct, "missing", lambda _found: [])(value)
    for name, field in fields.items():
        if name in missing or (field.required and name not in value):
            yield Fault(join_path(path, name), f"Object missing required field `{name}`")
