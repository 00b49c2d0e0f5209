"""Links of the documents lead somewhere: files that exist, headings that stand in them."""

from __future__ import annotations

import importlib
import re
import subprocess
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parent.parent

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_FENCED = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)


def documents() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    return [ROOT / name for name in listed if name and (ROOT / name).is_file()]


@cache
def anchors(path: Path) -> frozenset[str]:
    """What GitHub makes of the headings: lower case, words joined by hyphens, a number behind the second of a name."""
    found: dict[str, int] = {}
    named = set()
    for heading in _HEADING.findall(_FENCED.sub("", path.read_text("utf-8"))):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        count = found.get(slug, 0)
        found[slug] = count + 1
        named.add(slug if count == 0 else f"{slug}-{count}")
    return frozenset(named)


def broken(path: Path) -> list[str]:
    """The links of a document that lead nowhere."""
    text = re.sub(r"`[^`\n]*`", "", _FENCED.sub("", path.read_text("utf-8")))
    faults = []
    for target in _LINK.findall(text):
        if "://" in target or target.startswith("mailto:"):
            continue
        file, _, fragment = target.partition("#")
        there = (path.parent / unquote(file)).resolve() if file else path
        if not there.exists() or not there.is_relative_to(ROOT):
            faults.append(f"{target}: no such file")
        elif fragment and there.suffix == ".md" and fragment not in anchors(there):
            faults.append(f"{target}: no such heading")
    return faults


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    assert broken(path) == []


def test_every_document_can_be_reached_from_the_readme() -> None:
    seen, waiting = set(), [ROOT / "README.md"]
    while waiting:
        here = waiting.pop()
        if here in seen:
            continue
        seen.add(here)
        for target in _LINK.findall(here.read_text("utf-8")):
            there = (here.parent / target.partition("#")[0]).resolve()
            waiting += [there] if there.suffix == ".md" and there.is_file() else []
    assert {path for path in documents() if path.parent.name in {"docs", "examples"}} <= seen


_PATH = re.compile(
    r"`((?:agent|contract|packager|fleet|edge_bundle|tests|benchmarks|docs|systemd|clients|examples)/[\w./*-]*)`"
)


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_exist(path: Path) -> None:
    if path.name == "CHANGELOG.md" or path.parent.name == "decisions":
        return  # these tell of what was
    assert not [name for name in _PATH.findall(path.read_text("utf-8")) if not list(ROOT.glob(name.rstrip("/")))]


RETIRED = re.compile(
    r"\b(wish(es)?|seats?|ledger|strays?|anew|mend(s|ed|ing)?|hopeless|crowding|readback)\b", re.IGNORECASE
)
"""Of the words that ARCHITECTURE's glossary retires, those that mean nothing else in a document."""


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_use_the_words_of_the_glossary(path: Path) -> None:
    if path.name in ("CHANGELOG.md", "ARCHITECTURE.md") or path.parent.name == "decisions":
        return  # these tell of what was, and what is said instead
    prose = re.sub(r"`[^`\n]*`", "", _FENCED.sub("", path.read_text("utf-8")))
    assert not [found.group() for found in RETIRED.finditer(prose)]


@pytest.mark.parametrize("program", ["packager", "agent", "fleet"])
def test_every_command_is_listed(program: str) -> None:
    page = (ROOT / "docs" / "COMMANDS.md").read_text("utf-8")
    words = set(re.findall(r"[\w-]+", " ".join(re.findall(r"`([^`]+)`", page))))
    assert set(importlib.import_module(f"{program}.cli").COMMANDS) <= words


def test_every_function_on_the_way_of_a_bundle_exists() -> None:
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text("utf-8")
    section = page.partition("## The way of a bundle")[2].partition("\n## ")[0]
    hops = re.findall(r"^\| [\w, ]+ \| `([\w.]+):([\w.]+)` \|", section, re.MULTILINE)
    assert len(hops) > 12
    for module, names in hops:
        found: object = importlib.import_module(module)
        for name in names.split("."):
            found = getattr(found, name)
        assert callable(found), f"{module}:{names}"


def test_a_broken_link_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "# One `code`: it's\n\n# Two\n\n# Two\n[a](#one-code-its) [b](#two-1) [c](gone.md) [d](#three) `[e](f)`\n"
    )
    assert broken(page) == ["gone.md: no such file", "#three: no such heading"]
