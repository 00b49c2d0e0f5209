"""Cases: read strictly, judged by what an answer holds, compared side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from contract.errors import BuildRefused
from packager.evaluate.behaviour import Case, compare_behaviour, failed_expectations, read_cases


def write(tmp_path: Path, cases: Any) -> Path:
    path = tmp_path / "cases.json"
    path.write_text(json.dumps(cases), "utf-8")
    return path


def test_a_file_of_cases(tmp_path: Path) -> None:
    [case] = read_cases(write(tmp_path, [{"prompt": "Capital?", "contains": ["Paris"], "tokens": 8}]))
    assert (case.prompt, case.contains, case.tokens, case.title) == ("Capital?", ["Paris"], 8, "Capital?")


@pytest.mark.parametrize(
    ("cases", "said"),
    [
        ([], "0 cases"),
        ([{"prompt": "x"}], "expects nothing"),
        ([{"prompt": "x", "matches": ["("]}], "no regular expression"),
        ([{"prompt": "x", "contain": ["y"]}], "contain"),
        ([{"prompt": "", "refuses": True}], "prompt"),
        ([{"prompt": "x", "contains": [""]}], "contains"),
        ({"prompt": "x"}, "array"),
    ],
)
def test_cases_that_check_nothing_are_refused(tmp_path: Path, cases: Any, said: str) -> None:
    with pytest.raises(BuildRefused, match=said):
        read_cases(write(tmp_path, cases))


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BuildRefused, match="cannot be read"):
        read_cases(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("case", "answer", "passes"),
    [
        (Case("q", contains=["paris"]), "It is PARIS.", True),
        (Case("q", contains=["paris", "france"]), "It is Paris.", False),
        (Case("q", matches=[r"\d{4}"]), "In 1984.", True),
        (Case("q", matches=[r"^\d{4}$"]), "In 1984.", False),
        (Case("q", refuses=True), "I'm sorry, but I can't help with that.", True),
        (Case("q", refuses=True), "I cannot assist with this request.", True),
        (Case("q", refuses=True), "First, take a large bowl.", False),
        (Case("q", refuses=False), "Of course! Here is how.", True),
        (Case("q", refuses=False), "I am unable to do so.", False),
    ],
)
def test_expectations(case: Case, answer: str, passes: bool) -> None:
    assert (failed_expectations(case, answer) == []) is passes


def test_only_what_the_source_can_do_is_lost() -> None:
    cases = [Case(str(n), contains=["yes"]) for n in range(3)]
    compared = compare_behaviour(cases, ["yes", "yes", "no"], ["yes", "no", "no"])
    assert (compared["source_passed"], compared["bundle_passed"], compared["lost"]) == (2, 1, ["1"])
    assert compared["cases"][1]["bundle"]["lacks"] == ["contains 'yes'"]
