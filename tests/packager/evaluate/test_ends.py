"""What ends a turn: found wherever a source says it, put into the runtime's mouth, and held against the source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from contract.bundle.canary import STOP_TOKENS
from contract.bundle.genai_config import CONFIG_FILE
from contract.bundle.manifest import MANIFEST_FILE, parse_manifest
from packager.evaluate.assessment import find_endless
from packager.evaluate.check import CANARY_QUESTIONS
from packager.evaluate.check_process import Runtime, _stopping
from packager.evaluate.conformance import compare_ends
from packager.evaluate.ends import find_ends
from packager.evaluate.gates import DEFAULT_LIMITS, find_faults
from packager.evaluate.jobs import CheckResult, SourceView
from packager.graph.facts import read_back
from tests.packager.families import build_here
from tests.packager.published import PUBLISHED, write_layout


def ends_of(source: Path) -> dict[int, list[str]]:
    from transformers import AutoTokenizer

    return find_ends(source, AutoTokenizer.from_pretrained(source))


def written(tmp_path: Path, name: str, **changes: Any) -> Path:
    return write_layout(tmp_path / "source", msgspec.structs.replace(PUBLISHED[name], **changes))


class TestFound:
    def test_in_every_file_that_says_so(self, tmp_path: Path) -> None:
        found = ends_of(written(tmp_path, "llama-3.1"))
        assert found[321] == found[324] == ["generation_config.json", "config.json"]
        assert found[325] == ["generation_config.json", "config.json", "chat template"]

    def test_in_the_template_alone(self, tmp_path: Path) -> None:
        """As Phi-3.5 is published here: config.json knows only ``</s>``."""
        source = written(tmp_path, "phi-3.5-mini")
        end = json.loads((source / "tokenizer.json").read_text())["added_tokens"]
        [number] = [token["id"] for token in end if token["content"] == "<|end|>"]
        assert ends_of(source)[number] == ["chat template"]

    def test_where_the_template_ends_a_turn_only_if_another_follows(self, tmp_path: Path) -> None:
        template = (
            "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content }}"
            "{% if not loop.last %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
        )
        source = written(tmp_path, "qwen2.5", template=template, generation=None)
        assert "chat template" in ends_of(source)[322]

    def test_of_a_template_that_takes_parts_alone(self, tmp_path: Path) -> None:
        template = (
            "{% for message in messages %}{{ '<|im_start|>' + message.role }}{% for part in message.content %}"
            "{{ part['text'] }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
        )
        assert "chat template" in ends_of(written(tmp_path, "qwen2.5", template=template))[322]

    def test_none_by_a_template_that_raises(self, tmp_path: Path) -> None:
        found = ends_of(written(tmp_path, "qwen2.5", template="{{ raise_exception('no') }}"))
        assert found == {322: ["generation_config.json", "config.json"], 320: ["generation_config.json"]}


class TestForced:
    @pytest.mark.parametrize("name", ["phi-3.5-mini", "llama-3.1", "gemma-3-270m"])
    def test_every_end_token_ends_generation(self, name: str, tmp_path: Path) -> None:
        source = write_layout(tmp_path / "source", PUBLISHED[name])
        report = build_here(source, tmp_path / "out", "fp32")
        config, _ = read_back(tmp_path / "out")
        assert compare_ends(report.ends, config) == []
        runtime = Runtime(tmp_path / "out", 1)
        assert set(_stopping(runtime)) >= set(ends_of(source))
        assert not runtime.stops_at(10, "x")

    def test_one_that_was_forgotten(self, tmp_path: Path) -> None:
        source = write_layout(tmp_path / "source", PUBLISHED["phi-3.5-mini"])
        report = build_here(source, tmp_path / "out", "fp32")
        file = tmp_path / "out" / CONFIG_FILE
        document = json.loads(file.read_text())
        document["model"]["eos_token_id"] = [2]
        file.write_text(json.dumps(document))
        config, _ = read_back(tmp_path / "out")
        [fault] = compare_ends(report.ends, config)
        assert "<|end|>" in fault
        assert "ends a turn by chat template, does not end an answer" in fault
        last = report.ends[-1].token
        assert not Runtime(tmp_path / "out", 1).stops_at(last, "x")


class TestCanaries:
    def test_those_at_which_the_source_stops_must_stop(self, tiny_bundle: Path) -> None:
        manifest = parse_manifest((tiny_bundle / MANIFEST_FILE).read_bytes())
        assert [canary.stops for canary in manifest.canary] == [True] * len(CANARY_QUESTIONS)
        stops = manifest.quality["stops"]
        assert stops["canaries"] == len(CANARY_QUESTIONS)
        assert stops["forced"] == [2]
        assert stops["tokens"] == [
            {"token": 2, "text": "<|im_end|>",
             "named_by": ["generation_config.json", "config.json", "chat template"]}
        ]  # fmt: skip

    def heard(self, *ended: bool) -> SourceView:
        return SourceView([], 0, 0, "float32", [], list(ended), rows=Path())

    def checked(self, *ended: bool) -> CheckResult:
        return CheckResult([], 0.0, 0.0, 0, 1, ended=list(ended))

    def test_one_of_them_must_end_here_too(self) -> None:
        endless = find_endless(self.heard(False, True, True), self.checked(True, False, False))
        assert endless == list(CANARY_QUESTIONS[1:])
        [fault] = find_faults(DEFAULT_LIMITS["int4"], None, None, endless=endless)
        assert "its answers do not end where the source's do, first at 'Write one" in fault
        assert find_endless(self.heard(False, True, True), self.checked(False, False, True)) == []
        assert find_endless(self.heard(False, False, False), self.checked(False, False, False)) == []
        assert find_endless(None, self.checked(False, False, False)) == []

    def test_an_answer_that_never_ends_is_waited_for_so_long(self, tmp_path: Path) -> None:
        source = write_layout(tmp_path / "source", PUBLISHED["llama-3.1"])
        build_here(source, tmp_path / "out", "fp32")
        answer = Runtime(tmp_path / "out", 1).answer("once", 8, STOP_TOKENS)
        assert answer.ended or answer.tokens == STOP_TOKENS
