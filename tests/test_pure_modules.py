"""A module that calls itself pure reads no clock, environment, file or chance, and starts nothing."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("agent", "contract", "edge_bundle", "fleet", "packager")

PURE = re.compile(r"(?:\A|[.:] |\()pure\b(?=[.:;,)]|$| arithmetic| and )", re.IGNORECASE)
"""As the last sentence of a docstring's first line, or as a word in brackets behind it."""

EFFECTS = frozenset({
    "asyncio", "fcntl", "http", "io", "logging", "multiprocessing", "os", "random", "secrets", "select", "selectors",
    "shutil", "signal", "socket", "sqlite3", "ssl", "subprocess", "tempfile", "threading", "time", "urllib", "uuid",
})  # fmt: skip
"""Modules of the standard library that reach the world outside."""

CALLS = frozenset({"open", "print", "input", "exec", "eval", "now", "utcnow", "today", "read_text", "read_bytes",
                   "write_text", "write_bytes", "unlink", "mkdir", "getenv"})  # fmt: skip

KNOWN = {
    "edge_bundle/completion.py": {"time"},  # `created`, which OpenAI's shape has
    "edge_bundle/request_session.py": {"secrets"},  # the id of a request that has none
}


@cache
def pure_modules() -> list[Path]:
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            source = path.read_text("utf-8")
            if "pure" not in source.lower():
                continue
            text = ast.get_docstring(ast.parse(source)) or ""
            if path.name != "__init__.py" and PURE.search(text.replace("\n", " ")):
                found.append(path)
    return found


def effects(tree: ast.Module) -> set[str]:
    """What ``tree`` uses of the world outside; imports for types alone do not count."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names} & EFFECTS
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {node.module.split(".")[0]} & EFFECTS
        elif isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            found |= {name} & CALLS
    return found


@pytest.mark.parametrize("path", pure_modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_it_is_pure(path: Path) -> None:
    assert effects(ast.parse(path.read_text("utf-8"))) == KNOWN.get(str(path.relative_to(ROOT)), set())


def test_every_room_has_pure_modules_and_impure_ones_are_noticed() -> None:
    found = {str(path.relative_to(ROOT)) for path in pure_modules()}
    assert {"agent/serving/scheduler.py", "agent/install/update/state_machine.py", "agent/install/planner.py",
            "agent/mqtt/outbox.py", "fleet/rollout/decide.py", "contract/system/backoff.py",
            "packager/watch/fleet.py"} <= found  # fmt: skip
    assert len(found) >= 45
    assert effects(ast.parse("import time\nfrom os import environ\nwith open('x') as file: pass")) == {
        "time",
        "os",
        "open",
    }
    assert effects(ast.parse("from datetime import datetime\ndatetime.now()")) == {"now"}
