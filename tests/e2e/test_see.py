"""The short version of ``make see``: one family, from its checkpoint to answers that its reference would give."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from packager.vision.families import FAMILIES
from tests.e2e.narrator import Quiet
from tests.e2e.see import main, see
from tests.e2e.sight import CASES, TINY, Seen, Served, faults, table


@pytest.mark.broker
@pytest.mark.timeout(1200)
def test_a_tiny_model_is_built_deployed_and_sees_what_its_reference_sees(tmp_path: Path) -> None:
    served = see("gemma-3", tmp_path, Path(os.environ.get("EDGE_CACHE", ".cache")).resolve(), Quiet())
    assert len(served.answers) == len(CASES)
    assert faults(served) == []


def test_every_family_that_is_built_whole_is_seen() -> None:
    assert sorted(tiny.architecture for tiny in TINY.values()) == sorted(FAMILIES)


def test_what_does_not_hold_is_told() -> None:
    good = Seen("shapes", 4, 100, 100, 80, 5, [1, 2, 3, 4], 0.001, 1.5, 0.0, 0.1)
    again = good._replace(cached=84)
    qwen = Served(TINY["qwen2.5-vl"], "batched", "fit", "batched", [good, again], 100)
    assert faults(qwen) == []
    bad = again._replace(prompt_tokens=101, answer=[1], apart=float("nan"), from_another=0.001, behind=0.5)
    assert faults(qwen._replace(answers=[good, bad])) == [
        "shapes: 101 tokens, the reference has 100",
        "shapes: 1 tokens of an answer were told, not 4",
        "shapes: log-probabilities are nan nats apart, 0.01 at most",
        "shapes: the reference finds another token 0.5000 nats more likely",
        "shapes: the answer fits another picture as well",
    ]
    assert "qwen2.5-vl      shapes   4 parts" in table([("qwen2.5-vl", qwen)])


def test_what_the_batched_engine_owes_is_told() -> None:
    first = Seen("shapes", 4, 2600, 2600, 2509, 5, [1, 2, 3, 4], 0.001, 1.5, 0.0, 0.1)
    good = Served(TINY["phi-3.5-vision"], "batched", "fit", "batched", [first, first._replace(cached=2512)], 404)
    assert faults(good) == []
    assert faults(good._replace(answers=[first, first._replace(cached=2496)])) == []  # all but what ends in a slice
    assert faults(good._replace(answers=[first, first._replace(cached=2480)])) != []
    assert faults(good._replace(engine="genai", why="unfit", answers=[first, first], low_tokens=2600)) == [
        "served by the genai engine: unfit",
        "doctor names the engine 'batched', info 'genai'",
        "shapes: 5 tokens were known from the first question, of which 5 were known before; the picture has 2509",
        "shapes: 2600 tokens with detail low, 404 were expected",
    ]


def test_a_family_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["llava"])
    assert "llava is none of phi-3.5-vision, gemma-3, qwen2.5-vl" in capsys.readouterr().err
