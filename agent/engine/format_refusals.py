"""What llguidance says of a format that it cannot use, as one sentence with the keyword and what to do. Pure."""

from __future__ import annotations

import re

MAX_LENGTH = 300

RULES: tuple[tuple[str, str], ...] = (
    (
        r"Unimplemented keys: \[(.*?)\]",
        "{0} cannot be kept to while an answer is written: leave it out of the schema, and check the answer for it",
    ),
    (r"oneOf constraints are not supported.*", "oneOf needs alternatives that exclude each other: use anyOf"),
    (r"Unknown format: (\S+)", "format {0} is none that can be kept to: leave it out, or write a pattern"),
    (
        r"Resource '(.*?)' is not present.*",
        "$ref to {0} leads out of the schema: put what it means below $defs, and write #/$defs/NAME",
    ),
    (r"(?:Anchor|Pointer) '(.*?)' does not exist.*", "$ref to {0} leads to nothing in the schema"),
    (r"Expecting object schema.*", "a schema is an object"),
    (
        r"patternProperty regexes (\S+) and (\S+) are not disjoint",
        "patternProperties {0} and {1} fit the same names: join them",
    ),
    (
        r"min/maxProperties only supported.*",
        "minProperties and maxProperties need all names of properties to be required",
    ),
    (
        r"Expected positive integer for '(\w+)', got (\S+)",
        "{0} is a whole number that is not negative, without a point, not {1}",
    ),
    (r"Unsatisfiable schema: (.*)", "no JSON satisfies the schema: {0}"),
    (r"regex parse error: (.*)", "a pattern cannot be used: {0}"),
)
"""The first that fits; what is in parentheses stands in the sentence."""


def explain(reason: str) -> str:
    """One sentence, without its full stop."""
    text = " ".join(reason.split())
    for pattern, sentence in RULES:
        found = re.search(pattern, text)
        if found is not None:
            text = sentence.format(*(each.replace('"', "") for each in found.groups()))
            break
    return f"the format cannot be used: {text[:MAX_LENGTH]}"
