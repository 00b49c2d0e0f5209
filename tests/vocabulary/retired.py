"""The retired words, each with what is said instead and why. The glossary is in ``docs/ARCHITECTURE.md``.

An identifier is split into its words (``carry_out_alone``, ``NobodyServed``), so a word here is retired wherever it
occurs in a name; a phrase is looked for in texts that people read: messages, log lines, help.
"""

from __future__ import annotations

WORDS: dict[str, str] = {
    "wish": "target, DesiredBundle: the field says desired state",
    "wishes": "targets, desired state",
    "wished": "desired",
    "seat": "replica",
    "seats": "replicas",
    "place": "path, location, offset, slot or context: it meant all of them",
    "places": "paths, locations, slots",
    "say": "report, publish or log: say which",
    "says": "reports, states",
    "said": "output, message, reported",
    "tell": "report, publish, notify",
    "tells": "reports, notifies",
    "told": "reported, message",
    "telling": "reporter",
    "teller": "progress printer",
    "nobody": "none, null",
    "somebody": "a client, a user, an operator: name who",
    "anew": "again",
    "stray": "orphan",
    "strays": "orphans",
    "lane": "thread of the parallel fetcher",
    "lanes": "parallel fetcher",
    "crowding": "cpu contention",
    "crowded": "contention",
    "deriver": "prepacker",
    "deriving": "prepack",
    "obtaining": "download pipeline",
    "trusting": "trust refresh",
    "unsaid": "suppressed",
    "ration": "rate limiter",
    "mend": "fix or repair",
    "mends": "fixes",
    "mended": "repaired",
    "mending": "repair",
    "hopeless": "unavailable",
    "asleep": "unloaded",
    "wake": "load",
    "shelf": "build cache",
    "readback": "graph facts",
    "exam": "evaluation spec",
    "unrun": "not executed",
    "tiniest": "EPS",
    "vitals": "telemetry loop",
}
"""Words of identifiers: modules, classes, functions, fields, variables."""

PHRASES: dict[str, str] = {
    r"\banew\b": "again",
    r"\b(no|some)body\b": "name who: a client, an operator, another agent",
    r"\bto be had\b": "supported, available",
    r"\bnever came through\b": "failed",
    r"\bsay where\b": "specify",
    r"\bwish(es|ed)?\b": "target, desired state",
    r"\bmend(s|ed)?\b": "fix, repair",
    r"\b(is|was|are) said\b": "is reported",
    r"\bsays that\b": "reports that",
    r"\bcannot be said\b": "is unknown",
    r"\bunder way\b": "in progress",
    r"\bon (its|their) way\b": "being downloaded, in progress",
    r"\bgives? way\b": "runs at lower priority",
    r"\bgoes on\b": "continues",
    r"\bnot be found out\b": "not be determined",
}
"""Phrases of texts that users, operators and readers of logs see."""
