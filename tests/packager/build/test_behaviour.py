"""``--system-prompt``, ``--chat-template`` and ``--generation``: what becomes a signed default, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from contract.bundle.manifest import Behaviour, GenerationDefaults, parse_manifest
from contract.errors import UsageError
from contract.system.command_line import main
from packager.build.behaviour import complete_behaviour, generation_of_source, read_generation, read_system_prompt
from packager.cli import COMMANDS
from tests.tiny import TEMPLATE


def packager(*words: str) -> int:
    return main("edge-packager", "", COMMANDS, list(words))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["temperature=0.7,max_tokens=256"], GenerationDefaults(temperature=0.7, max_tokens=256)),
        (["temperature=0", "top_k=40"], GenerationDefaults(temperature=0, top_k=40)),
        (["stop=,,max_tokens=5"], GenerationDefaults(stop=[","], max_tokens=5)),
        (["stop=<|end|>", "stop=a, b"], GenerationDefaults(stop=["<|end|>", "a, b"])),
        (['stop=["x,y=z","w"]'], GenerationDefaults(stop=["x,y=z", "w"])),
        (["stop=[not json"], GenerationDefaults(stop=["[not json"])),
        ([], GenerationDefaults()),
    ],
)
def test_generation_options_are_read(options: list[str], expected: GenerationDefaults) -> None:
    assert read_generation(options) == expected


@pytest.mark.parametrize(
    ("option", "field", "words"),
    [
        ("temprature=1", "generation.temprature", "did you mean temperature?"),
        ("temperature=hot", "generation.temperature", "is not a number"),
        ("temperature=3", "generation.temperature", "<= 2"),
        ("max_tokens=0", "generation.max_tokens", ">= 1"),
        ("max_tokens=1.5", "generation.max_tokens", "int"),
        ("temperature=nan", "generation.temperature", "not a number"),
        ("temperature", "generation.temperature", "needs a value"),
        ("stop=", "generation.stop", "needs a value"),
        ("seed=1", "generation.seed", "choose from"),
    ],
)
def test_what_no_request_could_say_is_refused(option: str, field: str, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        read_generation([option])
    assert words in refused.value.message.lower()
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        # As Qwen2.5, Llama 3.2 and Phi-3.5 publish theirs.
        (
            {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.1},
            GenerationDefaults(temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.1),
        ),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, GenerationDefaults(temperature=0.6, top_p=0.9)),
        ({"eos_token_id": [32007, 32001, 32000], "pad_token_id": 32000}, GenerationDefaults()),
        ({"temperature": 0.6, "top_p": 0.9}, GenerationDefaults()),
        ({"do_sample": True}, GenerationDefaults(temperature=1.0)),
        ({"max_new_tokens": 100, "stop_strings": "END"}, GenerationDefaults(max_tokens=100, stop=["END"])),
        ({"do_sample": False, "repetition_penalty": 1.0}, GenerationDefaults()),
    ],
)
def test_the_sources_own_defaults_count_as_transformers_applies_them(
    tmp_path: Path, document: dict[str, Any], expected: GenerationDefaults
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(document))
    assert generation_of_source(tmp_path) == expected


def test_what_is_asked_for_goes_before_what_the_source_says(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.7, "top_k": 20}')
    asked = Behaviour(system_prompt="Be brief.", generation=GenerationDefaults(temperature=0.0))
    assert complete_behaviour(asked, tmp_path) == Behaviour(
        system_prompt="Be brief.", generation=GenerationDefaults(temperature=0.0, top_k=20)
    )
    (tmp_path / "generation_config.json").unlink()
    assert complete_behaviour(Behaviour(), tmp_path) is None


def test_a_system_prompt_may_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Two\nlines.\n")
    assert read_system_prompt(f"@{tmp_path}/prompt.txt") == "Two\nlines."
    for text in ("", "  ", f"@{tmp_path}/none.txt"):
        with pytest.raises(UsageError, match="--system-prompt") as refused:
            read_system_prompt(text)
        assert refused.value.field == "system-prompt"


def test_a_build_signs_them_and_runs_with_the_new_template(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_checkpoint, source)
    (source / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.7}')
    template = tmp_path / "own.jinja"
    template.write_text(TEMPLATE.replace("{% for", "{# ours #}{% for", 1))
    words = [
        "build", str(source), "--name", "clerk", "--version", "1.0.0", "--out", str(tmp_path / "bundle"), "--json",
        "--quantizer", "rtn", "--cache", str(tmp_path / "cache"), "--system-prompt", "Be brief.",
        "--chat-template", str(template),
        "--generation", "max_tokens=20,stop=END",
    ]  # fmt: skip
    assert packager(*words) == 0, capsys.readouterr().err
    manifest = parse_manifest((tmp_path / "bundle" / "manifest.json").read_bytes())
    assert manifest.behaviour == Behaviour(
        system_prompt="Be brief.",
        chat_template="chat_template.jinja",
        generation=GenerationDefaults(temperature=0.7, max_tokens=20, stop=["END"]),
    )
    assert (tmp_path / "bundle" / "chat_template.jinja").read_text() == template.read_text()
    assert manifest.canary[0].expected_text == "The capital of France is Paris."
    assert manifest.provenance["source"]["chat_template"] == manifest.model.chat_template_sha256
    # Packing the same folder again takes the same road.
    folder = tmp_path / "folder"
    shutil.copytree(tmp_path / "bundle", folder, ignore=shutil.ignore_patterns("manifest.json", "evidence"))
    words = ["pack", str(folder), "--name", "clerk", "--version", "1.0.1", "--out", str(tmp_path / "packed"), "--json"]
    assert packager(*words, "--cache", str(tmp_path / "cache"), "--generation", "top_k=3") == 0
    packed = parse_manifest((tmp_path / "packed" / "manifest.json").read_bytes())
    assert packed.behaviour == Behaviour(generation=GenerationDefaults(top_k=3))


@pytest.mark.parametrize(
    ("option", "content", "words"),
    [
        ("--chat-template", "{% for message in messages %}", "line 1"),
        ("--chat-template", None, "cannot be read"),
        ("--system-prompt", "", "empty"),
    ],
)
def test_what_cannot_be_used_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, content: str | None, words: str
) -> None:
    value = tmp_path / "given"
    if content is not None:
        value.write_text(content)
    given = str(value) if option == "--chat-template" else f"@{value}"
    assert packager("build", str(tmp_path), "--name", "a", "--version", "1.0.0", option, given) == 2
    shown = capsys.readouterr().err
    assert words in shown
    assert shown.count("\n") == 1
