"""Measures the engines against onnxruntime-genai's plain Generator, side by side, and prints ratios.

    python benchmarks/engine.py BUNDLE [--threads N] [--rounds N] [--json]

Every round runs each contender in a process of its own, one after the other, so that all see the same machine; the
median of the rounds counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

STREAMS = (1, 2, 4, 8)
TOKENS = 96
"""Decoded by every stream."""

STAGGER = 4
"""Steps between the arrival of two streams."""

PROMPTS = (64, 512)
CONTENDERS = ("generator", "genai", "batched")
WORDS = "quick brown fox jumps over lazy dog while seven grey birds sing about rain and old stone bridges"


def prompt_of(tokens: int, seed: int) -> str:
    """About so many tokens: common English words are one each."""
    words = WORDS.split()
    return " ".join(words[(seed * 7 + index * (seed + 1)) % len(words)] for index in range(tokens))


def measure_engine(bundle: Path, name: str, threads: int) -> dict[str, float]:
    """Our own engines, through the stepping interface."""
    from agent.engine.engine_selection import open_engine
    from agent.engine.interface import Generation

    engine = open_engine(bundle, engine=name, threads=threads)
    found: dict[str, float] = {}

    def generation(number: int, prompt: str, tokens: int = TOKENS, client: str = "") -> Any:
        return Generation(
            number, client or f"client{number}", prompt=prompt, max_tokens=tokens, min_tokens=tokens, temperature=0.0
        )

    def drain() -> None:
        while engine.busy:
            engine.step()

    def first_token(prompt: str, client: str) -> float:
        started = time.perf_counter()
        engine.admit(generation(1, prompt, 1, client))
        drain()
        return time.perf_counter() - started

    first_token(prompt_of(40, 99), "warm")
    for streams in STREAMS:
        counts = dict.fromkeys(range(streams), 0)
        waiting = [generation(number, prompt_of(12, number), client=f"{streams}.{number}") for number in counts]
        started, burnt = time.perf_counter(), time.process_time()
        steps = 0
        while waiting or engine.busy:
            if waiting and steps % STAGGER == 0:
                engine.admit(waiting.pop(0))
            steps += 1
            for event in engine.step():
                counts[event.request] = max(counts[event.request], getattr(event, "tokens", 0))
        found[f"decode {streams}"] = sum(counts.values()) / (time.perf_counter() - started)
        found[f"cpu s/1000 {streams}"] = 1000 * (time.process_time() - burnt) / sum(counts.values())
    for length in PROMPTS:
        found[f"first token {length}"] = first_token(prompt_of(length, length), f"cold{length}")
    shared = prompt_of(512, 3)
    found["prefix new"] = first_token(shared + " one", "reader")
    found["prefix again"] = first_token(shared + " two and a bit more", "reader")
    found["longest gap"], found["median gap"] = gaps(engine, generation)
    found["rss MiB"] = peak_mib()
    engine.release()
    return found


def gaps(engine: Any, generation: Callable[..., Any]) -> tuple[float, float]:
    """Between tokens of 4 running streams while a prompt of 512 tokens arrives: the longest, and the median."""
    for number in range(4):
        engine.admit(generation(number, prompt_of(12, number), TOKENS, f"gap{number}"))
    times: dict[int, list[float]] = {number: [] for number in range(4)}
    arrived = False
    while engine.busy:
        events = engine.step()
        now = time.perf_counter()
        for event in events:
            if event.request < 4:
                times[event.request].append(now)
        if not arrived and all(len(seen) > 20 for seen in times.values()):
            arrived = True
            engine.admit(generation(9, prompt_of(512, 5), 1, "late"))
    found = [later - sooner for seen in times.values() for sooner, later in pairwise(seen)]
    return max(found), statistics.median(found)


def measure_generator(bundle: Path, threads: int) -> dict[str, float]:
    """The plain runtime as its examples use it: a Generator for each stream, in turns."""
    import onnxruntime_genai as og

    config = og.Config(str(bundle))
    options = {"intra_op_num_threads": threads, "session.intra_op.spin_duration_us": "50"}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    model = og.Model(config)
    tokenizer = og.Tokenizer(model)
    found: dict[str, float] = {}

    def start(prompt: str, tokens: int) -> Any:
        ids = tokenizer.encode(prompt)
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=len(ids) + tokens, min_length=len(ids) + tokens, do_sample=False)
        generator = og.Generator(model, parameters)
        generator.append_tokens(ids)
        return generator

    def first_token(prompt: str) -> float:
        started = time.perf_counter()
        start(prompt, 1).generate_next_token()
        return time.perf_counter() - started

    first_token(prompt_of(40, 99))
    for streams in STREAMS:
        running: list[tuple[Any, Any]] = []
        started, burnt = time.perf_counter(), time.process_time()
        made = steps = arrived = 0
        while arrived < streams or running:
            if arrived < streams and steps % STAGGER == 0:
                running.append((start(prompt_of(12, arrived), TOKENS), tokenizer.create_stream()))
                arrived += 1
            steps += 1
            for pair in list(running):
                pair[0].generate_next_token()
                pair[1].decode(pair[0].get_next_tokens()[0])
                made += 1
                if pair[0].is_done():
                    running.remove(pair)
        found[f"decode {streams}"] = made / (time.perf_counter() - started)
        found[f"cpu s/1000 {streams}"] = 1000 * (time.process_time() - burnt) / made
    for length in PROMPTS:
        found[f"first token {length}"] = first_token(prompt_of(length, length))
    shared = prompt_of(512, 3)
    found["prefix new"] = first_token(shared + " one")
    found["prefix again"] = first_token(shared + " two and a bit more")
    found["rss MiB"] = peak_mib()
    return found


def peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def compare(bundle: Path, threads: int, rounds: int) -> dict[str, dict[str, float]]:
    """Medians by contender and measure."""
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        for name in CONTENDERS:
            command = [sys.executable, __file__, str(bundle), "--threads", str(threads), "--only", name]
            ran = subprocess.run(command, capture_output=True, check=True, timeout=600)
            seen[name].append(json.loads(ran.stdout.splitlines()[-1]))
    return {
        name: {measure: statistics.median(run[measure] for run in runs) for measure in runs[0]}
        for name, runs in seen.items()
    }


def table(found: dict[str, dict[str, float]]) -> str:
    """One line for each measure; the ratio is the batched engine's against the plain Generator."""
    rows = [f"{'measure':<18}" + "".join(f"{name:>12}" for name in CONTENDERS) + f"{'ratio':>9}"]
    for measure, batched in found["batched"].items():
        cells = [found[name].get(measure) for name in CONTENDERS]
        scale = 1000.0 if ("first" in measure or "prefix" in measure or "gap" in measure) else 1.0
        unit = " ms" if scale > 1 else " tok/s" if "decode" in measure else ""
        base = found["generator"].get(measure)
        ratio = f"{batched / base:>8.2f}×" if base else f"{'':>9}"
        text = "".join(f"{'-' if cell is None else f'{cell * scale:.1f}':>12}" for cell in cells)
        rows.append(f"{measure + unit:<18}{text}{ratio}")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("bundle", type=Path, help="bundle directory, or a finished onnxruntime-genai folder")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print numbers for a program")
    parser.add_argument("--only", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        if options.only == "generator":
            print(json.dumps(measure_generator(options.bundle, options.threads)))
        else:
            print(json.dumps(measure_engine(options.bundle, options.only, options.threads)))
        return 0
    found = compare(options.bundle, options.threads, options.rounds)
    print(json.dumps(found) if options.json else table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
