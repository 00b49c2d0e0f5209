"""Seconds to the first token of questions about pictures, and what a second question takes of the first.

    python -m benchmarks.pictures BUNDLE [--engine auto] [--threads 2] [--rounds 3]

Each round has a picture of its own: a question about it, another question, and one with the picture behind other words,
of which the features are known and keys and values are not. Medians, and their share of the first question's.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from pathlib import Path

import numpy as np

from agent.engine.engine_selection import ENGINES, open_engine
from agent.engine.interface import Engine, FinishEvent, Generation, RejectEvent

KINDS = ("first", "another question", "behind other words")


def picture(number: int, side: int = 480) -> bytes:
    """A photograph's worth of noise."""
    from PIL import Image

    random = np.random.default_rng(number)
    target = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (side, side, 3), np.uint8)).save(target, "PNG")
    return target.getvalue()


def first_token_seconds(engine: Engine, shown: bytes, *content: str | None) -> tuple[float, int]:
    """Of one question, and the tokens of its prompt."""
    asked = Generation(
        1, "bench", messages=[{"role": "user", "content": list(content)}], pictures=[shown], max_tokens=1
    )  # fmt: skip
    started = time.perf_counter()
    engine.admit(asked)
    tokens = 0
    while engine.busy:
        for event in engine.step():
            if isinstance(event, RejectEvent):
                raise SystemExit(event.message)
            tokens = event.prompt_tokens if isinstance(event, FinishEvent) else tokens
    return time.perf_counter() - started, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    engine = open_engine(given.bundle, engine=given.engine, threads=given.threads)
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    tokens = 0
    for number in range(given.rounds):
        shown = picture(number)
        seconds, tokens = first_token_seconds(engine, shown, None, "What is this?")
        found[KINDS[0]].append(seconds)
        found[KINDS[1]].append(first_token_seconds(engine, shown, None, "How many are there?")[0])
        found[KINDS[2]].append(first_token_seconds(engine, shown, f"Round {number}:", None, "What is this?")[0])
    print(f"{given.bundle.name}, {engine.facts.engine}, {tokens} tokens, medians of {given.rounds}")
    medians = {kind: statistics.median(each) for kind, each in found.items()}
    for kind, seconds in medians.items():
        print(f"{kind:20} {seconds:8.3f} s {seconds / medians[KINDS[0]]:6.2f} x")
    engine.release()


if __name__ == "__main__":
    main()
