"""The JSON-Schema-Test-Suite against the grammars of answers; ``python -m tests.agent.engine.schema_suite`` writes
docs/SCHEMAS.md.

The suite is the one that ``make`` fetches with the source of the package jsonschema. A schema is either refused in one
sentence, or every instance that the suite calls valid can be written, and none that it calls invalid. An instance
can be written if any text of it can: whole numbers with or without a point, names in any order.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct

from agent.engine.grammar import Constraint
from contract.errors import RequestInvalid
from tests.agent.engine.json_vocabulary import END, JsonVocabulary

SUITE = Path(os.environ.get("EDGE_CACHE", ".cache")) / "json-schema-test-suite" / "jsonschema-4.26.0.tar.gz"
DOCUMENT = Path("docs/SCHEMAS.md")

DRAFTS = {"draft2020-12": "2020-12", "draft7": "7"}

BEFORE_2019 = "http://json-schema.org/draft-07/schema#"

MAX_ORDERED = 4
"""Names of an object whose orders are all tried."""


class Case(Struct, frozen=True):
    """One schema of the suite; ``instances`` with whether they are valid."""

    draft: str
    place: str
    schema: Any
    instances: list[tuple[str, Any, bool]]


class Outcome(Struct, frozen=True):
    """``refused`` in one sentence, or what was judged otherwise than by the suite: too narrow, or wrong."""

    case: Case
    refused: str = ""
    narrower: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()


def read_suite() -> list[Case]:
    found = []
    with tarfile.open(SUITE) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            place = re.fullmatch(r"[^/]+/json/tests/([^/]+)/([^/]+)\.json", member.name)
            if place is None or place[1] not in DRAFTS:
                continue
            file = archive.extractfile(member)
            assert file is not None
            for case in json.load(file):
                schema = case["schema"]
                if place[1] == "draft7" and isinstance(schema, dict):
                    schema = {"$schema": BEFORE_2019, **schema}
                tests = [(test["description"], test["data"], test["valid"]) for test in case["tests"]]
                found.append(Case(DRAFTS[place[1]], f"{place[2]}: {case['description']}", schema, tests))
    return found


def judge(case: Case, vocabulary: JsonVocabulary) -> Outcome:
    try:
        vocabulary.hold(case.schema)
    except RequestInvalid as refused:
        return Outcome(case, refused=refused.message)
    narrower, wrong = [], []
    for name, value, valid in case.instances:
        can = any(says(vocabulary.hold(case.schema), vocabulary, text) for text in texts(value))
        if valid and not can:
            narrower.append(name)
        elif can and not valid:
            wrong.append(name)
    return Outcome(case, narrower=tuple(narrower), wrong=tuple(wrong))


def says(constraint: Constraint, vocabulary: JsonVocabulary, text: str) -> bool:
    """Whether ``text`` may be the whole answer."""
    for token in vocabulary.tokenizer.encode(text, add_special_tokens=False).ids:
        if constraint.complete or not constraint.mask()[token]:
            return False
        constraint.accept(token)
    return constraint.complete or bool(constraint.mask()[END])


def texts(value: Any) -> Iterator[str]:
    """``value`` as JSON without white space, in the ways in which it can be written."""
    for ordered in orders(value):
        yield json.dumps(ordered, separators=(",", ":"), ensure_ascii=False)


def orders(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, float) and value.is_integer():
        yield int(value)
    elif isinstance(value, list):
        for each in itertools.islice(itertools.product(*(list(orders(item)) for item in value)), 64):
            yield list(each)
    elif isinstance(value, dict) and len(value) <= MAX_ORDERED:
        for names in itertools.permutations(value):
            for each in itertools.islice(itertools.product(*(list(orders(value[name])) for name in names)), 16):
                yield dict(zip(names, each, strict=True))


def outcomes() -> list[Outcome]:
    with tempfile.TemporaryDirectory() as directory:
        vocabulary = JsonVocabulary(Path(directory))
        return [judge(case, vocabulary) for case in read_suite()]


INTRODUCTION = """\
# JSON schemas: which are kept to
<!-- Written by `python -m tests.agent.engine.schema_suite`, held to the suite by test_schema_suite.py. -->

A `response_format` of the type `json_schema`, and `parameters` of a function, are JSON schemas. An answer is held to
them token by token, as far as a grammar can, or they are refused (400) before anything is generated, in one sentence
that names the keyword. This is what becomes of every schema of the
[JSON-Schema-Test-Suite](https://github.com/json-schema-org/JSON-Schema-Test-Suite) (what it requires, as jsonschema
4.26.0 has it):

| draft | schemas | kept to | kept to, but narrower | refused | wrong |
|---|---|---|---|---|---|
"""

MEANING = """
*Kept to*: every instance that the suite calls valid can be written, and none that it calls invalid. *Narrower*: all
that is written is valid, but not all that is valid can be written. *Wrong*: something invalid can be written.

A schema without `$schema` is read as of 2020-12, where `$ref` may have keywords beside it. Whole numbers are written
without a point (`1`, not `1.0`), the names of an object in the order of `properties`; `format` is kept to, while the
suite takes it for a remark. What a schema leaves open has bounds: [MQTT.md](MQTT.md#formats).
"""


def write(found: list[Outcome]) -> str:
    lines = [INTRODUCTION]
    for draft in DRAFTS.values():
        of_draft = [each for each in found if each.case.draft == draft]
        wrong = sum(bool(each.wrong) for each in of_draft)
        narrower = sum(bool(each.narrower) and not each.wrong for each in of_draft)
        refused = sum(bool(each.refused) for each in of_draft)
        kept = len(of_draft) - wrong - narrower - refused
        lines.append(f"| {draft} | {len(of_draft)} | {kept} | {narrower} | {refused} | {wrong} |\n")
    lines += [MEANING, "\n## Refused\n", "| the sentence | 2020-12 | 7 |\n|---|---|---|\n"]
    counts = Counter((each.case.draft, kind) for each in found if each.refused for kind in kinds(each.refused))
    for sentence in sorted({sentence for _, sentence in counts}):
        lines.append(
            f"| {cell(sentence)} | {' | '.join(str(counts[draft, sentence]) for draft in DRAFTS.values())} |\n"
        )
    for title, of in (("Narrower", "narrower"), ("Wrong", "wrong")):
        if not any(getattr(each, of) for each in found):
            continue
        lines += [f"\n## {title}\n", "| draft | schema | instances |\n|---|---|---|\n"]
        for each in found:
            if getattr(each, of):
                lines.append(
                    f"| {each.case.draft} | {cell(each.case.place)} | {cell('; '.join(getattr(each, of)))} |\n"
                )
    return "".join(lines)


def kinds(sentence: str) -> list[str]:
    """Without what differs from schema to schema of one kind; one for each keyword."""
    text = sentence.removeprefix("the format cannot be used: ")
    keywords, cannot, rest = text.partition(" cannot be kept to")
    if cannot:
        return [keyword + cannot + rest for keyword in keywords.split(", ")]
    return [
        re.sub(r"(\$ref to|schema is false while processing|patternProperties) .*?(?= leads|$| fit)", r"\1 …", text)
    ]


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    DOCUMENT.write_text(write(outcomes()), "utf-8")
