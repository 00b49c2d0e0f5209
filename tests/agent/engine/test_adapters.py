"""Adapters per request in the genai engine: each request computes with its own, the others as if there were none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.engine.engine_selection import open_engine
from agent.engine.interface import Engine, Generation
from contract.bundle.manifest import MANIFEST_FILE, parse_manifest
from contract.errors import EngineFailed
from tests.agent.engine.driving import answer, run

QUESTION = [{"role": "user", "content": "Tell me a long story."}]


@pytest.fixture(scope="module")
def files(tiny_adapter_bundles: dict[str, Path]) -> dict[str, Path]:
    return {f"{name}@1.0.0": place / "adapter.onnx_adapter" for name, place in tiny_adapter_bundles.items()}


@pytest.fixture(scope="module")
def engine(tiny_slots_bundle: Path, files: dict[str, Path]) -> Iterator[Engine]:
    opened = open_engine(tiny_slots_bundle, threads=1, adapters=files)
    yield opened
    opened.release()


def story(number: int, adapter: str | None) -> Generation:
    return Generation(number, "client", messages=QUESTION, max_tokens=24, adapter=adapter)


def test_requests_with_different_adapters_at_the_same_time_each_get_their_own(engine: Engine) -> None:
    wanted = [None, "one", "two", "one@1.0.0"]
    alone = [answer(engine, story(number, name)).text for number, name in enumerate(wanted)]
    assert len({*alone[:3]}) == 3
    assert alone[1] == alone[3]
    together = run(engine, *(story(number, name) for number, name in enumerate(wanted)))
    assert [together[number].text for number in range(4)] == alone


def test_without_an_adapter_the_answer_is_the_plain_bundles(engine: Engine, tiny_bundle: Path) -> None:
    plain = open_engine(tiny_bundle, engine="genai", threads=1)
    assert answer(engine, story(1, None)).text == answer(plain, story(1, None)).text
    plain.release()


def test_beam_search_heeds_the_adapter(engine: Engine) -> None:
    found = [
        answer(engine, Generation(1, "c", messages=QUESTION, max_tokens=12, num_beams=2, adapter=name)).text
        for name in (None, "one")
    ]
    assert found[0] != found[1]


@pytest.mark.parametrize("name", ["three", "one@2.0.0", "@1.0.0"])
def test_an_adapter_that_is_not_there_is_refused_by_field_with_those_that_are(engine: Engine, name: str) -> None:
    found = answer(engine, story(1, name))
    assert found.refused_field == "adapter"
    assert found.reject is not None and "one@1.0.0, two@1.0.0" in found.reject.message


def test_canaries_score_as_at_the_build_with_their_adapter_and_not_without(
    engine: Engine, tiny_adapter_bundles: dict[str, Path]
) -> None:
    for name, place in tiny_adapter_bundles.items():
        for canary in parse_manifest((place / MANIFEST_FILE).read_bytes()).canary:
            score = engine.score(canary.prompt, canary.expected_text, f"{name}@1.0.0")
            assert abs(score.mean_nll - canary.mean_nll) <= canary.tolerance
            assert engine.score(canary.prompt, canary.expected_text).mean_nll > score.mean_nll + canary.tolerance


def test_the_engine_is_chosen_by_what_is_to_be_loaded(
    tiny_slots_bundle: Path, files: dict[str, Path], engine: Engine
) -> None:
    assert (engine.facts.engine, engine.facts.why) == ("genai", "not batched: it has adapters")
    assert "adapters" in engine.facts.capabilities
    with pytest.raises(EngineFailed, match="no adapters"):
        open_engine(tiny_slots_bundle, engine="batched", threads=1, adapters=files)
    empty = open_engine(tiny_slots_bundle, threads=1, max_bytes=8 << 20)
    assert empty.facts.engine == "batched"
    assert answer(empty, story(1, "one")).refused_field == "adapter"
    empty.release()
