"""Formats that answers are to have: made at random, so that many of them explode for a careless compiler. Pure."""

from __future__ import annotations

from random import Random
from typing import Any

MOST_DEPTH = 4

LETTERS = ("a", "b", ".", "[a-z]", "\\d", "\\w", "\\s", "\\p{L}", "é", "[^a]", "😀", "(?i:x)")
REPEATS = ("*", "+", "?", "*?", "{0,3}", "{0,50}", "{0,1000}", "{20,300}", "{200,1000}", "{2,}", "{100,}")


def regex(random: Random, depth: int = 0) -> str:
    """A regular expression, nested up to :data:`MOST_DEPTH`."""
    kind = random.random()
    if depth > MOST_DEPTH or kind < 0.3:
        return random.choice(LETTERS)
    if kind < 0.5:
        return regex(random, depth + 1) + regex(random, depth + 1)
    if kind < 0.65:
        return f"({regex(random, depth + 1)}|{regex(random, depth + 1)})"
    return f"({regex(random, depth + 1)}){random.choice(REPEATS)}"


def schema(random: Random, depth: int = 0) -> dict[str, Any]:
    """A JSON schema, nested up to :data:`MOST_DEPTH`."""

    def inner() -> dict[str, Any]:
        return schema(random, depth + 1)

    kind = random.choice(("plain", *(() if depth >= MOST_DEPTH else ("object", "list", "combined", "text", "value"))))
    if kind == "object":
        return random.choice((
            {"type": "object", "properties": {f"k{n}": inner() for n in range(random.choice((1, 3, 20)))},
             "required": [f"k{n}" for n in range(random.choice((0, 1, 3)))],
             "additionalProperties": random.choice((True, False))},
            {"type": "object", "minProperties": random.choice((0, 1, 50)), "maxProperties": random.choice((1, 3, 100)),
             "additionalProperties": inner()},
            {"type": "object", "patternProperties": {regex(random)[:60]: inner()}},
        ))  # fmt: skip
    if kind == "list":
        least, most = random.choice((0, 1, 40, 1000)), random.choice((1, 50, 5000))
        return {"type": "array", "items": inner(), "minItems": least, "maxItems": most}
    if kind == "combined":
        name = random.choice(("anyOf", "allOf", "oneOf"))
        return {name: [inner() for _ in range(random.choice((1, 2, 3, 8)))]}
    if kind == "text":
        return random.choice((
            {"type": "string", "pattern": regex(random)[:400]},
            {"type": "string", "format": random.choice(("date-time", "email", "uuid", "ipv6", "uri", "hostname",
            "time"))},
            {"type": "string", "minLength": random.choice((0, 3, 500)), "maxLength": random.choice((5, 500, 100_000))},
        ))  # fmt: skip
    if kind == "value":
        return random.choice((
            {"enum": [random.choice((n, f"v{n}", {"a": n}, [n])) for n in range(random.choice((1, 10, 300)))]},
            {"const": random.choice((1, "x", None, {"a": [1, 2]}))},
            {"$ref": random.choice(("#", "#/properties/k0", "#/$defs/x"))},
            {"type": "number", "multipleOf": random.choice((3, 0.01, 7, 97, 0.125, 1013))},
            {"type": "number", "minimum": random.choice((-1e300, 0, 0.1)), "maximum": random.choice((1e300, 1, 0.3))},
        ))  # fmt: skip
    return {"type": random.choice(("string", "integer", "boolean", "null", "number"))}
