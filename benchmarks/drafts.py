"""What drafts by prompt lookup change for one stream: the same requests with and without, in turns.

    python -m benchmarks.drafts BUNDLE [--threads N] [--rounds N] [--tokens N]

One process holds the engine twice, with ``speculation`` ``on`` and ``off``, and gives each request first to the one and
then to the other, in the next round the other way round, so that whoever else is at work disturbs both. Counted is the
time from the first token to the last; reading the prompt is the same for both. ``copied`` are requests whose answer
stands in the prompt for the most part, ``free`` are those whose answer does not. What is printed is how much faster
drafts make them: above 1 they gain. Answers are greedy, and whether both say the same is printed, too: where the
processor reads several tokens of a sequence by other kernels than one, they may part (decision 0061).
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from itertools import takewhile
from pathlib import Path
from typing import Literal, NamedTuple

from agent.engine.engine_selection import open_engine
from agent.engine.interface import Engine, FinishEvent, Generation, TokenEvent
from packager.evaluate.evidence import host_line

CODE = '''def mean_of_readings(readings):
    """Return the mean of all readings that are no None."""
    total = 0.0
    count = 0
    for reading in readings:
        if reading is None:
            continue
        total += reading
        count += 1
    if count == 0:
        raise ValueError("no readings")
    return total / count
'''
SETTINGS = """{"device": "press-04", "interval_seconds": 30, "sensors": [{"name": "oil", "unit": "C", "limit": 85},
{"name": "bearing", "unit": "C", "limit": 70}, {"name": "motor", "unit": "A", "limit": 16}], "broker": "10.0.4.2"}"""
REPORT = """At 04:12 the bearing of press 04 reached 71 degrees and the press stopped. At 04:30 oil was added, at 04:55
the press ran again at 20 strokes a minute. At 05:40 the bearing stood at 58 degrees. The belt has to be looked at in
the next shift."""

PROMPTS = {
    "copied": (
        f"Write this function again with `readings` renamed to `values`, and nothing else:\n\n{CODE}",
        f"Print this JSON again with interval_seconds set to 60, and nothing else:\n\n{SETTINGS}",
        f"Correct the spelling of this report and print it whole:\n\n{REPORT}",
    ),
    "free": (
        "Why does a bearing get warm before it fails?",
        "Name three ways to find out that a sensor is drifting.",
        "Write a short poem about rain on a factory roof.",
    ),
}


class Answer(NamedTuple):
    """``speed`` in tokens a second, from the first token to the last."""

    text: str
    speed: float


def ask(engine: Engine, number: int, prompt: str, tokens: int) -> Answer:
    """One request, alone."""
    turns = [{"role": "user", "content": prompt}]
    engine.admit(Generation(number, "bench", messages=turns, max_tokens=tokens))
    text, first, made = "", 0.0, 0
    while engine.busy:
        for event in engine.step():
            first = first or time.perf_counter()
            if isinstance(event, TokenEvent | FinishEvent):
                text += event.text
            if isinstance(event, FinishEvent):
                made = event.completion_tokens
    return Answer(text, (made - 1) / (time.perf_counter() - first))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128, help="the most of an answer")
    given = parser.parse_args()
    modes: tuple[Literal["on", "off"], ...] = ("on", "off")
    engines = {
        mode: open_engine(given.bundle, engine="batched", threads=given.threads, speculation=mode) for mode in modes
    }
    print(f"{host_line()}, {given.threads} threads, load {os.getloadavg()[0]:.1f}; with drafts: ", end="")
    print(f"{engines['on'].facts.independence.why}\n")
    print("| | prompt | tokens/s without | with | gain | said alike |")
    print("|---|---|---|---|---|---|")
    number = 0
    for kind, prompts in PROMPTS.items():
        gains = []
        for prompt in prompts:
            answers: dict[str, list[Answer]] = {mode: [] for mode in modes}
            for turn in range(given.rounds):
                for mode in modes if turn % 2 == 0 else reversed(modes):
                    number += 1
                    answers[mode].append(ask(engines[mode], number, prompt, given.tokens))
            speed = {mode: statistics.median(answer.speed for answer in answers[mode]) for mode in modes}
            gains.append(speed["on"] / speed["off"])
            speeds = f"{speed['off']:.1f} | {speed['on']:.1f} | {gains[-1]:.2f}"
            print(
                f"| {kind} | {prompt.splitlines()[0][:48]} | {speeds} | "
                f"{alike(answers['on'][0].text, answers['off'][0].text)} |",
                flush=True,
            )
        print(f"| **{kind}** | median | | | **{statistics.median(gains):.2f}**, least {min(gains):.2f} | |")
    return 0


def alike(one: str, other: str) -> str:
    """How far two answers are the same."""
    if one == other:
        return "all"
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
    return f"{same} of {len(other)} characters"


if __name__ == "__main__":
    raise SystemExit(main())
