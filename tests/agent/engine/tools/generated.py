"""Generated functions: schemas of arguments with everything that clients usually write, each with its own judge.

The judge is made beside the schema, so that no library decides what is valid of what another library wrote.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Judge = Callable[[Any], bool]
Made = tuple[dict[str, Any], Judge]

WORDS = ("which", "where", "unit", "value", "a b", "é", "n_1", "$x", 'quote"d', "name", "arguments")


def make_function(seed: int) -> tuple[dict[str, Any], Judge]:
    """The function number ``seed`` and the judge of its arguments; the same every time."""
    draw = random.Random(seed)
    schema, judge = _object(draw, 0)
    if draw.random() < 0.2:
        inner, inner_judge = _object(draw, 2)
        schema["$defs"] = {"inner": inner}
        schema["properties"]["of_a_kind"] = {"$ref": "#/$defs/inner"}
        return _named(draw, seed, schema, _with_inner(judge, inner_judge))
    return _named(draw, seed, schema, judge)


def _with_inner(outer: Judge, inner: Judge) -> Judge:
    def judge(value: Any) -> bool:
        rest = {name: held for name, held in value.items() if name != "of_a_kind"}
        return outer(rest) and ("of_a_kind" not in value or inner(value["of_a_kind"]))

    return judge


def _named(draw: random.Random, seed: int, schema: dict[str, Any], judge: Judge) -> tuple[dict[str, Any], Judge]:
    name = f"f_{seed}-{draw.choice(['read', 'set', 'x' * 20])}"
    function: dict[str, Any] = {"name": name, "parameters": schema}
    if draw.random() < 0.5:
        function["description"] = 'Does <it>, "well".\nAlways.'
    return {"type": "function", "function": function}, judge


def _value(draw: random.Random, depth: int) -> Made:
    kinds = [_string, _integer, _number, _choice, _pattern, _nothing]
    if depth < 3:
        kinds += [_array, _object, _either]
    return draw.choice(kinds)(draw, depth)


def _object(draw: random.Random, depth: int) -> Made:
    names = draw.sample(WORDS, draw.randint(0 if depth else 1, 3))
    made = {name: _value(draw, depth + 1) for name in names}
    required = [name for name in names if draw.random() < 0.6]
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: schema for name, (schema, _) in made.items()},
        "additionalProperties": False,
    }
    if required or draw.random() < 0.5:
        schema["required"] = required

    def judge(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and set(required) <= value.keys() <= made.keys()
            and all(made[name][1](inner) for name, inner in value.items())
        )

    return schema, judge


def _array(draw: random.Random, depth: int) -> Made:
    schema, judge = _value(draw, depth + 1)
    least, most = draw.choice([(0, 2), (1, 3), (2, 2)])
    made = {"type": "array", "items": schema, "minItems": least, "maxItems": most}
    return made, lambda value: isinstance(value, list) and least <= len(value) <= most and all(map(judge, value))


def _either(draw: random.Random, depth: int) -> Made:
    (first, is_first), (second, is_second) = _value(draw, depth + 1), _value(draw, depth + 1)
    return {"anyOf": [first, second]}, lambda value: is_first(value) or is_second(value)


def _string(draw: random.Random, _: int) -> Made:
    most = draw.randint(1, 12)
    return {"type": "string", "maxLength": most}, lambda value: isinstance(value, str) and len(value) <= most


def _pattern(draw: random.Random, _: int) -> Made:
    import re

    pattern = draw.choice([r"^[a-z]{2,4}$", r"^\d{4}-\d{2}$", r"^(on|off)$"])
    return {
        "type": "string",
        "pattern": pattern,
    }, lambda value: isinstance(value, str) and bool(re.fullmatch(pattern.strip("^$"), value))


def _integer(draw: random.Random, _: int) -> Made:
    low = draw.randint(-50, 50)
    high = low + draw.randint(0, 500)
    return {
        "type": "integer",
        "minimum": low,
        "maximum": high,
    }, lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _number(draw: random.Random, _: int) -> Made:
    low = draw.choice([0, -1.5, 10])
    return {
        "type": "number",
        "minimum": low,
        "maximum": low + 5,
    }, lambda value: isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= low + 5


def _choice(draw: random.Random, _: int) -> Made:
    options: list[Any] = draw.sample(["a", "b b", 'c"', 1, 2.5, None, True, "<x>"], draw.randint(1, 4))
    judge: Judge = lambda value: any(type(value) is type(option) and value == option for option in options)  # noqa: E731
    return {"enum": options}, judge


def _nothing(draw: random.Random, _: int) -> Made:
    if draw.random() < 0.5:
        return {"type": "boolean"}, lambda value: isinstance(value, bool)
    return {"type": ["null", "boolean"]}, lambda value: value is None or isinstance(value, bool)
