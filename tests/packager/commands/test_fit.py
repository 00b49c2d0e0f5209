"""``edge-packager fit``: whether a device has room, before anything is sent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.engine.batched.graph import read_decoder
from agent.engine.config import read_config
from contract.bundle.device_plan import Box, least_ram
from contract.bundle.footprint import measure_footprint
from contract.onnx.wire import read_graph_file
from contract.system.command_line import main
from packager.cli import COMMANDS
from packager.commands.fit import plan_bundle
from packager.evaluate.comparison import find_bundle
from tests.agent.install.market import Market


def fit(*words: str) -> int:
    return main("edge-packager", "", COMMANDS, ["fit", *words])


def test_the_table_says_that_it_fits(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(str(tiny_bundle), "--ram", "1G", "--cores", "2", "--disk", "4G") == 0
    said = capsys.readouterr().out
    assert said.startswith("tiny@1.0.0 on 2 cores: it fits")
    assert "8 × 512 tokens" in said
    for row in ("weights", "keys and values", "prepacked", "disk, swap", "disk, both", "speed where built"):
        assert f"\n{row} " in said


def test_as_many_at_once_as_the_operator_will_have(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(str(tiny_bundle), "--ram", "1G", "--slots", "2") == 0
    assert "2 × 512 tokens" in capsys.readouterr().out


def test_what_does_not_fit_ends_with_1_and_one_sentence(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(str(tiny_bundle), "--ram", "300M", "--cores", "2") == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("memory is short by 5")
    assert "; what helps: a device with 35" in last
    assert fit(str(tiny_bundle), "--ram", "1G", "--disk", "100M", "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["fits"] is False
    assert document["short"].startswith("the disk is short by 15")


def test_a_published_bundle_is_planned_like_its_directory(tiny_bundle: Path, tmp_path: Path) -> None:
    market = Market(tmp_path, tiny_bundle)
    market.publish("1.0.0")
    box = Box(1 << 30, 2)
    published = plan_bundle(find_bundle("tiny@1.0.0", Path(market.location)), box)
    assert published.footprint == plan_bundle(find_bundle(str(tiny_bundle), tmp_path), box).footprint


def test_the_numbers_are_those_that_the_engine_plans_with(tiny_bundle: Path) -> None:
    facts = read_config(tiny_bundle)
    footprint = measure_footprint(facts, lambda name: read_graph_file(tiny_bundle / name))
    decoder = read_decoder(tiny_bundle, facts)
    assert footprint.kv_token == decoder.kv_bytes_per_token
    assert footprint.kv_type == "fp32"
    files = sum((tiny_bundle / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    assert 0.8 * files < footprint.originals + footprint.rest < 1.1 * files, "the shared table counts twice"
    assert plan_bundle(find_bundle(str(tiny_bundle), tiny_bundle), Box(least_ram(footprint), 1)).fits


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ram", "four"], "--ram 'four' is no size: write it like 4G or 3800M"),
        (["--ram", "0"], "is no size"),
        (["--ram", "4"], "--ram '4' is less than a megabyte; is its unit missing? write it, like 4G or 3800M"),
        (
            ["--ram", "4G", "--context", "2048"],
            "--context 2048 is more than tiny@1.0.0 was made for: its model has 512",
        ),
        (["--ram", "4G", "--disk", "-1G"], "--disk"),
        (["--ram", "4G", "--cores", "0"], "--cores must be between 1 and 1024"),
        (["--ram", "4G", "--slots", "9"], "--slots must be between 0 and 8"),
        (["--ram", "4G", "--context", "0"], "--context must be at least 1"),
    ],
)
def test_a_device_that_is_none_is_named(
    tiny_bundle: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(str(tiny_bundle), *_pairs(words)) == 2
    assert said in capsys.readouterr().err


def _pairs(words: list[str]) -> list[str]:
    return [f"{name}={value}" for name, value in zip(words[::2], words[1::2], strict=True)]


def test_what_is_no_bundle_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(str(tmp_path), "--ram", "4G") == 2
    assert "edge-packager" in capsys.readouterr().err
