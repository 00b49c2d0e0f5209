"""The short version of ``make see``: one family, from its checkpoint to answers that its reference would give."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from packager.vision.families import FAMILIES
from tests.e2e.narrator import Quiet
from tests.e2e.see import CASES, TINY, Seen, faults, main, see, table


@pytest.mark.broker
@pytest.mark.timeout(1200)
def test_a_tiny_model_is_built_deployed_and_sees_what_its_reference_sees(tmp_path: Path) -> None:
    seen = see("gemma-3", tmp_path, Path(os.environ.get("EDGE_CACHE", ".cache")).resolve(), Quiet())
    assert len(seen) == len(CASES)
    assert faults(seen) == []


def test_every_family_that_is_built_whole_is_seen() -> None:
    assert sorted(tiny.architecture for tiny in TINY.values()) == sorted(FAMILIES)


def test_what_does_not_hold_is_told() -> None:
    good = Seen("shapes", 4, 100, 100, [1, 2, 3, 4], 0.001, 1.5, 0.0, 0.1)
    assert faults([good]) == []
    bad = good._replace(prompt_tokens=101, answer=[1], apart=float("nan"), from_another=0.001, behind=0.5)
    assert faults([good, bad]) == [
        "shapes: 101 tokens, the reference has 100",
        "shapes: 1 tokens of an answer were told, not 4",
        "shapes: log-probabilities are nan nats apart, 0.01 at most",
        "shapes: the reference finds another token 0.5000 nats more likely",
        "shapes: the answer fits another picture as well",
    ]
    assert "gemma-3         shapes   4 parts" in table([("gemma-3", good)])


def test_a_family_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["llava"])
    assert "llava is none of phi-3.5-vision, gemma-3, qwen2.5-vl" in capsys.readouterr().err
