"""Turns away JSON schemas whose compilation would take seconds, or gigabytes, of everybody's worker. Pure.

Compiling happens between two tokens, in native code that cannot be stopped, and its fuel is counted only afterwards.
What was measured with llguidance 1.9: patterns that one text must match together double the work with each (13 take
2.4 s and 200 MB, 20 minutes); ``multipleOf`` costs 6 µs and 200 bytes for each unit, and where several meet, for each
unit of their product; names that are patterns are compared with each other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from contract.errors import RequestInvalid

FIELD = "response_format"

MAX_PATTERNS_TOGETHER = 8
"""Patterns and formats in a schema that lets them meet: 10 take 40 ms, 13 seconds."""

MAX_MULTIPLE = 20_000
"""Of all ``multipleOf`` together (their product where they may meet): 0.1 s."""

MAX_PATTERN_NAMES = 32
"""``patternProperties``: 100 take 0.07 s, 1,000 minutes."""

TOGETHER = ("allOf", "anyOf", "oneOf", "$ref")
"""Keywords that lay one schema over another."""

REMARKS = frozenset({
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$schema",
    "$id", "$anchor", "$defs", "definitions",
})  # fmt: skip
"""Keywords that demand nothing where they stand."""


IDLE: dict[str, tuple[Any, ...]] = {"uniqueItems": (False,), "propertyNames": (True, {}, {"type": "string"})}
"""Keywords that the grammar library does not know, with the values that demand nothing: generators write these."""

NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Keywords whose members have names of the schema's own."""

LITERAL = frozenset({"enum", "const", "default", "examples"})


def without_idle(schema: Any) -> Any:
    """``schema`` without keywords that demand nothing."""
    if isinstance(schema, list):
        return [without_idle(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {}
    for key, value in schema.items():
        if any(type(value) is type(idle) and value == idle for idle in IDLE.get(key, ())):
            continue
        if key in LITERAL:
            found[key] = value
        elif key in NAMED and isinstance(value, dict):
            found[key] = {name: without_idle(each) for name, each in value.items()}
        else:
            found[key] = without_idle(value)
    return found


OTHERS = frozenset({
    "additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames", "minProperties",
})  # fmt: skip
"""Keywords that say something of names that ``properties`` does not give."""


def closed(schema: Any) -> Any:
    """``schema`` with objects that have the names given in ``properties`` and no others, where it says nothing of
    others. Small models make up names without end, and a function cannot be called with them.

    As it is where a schema lies over another: a name that one of them does not give may be the other one's.
    """
    return schema if any(map(_lays_over, _objects(schema))) else _closed(schema)


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {}
    for key, value in schema.items():
        if key in LITERAL:
            found[key] = value
        elif key in NAMED and isinstance(value, dict):
            found[key] = {name: _closed(each) for name, each in value.items()}
        else:
            found[key] = _closed(value)
    names = schema.get("properties")
    if isinstance(names, dict) and not OTHERS & schema.keys() and _all_given(schema.get("required", []), names):
        found["additionalProperties"] = False
    return found


def _all_given(required: Any, names: dict[str, Any]) -> bool:
    return isinstance(required, list) and all(isinstance(name, str) and name in names for name in required)


def check_schema(text: str, field: str = FIELD) -> None:
    """Refuse what may take too long; ``field`` asked for it.

    Raises:
        RequestInvalid: in one sentence what is too much.
    """
    try:
        nodes = list(_objects(json.loads(text)))
    except (ValueError, RecursionError) as error:
        raise RequestInvalid("the schema cannot be read", field=field) from error
    meet = any(_lays_over(node) for node in nodes)
    texts = {node[key] for node in nodes for key in ("pattern", "format") if isinstance(node.get(key), str)}
    if meet and len(texts) > MAX_PATTERNS_TOGETHER:
        raise RequestInvalid(
            f"a schema that combines others (allOf, or anyOf, oneOf and $ref beside more) has {MAX_PATTERNS_TOGETHER} "
            "different patterns and formats at most",
            field=field,
        )
    multiples = {_units(node["multipleOf"]) for node in nodes if _is_number(node.get("multipleOf"))}
    if (math.prod(multiples) if meet else sum(multiples)) > MAX_MULTIPLE:
        raise RequestInvalid(
            f"what multipleOf asks for is too much work: {MAX_MULTIPLE} units in all at most", field=field
        )
    names = sum(len(node["patternProperties"]) for node in nodes if isinstance(node.get("patternProperties"), dict))
    if names > MAX_PATTERN_NAMES:
        raise RequestInvalid(f"patternProperties has {MAX_PATTERN_NAMES} patterns at most", field=field)


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in it, schema or not: counting too much errs on the safe side."""
    left = [value]
    while left:
        found = left.pop()
        if isinstance(found, dict):
            yield found
            left.extend(found.values())
        elif isinstance(found, list):
            left.extend(found)


def _lays_over(node: dict[str, Any]) -> bool:
    """Whether what it demands is demanded of the same text as what another schema does."""
    here = [key for key in TOGETHER if key in node]
    if not here:
        return False
    members = node.get("allOf")
    several = isinstance(members, list) and len(members) > 1
    return several or len(here) > 1 or bool(node.keys() - REMARKS - set(here))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _units(value: float) -> int:
    """Of the smallest decimal place it has: 12.5 is 125 tenths."""
    number = Decimal(str(abs(value)))
    exponent = number.as_tuple().exponent
    if not isinstance(exponent, int):
        return MAX_MULTIPLE + 1  # infinite
    digits = max(0, -exponent) if number != number.to_integral_value() else 0
    return int(number.scaleb(digits)) if exponent < 20 else MAX_MULTIPLE + 1
