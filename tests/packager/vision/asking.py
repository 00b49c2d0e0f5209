"""Asking a device's engine about pictures of one colour."""

from __future__ import annotations

from agent.engine.interface import Engine, Generation
from tests.agent.engine.driving import run
from tests.seeing import png


def ask_about_colours(engine: Engine, *, least_tokens: int) -> None:
    """One of them, another, and both: three answers, each of a prompt with more than ``least_tokens`` a picture."""
    assert "vision" in engine.facts.capabilities
    said = {}
    for name, pictures in {
        "red": [png(255, 0, 0)],
        "blue": [png(0, 0, 255)],
        "both": [png(255, 0, 0), png(0, 0, 255, width=90)],
    }.items():
        content: list[str | None] = [*([None] * len(pictures)), "What is on the shelf?"]
        asked = Generation(
            1, "anna", messages=[{"role": "user", "content": content}], pictures=pictures, max_tokens=3, min_tokens=3,
            logprobs=True,
        )  # fmt: skip
        outcome = run(engine, asked)[1]
        assert outcome.finish is not None, outcome.reject
        assert outcome.finish.prompt_tokens > least_tokens * len(pictures)
        said[name] = tuple(entry["logprob"] for event in outcome.tokens for entry in event.logprobs or ())
    assert len(set(said.values())) == 3, said
