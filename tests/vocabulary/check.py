"""Finds retired words in the identifiers and texts of the product packages."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from msgspec import Struct

from tests.vocabulary.exceptions import EXCEPTIONS
from tests.vocabulary.retired import PHRASES, WORDS

PACKAGES = ("agent", "contract", "edge_bundle", "packager")

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_PHRASES = [(re.compile(pattern, re.IGNORECASE), instead) for pattern, instead in PHRASES.items()]


class Use(Struct, frozen=True):
    """A retired word in ``file``: ``found`` is the identifier or the text around the phrase."""

    file: str
    line: int
    found: str
    instead: str


STANDARD = {"tell"}
"""Names of the standard library, which are what they are."""


@cache
def retired_in(identifier: str) -> str | None:
    """What is said instead of the first retired word in ``identifier``; None if there is none."""
    words = () if identifier in STANDARD else (word.lower() for word in _WORD.findall(identifier))
    return next((f"{word}: {WORDS[word]}" for word in words if word in WORDS), None)


def identifiers(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every name that the module defines or uses as a parameter, keyword, variable, attribute or import."""
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield node.lineno, name
            case ast.arg(arg=name) | ast.Attribute(attr=name) | ast.Name(id=name):
                yield node.lineno, name
            case ast.keyword(arg=str(name)):
                yield node.value.lineno, name
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                yield from ((node.lineno, alias.asname or alias.name) for alias in aliases)
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)):
                yield node.lineno, name
            case _:
                pass


def texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every text but docstrings: what may be shown to a person has a space in it."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if " " in text and id(node) not in docstrings:
                yield node.lineno, text
            case _:
                pass


def find(file: str, source: str) -> Iterator[Use]:
    """Retired words in one module, in no order."""
    stem = Path(file).stem
    if (instead := retired_in(stem)) is not None:
        yield Use(file, 1, stem, instead)
    tree = ast.parse(source)
    for line, name in identifiers(tree):
        if (instead := retired_in(name)) is not None:
            yield Use(file, line, name, instead)
    for line, text in texts(tree):
        for pattern, instead in _PHRASES:
            if (found := pattern.search(text)) is not None:
                yield Use(file, line, found[0], instead)


def find_all(root: Path) -> list[Use]:
    """Retired words in the product packages below ``root``."""
    files = sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))
    return [use for path in files for use in find(path.relative_to(root).as_posix(), path.read_text("utf-8"))]


def complaints(uses: list[Use]) -> list[str]:
    """One line for every use that is no listed exception, and for every exception that is not needed any more."""
    found = [f"{use.file}:{use.line}: {use.found} ({use.instead})" for use in uses if use.file not in EXCEPTIONS]
    used = {use.file for use in uses}
    idle = [file for file in EXCEPTIONS if file not in used]
    return found + [f"tests/vocabulary/exceptions.py: {file} uses no retired words: remove it" for file in idle]
