"""The engines under test: the stand-in, and every real one on the real model with a context of 512 tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.engine.engine_selection import open_engine
from agent.engine.interface import Engine
from tests.agent.engine.short_bundle import CONTEXT, short_bundle
from tests.agent.engine.stand_in import StandIn, write_bundle

__all__ = ["short_bundle"]


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    return StandIn(write_bundle(tmp_path_factory.mktemp("stand_in")), context_length=CONTEXT)


@pytest.fixture(scope="session")
def genai(short_bundle: Path) -> Iterator[Engine]:
    opened = open_engine(short_bundle, engine="genai", threads=2)
    yield opened
    opened.release()


@pytest.fixture(scope="session")
def batched(short_bundle: Path) -> Iterator[Engine]:
    """Bit for bit the same whatever else runs: what that takes is the processor's affair (``test_independence``)."""
    opened = open_engine(short_bundle, engine="batched", threads=2, reproducible=True)
    yield opened
    opened.release()


@pytest.fixture(params=["stand_in", "genai", "batched"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """One loaded engine of each kind; every test leaves it idle."""
    found: Engine = request.getfixturevalue(request.param)
    assert not found.busy
    yield found
    for number in range(100):
        found.cancel(number)
    while found.busy:
        found.step()
