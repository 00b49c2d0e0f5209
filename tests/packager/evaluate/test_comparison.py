"""``edge-packager diff``: what it says an update costs is what a device then fetches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.install.process.messages import Progressed
from contract.system.command_line import main
from packager.cli import COMMANDS
from packager.evaluate.comparison import compare_bundles, find_bundle
from tests.agent.install.market import Device, Market, make_variant


def diff(*words: str) -> int:
    return main("edge-packager", "", COMMANDS, ["diff", *words])


def test_the_bytes_it_names_are_those_that_a_device_fetches(tiny_bundle: Path, tmp_path: Path) -> None:
    weights = bytearray((tiny_bundle / "model.onnx.data").read_bytes())
    weights[1000] ^= 1
    market = Market(tmp_path / "market", tiny_bundle)
    market.publish("1.0.0")
    device = Device(tmp_path / "device")
    device.activate(device.install(market.job(tmp_path / "device", "1.0.0")))
    market.publish(
        "1.1.0",
        {
            "model.onnx.data": bytes(weights),
            "evidence/copy.json": (tiny_bundle / "tokenizer.json").read_bytes(),
            "evidence/new.txt": b"new",
            "evidence/again.txt": b"new",
        },
    )
    repository = Path(market.location)
    found = compare_bundles(find_bundle("tiny@1.0.0", repository), find_bundle("tiny@1.1.0", repository))

    device.install(market.job(tmp_path / "device", "1.1.0"))
    last = [line for line in device.lines if isinstance(line, Progressed)][-1]
    assert found.fetched_bytes == last.fetched
    assert (
        0 < found.fetched_bytes < found.total_bytes == last.total + (tiny_bundle / "tokenizer.json").stat().st_size + 3
    )
    changes = {change.path: (change.change, change.fetched_bytes) for change in found.files}
    assert changes.keys() == {"model.onnx.data", "evidence/copy.json", "evidence/new.txt", "evidence/again.txt"}
    assert changes["evidence/copy.json"] == ("added", 0)
    assert sorted([changes["evidence/new.txt"], changes["evidence/again.txt"]]) == [("added", 0), ("added", 3)]


def test_template_quality_and_removed_files_are_named(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tiny_bundle / "chat_template.jinja"
    template = old.read_text().replace("<|im_end|>", "<|stop|>")
    make_variant(
        tiny_bundle,
        tmp_path / "new",
        "2.0.0",
        {"chat_template.jinja": template.encode(), "evidence/README.md": None},
        quality={"kl": 0.25},
    )
    assert diff(str(tiny_bundle), str(tmp_path / "new")) == 0
    shown = capsys.readouterr().out
    assert "tiny@1.0.0 -> tiny@2.0.0" in shown
    assert "evidence/README.md" in shown and "removed" in shown
    assert any(line.startswith("quality.kl") and line.endswith("-> 0.25") for line in shown.splitlines())
    added = [line for line in shown.splitlines() if line.startswith("  +") and "+++" not in line]
    assert any("<|stop|>" in line for line in added)

    assert diff(str(tiny_bundle), str(tmp_path / "new"), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["identical"] is False
    assert {"field": "quality.kl", "after": 0.25}.items() <= next(
        change for change in found["fields"] if change["field"] == "quality.kl"
    ).items()


def test_a_bundle_is_the_same_as_itself(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert diff(str(tiny_bundle), str(tiny_bundle)) == 0
    assert "the same bundle, byte for byte" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("reference", "status", "words"),
    [
        ("nowhere", 2, "name a directory that holds manifest.json, or NAME@VERSION"),
        ("tiny@1.0.1", 2, "did you mean tiny@1.0.0?"),
        ("tiny@one", 3, "version"),
    ],
)
def test_what_cannot_be_found_is_one_sentence(
    tiny_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    reference: str,
    status: int,
    words: str,
) -> None:
    market = Market(tmp_path / "market", tiny_bundle)
    market.publish("1.0.0")
    capsys.readouterr()
    assert diff(reference, str(tiny_bundle), "--repo", market.location) == status
    shown = capsys.readouterr().err
    assert words in shown
    assert shown.count("\n") == 1
