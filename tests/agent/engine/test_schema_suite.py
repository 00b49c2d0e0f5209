"""Every schema of the JSON-Schema-Test-Suite is kept to or refused, and docs/SCHEMAS.md says which."""

from __future__ import annotations

import re

import pytest

from tests.agent.engine.schema_suite import DOCUMENT, SUITE, Outcome, outcomes, write


@pytest.fixture(scope="module")
def found() -> list[Outcome]:
    if not SUITE.is_file():
        pytest.fail(f"{SUITE} is missing: run the tests with `make test`, which fetches it")
    return outcomes()


def test_nothing_invalid_can_be_written(found: list[Outcome]) -> None:
    wrong = {each.case.place: each.wrong for each in found if each.wrong}
    assert wrong == {}
    assert len(found) > 600


UNNAMED = {
    "additionalProperties: additionalProperties are allowed by default",
    "anyOf: anyOf complex types",
    "properties: object properties validation",
}
"""Whose instances have names that ``properties`` does not give."""


def test_all_that_is_valid_can_be_written_but_for_formats_and_names_not_given(found: list[Outcome]) -> None:
    narrower = {each.case.place for each in found if each.narrower}
    formats = {place for place in narrower if place.startswith("format: ")}
    assert narrower - formats - UNNAMED == {"ref: ref overrides any sibling keywords"}, "only of draft 7, where it did"
    assert narrower >= UNNAMED


def test_what_is_refused_is_refused_in_one_sentence_that_names_the_keyword(found: list[Outcome]) -> None:
    refused = [each for each in found if each.refused]
    assert refused
    for each in refused:
        assert re.fullmatch(r"[^\n]{20,400}[^.\n]", each.refused), each.refused
        assert "llguidance" not in each.refused.lower()
        assert not re.search("Unimplemented|Resource|coerce|Expect", each.refused), each.refused


def test_the_document_says_what_becomes_of_them(found: list[Outcome]) -> None:
    assert DOCUMENT.read_text("utf-8") == write(found), "run: python -m tests.agent.engine.schema_suite"
