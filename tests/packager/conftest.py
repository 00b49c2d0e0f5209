"""Builds of this room fork their processes: see ``tests.forked``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.forked import forked_children


@pytest.fixture(scope="session", autouse=True)
def forked() -> Iterator[None]:
    """The packager's children are forked from a process that has loaded their libraries."""
    with forked_children():
        yield
