"""``edge-agent trust``: provisioning, and what a device says that it trusts."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from agent.cli import COMMANDS
from agent.state.database import Database
from agent.state.installation import InstallationState
from agent.state.layout import StateDirectory
from agent.state.schema import SCHEMA
from contract.system.command_line import main
from tests.contract.trust.publisher import Publisher


def trust(*words: str) -> int:
    return main("edge-agent", "", COMMANDS, ["trust", *words])


def test_provision_and_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(tmp_path / "root.json")
    (tmp_path / "root.json").write_bytes(Publisher().root)
    state = ("--state-dir", str(tmp_path / "state"))
    assert trust("show", *state) == 2
    assert trust("provision", root, *state) == 0
    assert trust("provision", root, *state, "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"root_version": 1}
    (tmp_path / "other.json").write_bytes(Publisher().root)
    assert trust("provision", str(tmp_path / "other.json"), *state) == 2
    assert trust("provision", str(tmp_path / "other.json"), *state, "--replace") == 0
    assert trust("provision", str(tmp_path / "missing"), *state) == 2
    database = Database(StateDirectory(tmp_path / "state").database, SCHEMA)
    expires = datetime.fromisoformat(json.loads((tmp_path / "other.json").read_bytes())["signed"]["expires"])
    assert InstallationState(database).warning_store.expiry() == {"root": int(expires.timestamp())}
    database.close()
    capsys.readouterr()
    assert trust("show", *state, "--json") == 0
    assert json.loads(capsys.readouterr().out)["roles"]["root"]["version"] == 1
    (tmp_path / "state/trust/trusted.json").write_bytes(b"")
    assert trust("show", *state) == 3
    assert "trust_state_lost" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("init", "root.json"), ("download",), ("--metadata-dir", "md", "refresh")])
def test_the_operators_command_is_no_tuf_client(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        trust(*words)
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
