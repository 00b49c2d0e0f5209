"""The evidence page: complete, self-contained, escaped; and the plots' arithmetic."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from contract.onnx.wire import read_graph_file
from packager.graph.facts import read_back
from packager.report import write_report
from packager.report.parts import bytes_by_part
from packager.report.plots import scatter_over_positions, stacked_bars


def read(bundle: Path, name: str) -> Any:
    return json.loads((bundle / "evidence" / name).read_text("utf-8"))


def test_the_page_stands_alone(tiny_bundle: Path) -> None:
    page = (tiny_bundle / "evidence/report.html").read_text("utf-8")
    assert not re.search(r"<(script|link|img|iframe|object)\b|@import|url\(|(src|href)=", page)
    assert page.count("<svg") == 2
    assert "tiny@1.0.0" in page
    assert "The capital of France is Paris." in page
    HTMLParser().feed(page)


def test_plots_are_well_formed_and_hold_no_nan(tiny_bundle: Path) -> None:
    page = (tiny_bundle / "evidence/report.html").read_text("utf-8")
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)
        assert "nan" not in svg
        assert "inf" not in svg


def test_every_byte_of_the_graph_has_a_part(tiny_bundle: Path) -> None:
    config, graph = read_back(tiny_bundle)
    parts = bytes_by_part(read_graph_file(tiny_bundle / config.filename), config.layers)
    assert sum(sum(kinds.values()) for kinds in parts.values()) == graph.tensor_bytes
    assert [part for part in parts if part.isdigit()] == ["0", "1"]
    assert parts["head"]["weights"] > 0


def test_what_a_model_says_cannot_become_markup(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    _, graph = read_back(folder)
    hostile = "<script>alert(1)</script>"
    quality = read(folder, "quality.json")
    quality["canaries"][0]["bundle"] = quality["text"]["name"] = hostile
    quality["limits"]["accepted"] = {"reason": hostile, "faults": [hostile]}
    case = {"name": hostile, "prompt": hostile, "source": {"answer": hostile, "lacks": [hostile]}}
    quality["behaviour"] = {
        "cases": [{**case, "bundle": case["source"]}],
        "source_passed": 0,
        "bundle_passed": 0,
        "lost": [],
    }
    write_report(folder, hostile, quality, {"source": hostile}, graph)
    page = (folder / "evidence/report.html").read_text("utf-8")
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 8


def test_a_folder_without_a_source_has_a_page_too(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    _, graph = read_back(folder)
    write_report(folder, "packed@1.0.0", {"embedding": "int4"}, {}, graph)
    assert "There was no source" in (folder / "evidence/report.html").read_text("utf-8")


@pytest.mark.parametrize("values", [[0.0], [0.0, 1e-9, 3.0], [12.5] * 300])
def test_positions_of_any_size_fit_the_plot(values: list[float]) -> None:
    svg = scatter_over_positions("t", values, sum(values) / len(values), 255)
    heights = [float(y) for y in re.findall(r"M[\d.]+ ([\d.]+)h0", svg)]
    assert len(heights) == len(values)
    assert all(0 <= y <= 320 for y in heights)


def test_bars_are_as_tall_as_their_values() -> None:
    svg = stacked_bars("t", ["0", "head"], ["weights", "scales"], [[1.0, 0.5], [4.0, 2.0]])
    heights = [float(tall) for tall in re.findall(r'height="([\d.]+)" fill="[^"]+"><title>', svg)]
    assert heights[2] == pytest.approx(4 * heights[0], rel=0.01)
    assert heights[3] == pytest.approx(2 * heights[0], rel=0.01)
