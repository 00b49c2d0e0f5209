"""The check of the vocabulary finds what it is to find, and nothing else."""

from __future__ import annotations

import pytest

from tests.vocabulary.check import Use, complaints, find
from tests.vocabulary.exceptions import EXCEPTIONS


@pytest.mark.parametrize(
    "source",
    [
        "class NobodyServed: ...",
        "def carry_out_wish(): ...",
        "def apply(*, wish): ...",
        "apply(wish=1)",
        "from agent.install import wishes",
        "self._told = True",
        "for place in range(3): ...",
        "raise Error('it was tried and never came through')",
        "log.info(f'{name} is on its way')",
    ],
)
def test_a_retired_word_is_found_wherever_it_stands(source: str) -> None:
    assert list(find("agent/module.py", source))


def test_a_module_is_found_by_its_own_name() -> None:
    assert [use.found for use in find("packager/exam.py", "")] == ["exam"]


@pytest.mark.parametrize(
    "source",
    [
        '"""A docstring may tell of a wish."""',
        "replacement = 1",  # has place in it, and is another word
        "reason = 'wish'",  # no text for people: a word by itself is an identifier of something else
        "x = 'a sealed bundle is present'",
    ],
)
def test_other_words_are_left_alone(source: str) -> None:
    assert not list(find("agent/module.py", source))


def test_an_exception_that_is_not_needed_any_more_has_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXCEPTIONS, "agent/no_such_module.py", "not done yet")
    used = [Use(file, 1, "wish", "target") for file in EXCEPTIONS if file != "agent/no_such_module.py"]
    assert complaints(used) == [
        "tests/vocabulary/exceptions.py: agent/no_such_module.py uses no retired words: remove it"
    ]
    assert len(complaints([*used, Use("agent/other.py", 7, "wish", "target: why")])) == 2
