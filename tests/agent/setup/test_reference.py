"""The reference of ``agent.toml``: every key of the types, explained; the same in the file that a device gets."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct, structs

from agent.config import AgentConfig, load_config, read_config
from agent.config_faults import struct_of
from agent.setup.document import FILE, main, text
from agent.setup.reference import example, tables
from contract.source.access import SourceSettings
from tests.agent.setup.test_setup import Setup, setup

__all__ = ["setup"]

ROOT = Path(__file__).resolve().parents[3]


def keys_of(type_: type[Struct], path: str = "") -> Iterator[str]:
    """Every key that the reader of a configuration takes, found without the reference."""
    for field in structs.fields(type_):
        inner = struct_of(field.type)
        if inner is not None:
            yield from keys_of(inner, f"{path}{field.name}.")
        elif field.name != "sources":
            yield f"{path}{field.name}"


ALL_KEYS = [*keys_of(AgentConfig), *keys_of(SourceSettings, "sources.NAME.")]


def test_the_page_is_what_the_types_say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert FILE.read_text("utf-8") == text()
    assert main([]) == 0
    monkeypatch.setattr("agent.setup.document.text", lambda: text() + "another key\n")
    assert main([]) == 1
    assert "python -m agent.setup.document --write" in capsys.readouterr().err


def test_every_key_is_explained() -> None:
    explained = {f"{table.name}.{key.name}".lstrip("."): key for table in tables() for key in table.keys}
    assert len(ALL_KEYS) > 70
    assert set(ALL_KEYS) == set(explained) - {"sources.NAME"}
    for name, key in explained.items():
        assert len(key.description) > 15, f"{name} has no description"
    for name in ALL_KEYS:
        measured = re.search(r"_(seconds|ms|bytes|bytes_per_second)$", name)
        assert explained[name].unit or not measured, f"{name} has no unit"


def uncommented(document: str) -> dict[str, Any]:
    """The reference as somebody would have it who takes every line in that has a default of its own."""
    lines = [re.sub(r"^#(?=[a-z_]+ = |\[)", "", line) for line in document.splitlines()]
    return tomllib.loads("\n".join(line for line in lines if "…" not in line))


def test_the_file_is_toml_and_its_values_are_the_defaults() -> None:
    assert tomllib.loads(example()) == {
        "broker": {}, "sources": {}, "install": {}, "worker": {}, "serving": {},
        "telemetry": {"prometheus": {}, "home_assistant": {}},
    }  # fmt: skip
    document = uncommented(example())
    # What is not set by default has an example's value instead, and one of two ways to name a broker.
    del document["sources"], document["broker"]["tls"], document["broker"]["hosts"]
    del document["install"]["canary_tolerance"]
    base = Path("/etc/edge-agent")
    assert read_config({**document, "device": "d"}, base) == read_config({"device": "d"}, base)


def test_an_installed_configuration_points_to_a_file_of_the_device(setup: Setup) -> None:
    setup("--yes", "--device", "kitchen-1")
    installed = (setup.root / "etc/edge-agent/agent.toml").read_text()
    (named,) = re.findall(r"(?<=: )/\S+", installed)
    assert (setup.root / named.lstrip("/")).read_text() == example()
    assert load_config(setup.root / "etc/edge-agent/agent.toml").device == "kitchen-1"


def test_an_upgrade_brings_its_own_reference_and_keeps_the_configuration(setup: Setup) -> None:
    setup("--yes", "--device", "kitchen-1")
    before = setup.files()
    (setup.root / "etc/edge-agent/agent.reference.toml").write_text("# of an older version\n")
    assert "agent.reference.toml" in setup("--yes")
    assert setup.files() == before


def test_every_variable_of_the_environment_is_explained() -> None:
    found: set[str] = set()
    for package in ("agent", "contract", "fleet", "packager"):
        for module in (ROOT / package).rglob("*.py"):
            found |= set(re.findall(r"[\"$](EDGE_[A-Z_]+)", module.read_text("utf-8")))
    assert {"EDGE_BROKER", "EDGE_FLEET_DATABASE"} <= found
    assert not {name for name in found if f"`{name}`" not in text()}
