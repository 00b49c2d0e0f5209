"""The help of every command of all programs is enough to work with: what it is for, examples, exit status."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Callable

import pytest

from agent.cli import COMMANDS as AGENT
from agent.cli import main as agent
from fleet.cli import COMMANDS as FLEET
from fleet.cli import main as fleet
from packager.cli import COMMANDS as PACKAGER
from packager.cli import main as packager

PROGRAMS = [("edge-agent", agent, AGENT), ("edge-packager", packager, PACKAGER), ("edge-fleet", fleet, FLEET)]
ALL = [(program, main, name) for program, main, commands in PROGRAMS for name in commands]


def name_of(each: object) -> str:
    return each if isinstance(each, str) else ""


def ask(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], main: Callable[[], int], *words: str
) -> str:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "argv", ["program", *words, "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("program", "main", "name"), ALL, ids=name_of)
def test_help_has_examples_and_exit_statuses(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    program: str,
    main: Callable[[], int],
    name: str,
) -> None:
    text = ask(monkeypatch, capsys, main, name)
    assert f"{program} {name}" in text.lower().partition("example")[2]
    assert "exit status" in text.lower()
    # Every option says what it is for.
    for line in text.splitlines():
        if line.startswith("  --") and len(line.split()) == 1:
            pytest.fail(f"{line.strip()} has no help")


@pytest.mark.parametrize(
    ("program", "main", "commands"), PROGRAMS, ids=lambda each: each if isinstance(each, str) else ""
)
def test_the_program_lists_its_commands(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    program: str,
    main: Callable[[], int],
    commands: dict[str, tuple[str, str]],
) -> None:
    text = ask(monkeypatch, capsys, main)
    for name, (_, what) in commands.items():
        assert re.search(rf"^    {name}\s", text, re.MULTILINE)
        assert what.split()[0] in text, program


@pytest.mark.parametrize(("program", "main"), [each[:2] for each in PROGRAMS], ids=name_of)
def test_the_program_says_its_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], program: str, main: Callable[[], int]
) -> None:
    monkeypatch.setattr(sys, "argv", [program, "--version"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{program} {importlib.metadata.version('edge-bundle')}\n"
