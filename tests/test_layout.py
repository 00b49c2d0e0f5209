"""Tests mirror the packages."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.layout import ROOT, complaints, folders_of, packages_of, without_a_package, without_tests


def test_every_folder_of_tests_mirrors_a_package_or_says_what_it_is() -> None:
    assert complaints() == []


def test_no_folder_of_tests_is_left_out_when_they_are_collected(pytestconfig: pytest.Config) -> None:
    left_out = pytestconfig.getini("norecursedirs")
    assert left_out
    parts = {part for folder in folders_of(ROOT / "tests") for part in folder.split("/")}
    assert [part for part in parts if any(fnmatch(part, pattern) for pattern in left_out)] == []


def test_what_stands_elsewhere_is_found() -> None:
    packages = {"agent": 3, "agent/install": 5, "agent/operator": 1, "agent/mqtt": 2}
    assert without_a_package(["agent", "agent/trust"], packages, {}) == ["tests/agent/trust mirrors no package"]
    assert without_a_package(["agent", "e2e"], packages, {"e2e": "the whole way"}) == []
    assert without_tests(["agent", "agent/install"], packages) == ["agent/mqtt has no folder tests/agent/mqtt"]


@pytest.mark.parametrize("beside", ["gone", "agent"])
def test_a_reason_that_is_needed_no_more_is_found(beside: str) -> None:
    found = without_a_package(["agent"], {"agent": 3}, {beside: "a reason"})
    assert found == [f"there is no reason to explain tests/{beside}"]


def test_folders_and_packages_are_read_from_the_disk(tmp_path: Path) -> None:
    for file in (
        "agent/__init__.py",
        "agent/app.py",
        "agent/mqtt/__init__.py",
        "tests/agent/test_app.py",
        "tests/x.py",
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / "examples").mkdir()
    assert packages_of(tmp_path) == {"agent": 1, "agent/mqtt": 0, "examples": 0}
    assert folders_of(tmp_path) == ["agent"]
    assert "agent" in packages_of(tmp_path)
