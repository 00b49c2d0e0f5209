"""The matrix of layouts and kinds of source. ``make layouts`` runs all of it; every run of the tests a part."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from contract.errors import BuildRefused
from packager.sources import pickled, text_only
from packager.sources.checkpoint import Checkpoint
from packager.sources.gguf_process import convert as convert_gguf
from packager.sources.jobs import PICKLED, TEXT_CONFIG, GgufJob
from packager.sources.opening import SourceOptions, convert_directory
from packager.sources.pickled_process import convert
from packager.sources.text_config_process import resolve
from packager.subprocess_job import Reporter, Task
from tests.packager.matrix import KINDS, LAYOUTS, REFUSED, is_quick, show, table
from tests.packager.sources.test_published import reference_of

CELLS = [
    pytest.param(layout, kind, marks=[] if is_quick(layout, kind) else pytest.mark.layouts)
    for layout in LAYOUTS
    for kind in KINDS
]


@pytest.fixture(autouse=True)
def children_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What processes of their own do, in this one: loading their libraries takes longer than their work."""

    def run(task: Task[Any, Any], job: Any, log: Path, **more: Any) -> Any:
        work: Any = {TEXT_CONFIG.module: resolve, PICKLED.module: convert}[task.module]
        return work(job, Reporter(os.open(os.devnull, os.O_WRONLY)))

    monkeypatch.setattr(text_only, "run_child", run)
    monkeypatch.setattr(pickled, "run_child", run)


@pytest.mark.parametrize(("layout", "kind"), CELLS)
def test_it_becomes_the_source_or_is_refused(layout: str, kind: str, tmp_path: Path) -> None:
    def opening(path: Path, text: bool) -> Checkpoint:
        options = SourceOptions(text_only=text)
        digest = hashlib.sha256(str(path).encode()).hexdigest()
        return convert_directory(path, digest, tmp_path / "cache", tmp_path / "log", options)

    def read_gguf(path: Path, out: Path) -> Path:
        out.mkdir()
        convert_gguf(GgufJob(str(path), str(out)), Reporter(os.open(os.devnull, os.O_WRONLY)))
        return out

    if (layout, kind) not in REFUSED:
        show(layout, kind, tmp_path, opening, read_gguf, reference_of)
        return
    with pytest.raises(BuildRefused) as caught:
        show(layout, kind, tmp_path, opening, read_gguf, reference_of)
    assert REFUSED[layout, kind][0] in caught.value.message


def test_the_documentation_says_what_was_shown() -> None:
    assert "\n".join(table()) in (Path(__file__).parents[2] / "docs" / "FAMILIES.md").read_text("utf-8")
