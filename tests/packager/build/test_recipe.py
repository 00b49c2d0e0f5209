"""Recipes: the options of a build in a file, and a build made again from what it wrote down of itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from contract.bundle.manifest import parse_manifest
from contract.system.command_line import main
from packager.cli import COMMANDS
from tests.tiny import TEMPLATE


def build(*words: str | Path) -> int:
    return main("edge-packager", "", COMMANDS, ["build", *map(str, words)])


def contents(bundle: Path) -> dict[str, bytes]:
    """Every file but the manifest, which has times and measurements."""
    return {
        path.relative_to(bundle).as_posix(): path.read_bytes()
        for path in bundle.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


def write_recipe(path: Path, checkpoint: Path, more: str = "") -> Path:
    (path.parent / "own.jinja").write_text(TEMPLATE)
    path.write_text(
        f'source = "{checkpoint}"\nname = "clerk"\nversion = "1.0.0"\nblock_size = 16\nchat_template = "own.jinja"\n'
        f'system_prompt = "Be brief."\n{more}\n[generation]\ntemperature = 0.5\nstop = ["END"]\n'
    )
    return path


def test_a_recipe_says_what_the_command_line_leaves_out(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "clerk.toml", tiny_checkpoint)
    words: list[str | Path] = ["--recipe", recipe, "--cache", tmp_path / "cache", "--out", tmp_path / "a", "--json"]
    assert build("--version", "1.2.0", *words) == 0, capsys.readouterr().err
    manifest = parse_manifest((tmp_path / "a" / "manifest.json").read_bytes())
    assert (manifest.reference, manifest.model.block_size) == ("clerk@1.2.0", 16)
    assert manifest.behaviour is not None
    assert (manifest.behaviour.system_prompt, manifest.behaviour.generation.stop) == ("Be brief.", ["END"])
    assert str(tmp_path) not in (tmp_path / "a" / "evidence" / "provenance.json").read_text()

    # From what it wrote down of itself, with the files that it does not hold, the same bytes.
    moved = tmp_path / "elsewhere"
    shutil.copytree(tiny_checkpoint, moved / tiny_checkpoint.name)
    words = ["--from", tmp_path / "a", "--cache", tmp_path / "cache", "--out", tmp_path / "b", "--json"]
    template = ["--chat-template", tmp_path / "own.jinja"]
    assert build(moved / tiny_checkpoint.name, *template, *words) == 0, capsys.readouterr().err
    again = parse_manifest((tmp_path / "b" / "manifest.json").read_bytes())
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert again.behaviour == manifest.behaviour
    assert [entry.sha256 for entry in again.files] == [entry.sha256 for entry in manifest.files]

    # What was used and is not named, or is another, is refused before anything is built.
    capsys.readouterr()
    words = ["--from", tmp_path / "a" / "evidence" / "provenance.json", "--cache", tmp_path / "cache"]
    assert build(moved / tiny_checkpoint.name, *words) == 2
    assert "name it with --chat-template" in capsys.readouterr().err
    assert build(*template, *words) == 2
    assert "name it as SOURCE" in capsys.readouterr().err
    (tmp_path / "own.jinja").write_text(TEMPLATE + " ")
    assert build(moved / tiny_checkpoint.name, *template, *words) == 2
    assert "is not the file that was used" in capsys.readouterr().err
    (tmp_path / "own.jinja").write_text(TEMPLATE)
    (moved / tiny_checkpoint.name / "README.md").write_text("another\n")
    assert build(moved / tiny_checkpoint.name, *template, *words, "--out", tmp_path / "c") == 3
    assert "is not the source of that build" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_a_dry_run_says_what_would_be_built_and_makes_nothing(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "clerk.toml", tiny_checkpoint)
    words: list[str | Path] = ["--recipe", recipe, "--dry-run", "--cache", tmp_path / "cache", "--out", tmp_path / "a"]
    assert build(*words) == 0
    shown = capsys.readouterr().out
    assert "clerk@1.0.0 would be built from checkpoint" in shown
    assert "LlamaForCausalLM" in shown
    assert "MiB of memory" in shown
    assert '"system_prompt":"Be brief."' in shown
    assert build(*words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["bundle"], found["precision"], found["chat_template"]) == ("clerk@1.0.0", "int4", True)
    assert found["estimate"]["memory_bytes"] > 0
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "cache" / "graphs").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('nmae = "x"', "did you mean name?"),
        ('"block-size" = 16', "did you mean block_size?"),
        ('block_size = "16"', "block_size"),
        ("name = ", "is not TOML"),
        ("[generation]\ntemprature = 1", "temprature"),
        ('name = "x"\nversion = "1.0.0"', "SOURCE is required"),
        ('source = "x"\nversion = "1.0.0"', "--name is required"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    assert build("--recipe", tmp_path / "recipe.toml") == 2
    shown = capsys.readouterr().err
    assert words in shown
    assert shown.strip().count("\n") <= (1 if "TOML" in words else 0)


@pytest.mark.parametrize("content", [None, "{}", "[1]", '{"recipe": {"nmae": "x"}, "source": {}, "tools": {}}'])
def test_evidence_that_holds_no_recipe_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any
) -> None:
    if content is not None:
        (tmp_path / "provenance.json").write_text(content)
    assert build("x", "--from", tmp_path / "provenance.json") == 2
    assert "provenance.json" in capsys.readouterr().err
