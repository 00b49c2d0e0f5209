"""docs/PYTHON.md names what the client offers: every public name, method and keyword, with its default."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import edge_bundle
from edge_bundle import AsyncChat, AsyncClient, Chat, Client

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "PYTHON.md").read_text("utf-8")
PROSE = re.sub(r"^```.*?^```", "", PAGE, flags=re.MULTILINE | re.DOTALL)
WORDS = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", PROSE))))


def public(kind: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}


def test_every_public_name_is_there() -> None:
    assert set(edge_bundle.__all__) <= WORDS, set(edge_bundle.__all__) - WORDS


def test_every_method_is_there() -> None:
    internal = {"leave", "asking", "answered"}
    offered = public(AsyncClient) | public(Client) | public(AsyncChat) | public(Chat)
    assert {"complete", "stream", "ask", "devices", "cancel", "chat"} <= offered
    assert offered - internal <= WORDS, offered - internal - WORDS


def test_every_keyword_is_there_with_its_default() -> None:
    for name, parameter in inspect.signature(AsyncClient.complete).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            (row,) = re.findall(rf"^\| [^|]*`{name}`[^|]* \| ([^|]*) \|", PAGE, re.MULTILINE)
            default = parameter.default
            shown = {None: ("one of them is needed", "none"), True: ("true (`ask`: false)",), 600.0: ("600",)}
            assert row in shown.get(default, (f'`"{default}"`',)), name
