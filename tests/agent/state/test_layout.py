"""The state directory is its owner's."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from agent.state.layout import StateDirectory, make_private
from contract.system.durable import Disk


@pytest.mark.parametrize(
    ("before", "after"), [(None, 0o700), (0o755, 0o750), (0o777, 0o770), (0o750, 0o750), (0o700, 0o700)]
)
def test_it_is_open_to_nobody_else(tmp_path: Path, before: int | None, after: int) -> None:
    """A group keeps what it has: under systemd the workers read bundles by it."""
    directory = StateDirectory(tmp_path / "var" / "state")
    if before is not None:
        directory.root.mkdir(parents=True)
        directory.root.chmod(before)
    make_private(directory, Disk())
    assert stat.S_IMODE(directory.root.stat().st_mode) == after
