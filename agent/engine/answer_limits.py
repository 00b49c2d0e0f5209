"""How long an answer to a schema may be: bounds for what the schema leaves open, and where it asks for more. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import Struct

MAX_TEXT = 2048
"""Characters of a string, or of a name that the schema does not give."""

MAX_ITEMS = 64
"""Of a list, and names of an object beyond those that the schema gives."""

MAX_DIGITS = 18
"""In a row: what 64 bits hold."""

MAX_DEPTH = 8
"""Of lists and objects in each other, unless the schema itself goes deeper."""

MAX_OPEN_BYTES = 4000
"""Of one place that the schema leaves open: a list or an object without bounds, any JSON, a schema in itself.

No more tokens than this, so that one such place never runs to the token limit that holds where none is asked for.
"""

MAX_BYTES = 1 << 20
"""Of a whole answer; what counts then is the token limit."""

ESCAPED = 6
"""Bytes that a character takes, at most."""

COUNTED = re.compile(r"\{(?:\d*,)?(\d+)\}")
"""A count in a pattern that has an end."""

GUESSES = {
    "properties": "object", "additionalProperties": "object", "items": "array", "prefixItems": "array",
    "maxItems": "array", "maxLength": "string",
}  # fmt: skip
"""What a schema without a type is about."""


class Limits(Struct, frozen=True):
    """When a part of an answer is full."""

    text: int = MAX_TEXT
    items: int = MAX_ITEMS
    names: int = MAX_ITEMS
    digits: int = MAX_DIGITS
    depth: int = MAX_DEPTH
    whole: int = MAX_OPEN_BYTES


def limits_of(*schemas: Any) -> Limits:
    """The bounds of an answer that is held to one of ``schemas``, each a JSON schema as Python reads it.

    They hold for all of it: a longer bound that it sets at one place raises that of the others of its kind.
    """
    try:
        own = [_own_limits(schema) for schema in schemas]
    except RecursionError:
        return Limits(whole=MAX_BYTES)
    names = Limits.__struct_fields__
    return Limits(**{name: max(getattr(each, name) for each in (Limits(), *own)) for name in names})


def _own_limits(schema: Any) -> Limits:
    text = items = digits = names = others = 0
    refs = set()
    for node in _inside(schema):
        if isinstance(node, str):
            text = max(text, len(node))
        elif isinstance(node, int | float):
            digits = max(digits, len(str(node)))
        elif isinstance(node, list):
            items = max(items, len(node))
        elif isinstance(node, dict):
            text = max(text, _count(node, "minLength"), _count(node, "maxLength"), _pattern_length(node.get("pattern")))
            items = max(items, _count(node, "minItems"), _count(node, "maxItems"))
            others = max(others, _count(node, "minProperties"), _count(node, "maxProperties"))
            # Schemas that are laid over each other give one object the names of all.
            names += len(_part(node, "properties", dict))
            refs.add(str(node.get("$ref")))
    return Limits(
        text=text,
        items=items,
        names=max(others, names + MAX_ITEMS),
        digits=digits,
        depth=_depth(schema) + len(refs),
        whole=min(MAX_BYTES, _Capacity(schema).of(schema, ())),
    )


def _inside(schema: Any) -> Iterator[Any]:
    """Everything in it."""
    left = [schema]
    while left:
        found = left.pop()
        yield found
        if isinstance(found, dict):
            left.extend(found.values())
        elif isinstance(found, list):
            left.extend(found)


def _depth(value: Any) -> int:
    """How many schemas and literals stand in each other, at most."""
    deepest, left = 0, [(value, 0)]
    while left:
        found, depth = left.pop()
        deepest = max(deepest, depth)
        if isinstance(found, dict):
            inner = depth + bool(found.keys() & {"type", *GUESSES})
            left.extend((each, inner) for each in found.values())
        elif isinstance(found, list):
            left.extend((each, depth + 1) for each in found)
    return deepest


def _pattern_length(pattern: Any) -> int:
    """Of the longest text, roughly and rather too much; 0 where the pattern itself sets no count."""
    counts = [int(count[:7]) for count in COUNTED.findall(pattern)] if isinstance(pattern, str) else []
    length = len(pattern) if counts else 0
    for count in counts:
        length = min(MAX_BYTES, length * max(1, count))
    return length


class _Capacity:
    """How many bytes an answer may take by the bounds that its schema sets, and by ours where it sets none."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._known: dict[str, int] = {}

    def of(self, schema: Any, within: tuple[str, ...]) -> int:
        """``within``: references that led here."""
        if not isinstance(schema, dict):
            return MAX_OPEN_BYTES
        size = max((self._own(schema, kind, within) for kind in _kinds(schema)), default=0)
        size += sum(self.of(each, within) for each in _part(schema, "allOf", list))
        for key in ("anyOf", "oneOf"):
            size += max((self.of(each, within) for each in _part(schema, key, list)), default=0)
        if isinstance(ref := schema.get("$ref"), str):
            size += self._referred(ref, within)
        return min(MAX_BYTES, size or MAX_OPEN_BYTES)

    def _referred(self, ref: str, within: tuple[str, ...]) -> int:
        if ref in within:
            return MAX_OPEN_BYTES
        if ref not in self._known:
            target = self._root
            for step in ref.removeprefix("#").split("/")[1:]:
                target = _part(target, step.replace("~1", "/").replace("~0", "~"), dict)
            self._known[ref] = self.of(target, (*within, ref))
        return self._known[ref]

    def _own(self, schema: dict[str, Any], kind: str, within: tuple[str, ...]) -> int:
        if kind == "fixed":
            return max(4 * len(str(each)) for each in (*_part(schema, "enum", list), schema.get("const")))
        if kind == "string":
            own = max(_count(schema, key) for key in ("minLength", "maxLength"))
            return max(MAX_TEXT, ESCAPED * own, ESCAPED * _pattern_length(schema.get("pattern")))
        if kind == "object":
            named = _part(schema, "properties", dict)
            size = 2 + sum(8 + len(name) + self.of(each, within) for name, each in named.items())
            others = None if "patternProperties" in schema else schema.get("additionalProperties")
            return size + self._several(_count(schema, "maxProperties", -1), others, within)
        if kind == "array":
            size = 2 + sum(2 + self.of(each, within) for each in _part(schema, "prefixItems", list))
            return size + self._several(_count(schema, "maxItems", -1), schema.get("items"), within)
        return 3 * MAX_DIGITS

    def _several(self, most: int, schema: Any, within: tuple[str, ...]) -> int:
        """Of as many as there may be beside those that have names or places; ``most`` -1: it sets no bound."""
        if schema is False:
            return 0
        return MAX_OPEN_BYTES if most < 0 else most * (8 + self.of(schema, within))


def _kinds(schema: dict[str, Any]) -> Sequence[str]:
    """What an answer to it may be, as far as it says so itself."""
    if "enum" in schema or "const" in schema:
        return ["fixed"]
    kinds = schema.get("type")
    if isinstance(kinds, list):
        return [kind for kind in kinds if isinstance(kind, str)]
    return [kinds] if isinstance(kinds, str) else [kind for key, kind in GUESSES.items() if key in schema]


def _part(schema: Any, key: str, kind: type[Any]) -> Any:
    """What stands under ``key``, an empty one where none of that kind does."""
    found = schema.get(key) if isinstance(schema, dict) else None
    return found if isinstance(found, kind) else kind()


def _count(schema: dict[str, Any], key: str, default: int = 0) -> int:
    found = schema.get(key)
    return max(0, min(MAX_BYTES, found)) if isinstance(found, int) else default
