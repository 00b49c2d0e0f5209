"""docs/FLEET.md says what is: its example is the defaults, its commands exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from msgspec import structs

from fleet.cli import COMMANDS
from fleet.rollout.selector import FIELDS
from fleet.rollout.spec import CanaryDocument, Gates, Halt, PromptDocument, Spec, SpecDocument, read_spec
from fleet.rollout.states import RolloutState

TEXT = (Path(__file__).resolve().parent.parent.parent / "docs" / "FLEET.md").read_text()


def test_the_example_is_the_defaults_and_names_every_key() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    document = tomllib.loads(example.replace("# source", "source"))
    assert set(document) == {field.encode_name for field in structs.fields(SpecDocument)}
    assert set(document["halt"]) == set(Halt.__struct_fields__)
    assert set(document["gates"]) == set(Gates.__struct_fields__)
    assert set(document["canary"]) == set(CanaryDocument.__struct_fields__)
    assert set(document["canary"]["prompts"][0]) == set(PromptDocument.__struct_fields__)
    read = read_spec(document)
    default = Spec(name="smollm2", version="1.1.0", where=read.where)
    assert structs.replace(read, source=None, windows=(), canary=None) == default


def test_every_command_state_and_field_is_named() -> None:
    for name in COMMANDS:
        assert f"edge-fleet {name}" in TEXT or f"`{name}`" in TEXT, name
    for state in RolloutState:
        assert f"`{state}`" in TEXT, state
    for field in FIELDS:
        assert f"`{field}`" in TEXT, field
