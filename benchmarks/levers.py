"""What a setting of the runtime changes, step by step beside the same session as we open it.

    python -m benchmarks.levers MODEL [--threads N] [--steps N] [--only NAME …]

``MODEL`` is a bundle or a finished onnxruntime-genai folder. For every setting one process holds both sessions, and
runs a step of ours, a step of theirs, a step of theirs, a step of ours …, so that whoever else is at work disturbs
both; what is printed is the median of the ratios of neighbours, below 1 where the setting is better, and how far the
middle half of the ratios reaches. A load is the median of some in processes of their own, in turns as well. ``ours``
beside itself shows what the place in memory and the noise make of nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

OURS = "ours"
PAST, SLICE, LENGTH, ROWS = 128, 64, 256, 8
FIRST_ID = 100
"""Of what is read: any will do."""

LOADS = 3
PARTS: Mapping[str, float] = {"step of 1": 1.0, f"step of {ROWS}": 0.4, f"slice of {SLICE}": 0.15}
"""How many of each are run, as a share of the steps that were asked for: the longer ones less often."""

INTRA = "session.intra_op."
ENTRIES: Mapping[str, Mapping[str, str]] = {
    OURS: {},
    "spinning as the runtime has it": {f"{INTRA}spin_duration_us": "-1"},
    "no spinning": {f"{INTRA}allow_spinning": "0"},
    "spinning 10 us": {f"{INTRA}spin_duration_us": "10"},
    "spinning 200 us": {f"{INTRA}spin_duration_us": "200"},
    "spinning with pauses up to 64": {f"{INTRA}spin_backoff_max": "64"},
    "parts of work that shrink": {"session.dynamic_block_base": "4"},
    "products by table": {"mlas.use_lut_gemm": "1"},
    "denormals are zero": {"session.set_denormal_as_zero": "1"},
    "prepacking in parallel": {"session.prepack.enable_parallel": "1"},
    "weights beside the arena": {"session.use_device_allocator_for_initializers": "1"},
}
"""By what it is called here: entries of a session's configuration."""

ATTRIBUTES: Mapping[str, Mapping[str, Any]] = {
    "no arena": {"enable_cpu_mem_arena": False},
    "no memory pattern": {"enable_mem_pattern": False},
}
GATHERED, HALF, HELD = "huge pages", "half the threads", "threads held to cores"
LEVERS = (*ENTRIES, HALF, HELD, *ATTRIBUTES, GATHERED)


def open_changed(name: str, model: Path, threads: int) -> Any:
    """Our session with this one setting changed."""
    import onnxruntime

    from agent.engine.batched.graph import read_decoder
    from agent.engine.batched.runner import graph_with_start, session_options
    from agent.engine.config import read_config

    decoder = read_decoder(model, read_config(model))
    options = session_options(max(1, threads // 2) if name == HALF else threads)
    options.log_severity_level = 4  # that an entry is there already
    for key, value in ENTRIES.get(name, {}).items():
        options.add_session_config_entry(key, value)
    if name == HELD:  # the caller's own thread is the first, and has none
        options.add_session_config_entry("session.intra_op_thread_affinities", held(threads))
    for attribute, value in ATTRIBUTES.get(name, {}).items():
        setattr(options, attribute, value)
    source = graph_with_start(decoder.path, decoder.logits, options)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def held(threads: int) -> str:
    """A processor, counted from 1, for every thread but the caller's."""
    return ";".join(str(processor + 1) for processor in sorted(os.sched_getaffinity(0))[1:threads])


def compare(name: str, model: Path, threads: int, steps: int) -> dict[str, list[float]]:
    """Ratios of all neighbours by what was run, in this process."""
    from agent.engine.batched.graph import read_decoder
    from agent.engine.batched.pool import Pool
    from agent.engine.batched.runner import Runner
    from agent.engine.config import read_config
    from agent.host.huge_pages import gather, page_size

    decoder = read_decoder(model, read_config(model))
    theirs = open_changed(name, model, threads)
    if name == GATHERED:
        gather(page_size())
    ids = [FIRST_ID + place for place in range(PAST)]
    runners = []
    for session in (open_changed(OURS, model, threads), theirs):
        pool = Pool(decoder, ROWS, LENGTH)
        runner = Runner(session, decoder, pool, shows_all=True)
        runner.prefill(0, 0, ids, last=True)
        for slot in range(1, ROWS):
            pool.copy(0, slot, PAST)
        runners.append(runner)
    runs: dict[str, Callable[[Runner], object]] = {
        "step of 1": lambda runner: runner.decode(0, ids[:1], [PAST]),
        f"step of {ROWS}": lambda runner: runner.decode(0, ids[:ROWS], [PAST] * ROWS),
        f"slice of {SLICE}": lambda runner: runner.prefill(0, PAST, ids[:SLICE], last=True),
    }
    return {part: in_turns(runs[part], runners, max(3, int(steps * share))) for part, share in PARTS.items()}


def in_turns(run: Callable[[Any], object], runners: Sequence[Any], times: int) -> list[float]:
    """Seconds of the second runner over those of the first, of every turn; each turn begins with the other."""
    ratios = []
    for turn in range(times):
        taken = {}
        for place in (0, 1) if turn % 2 == 0 else (1, 0):
            started = time.perf_counter()
            run(runners[place])
            taken[place] = time.perf_counter() - started
        ratios.append(taken[1] / taken[0])
    return ratios


def load(name: str, model: Path, threads: int) -> dict[str, float]:
    """What opening it takes, in this process."""
    import onnxruntime  # noqa: F401  the library itself does not count

    started, worked = time.perf_counter(), time.process_time()
    session = open_changed(name, model, threads)
    found = {"load": time.perf_counter() - started, "load, processor": time.process_time() - worked}
    lines = Path("/proc/self/status").read_text().splitlines()
    for what, field in (("anonymous", "RssAnon:"), ("most resident", "VmHWM:")):
        found[what] = next(float(line.split()[1]) for line in lines if line.startswith(field))
    del session
    return found


def apart(what: str, name: str, given: argparse.Namespace) -> Any:
    """What a process of its own says."""
    arguments = [str(given.model), "--threads", str(given.threads), "--steps", str(given.steps), f"--{what}", name]
    command = [sys.executable, "-m", "benchmarks.levers", *arguments]
    ran = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(ran.stdout.splitlines()[-1])


def row(name: str, given: argparse.Namespace) -> str:
    """A line of the table."""
    loads: dict[str, list[dict[str, float]]] = {OURS: [], name: []}
    for turn in range(LOADS):
        for each in (OURS, name) if turn % 2 == 0 else (name, OURS):
            loads[each].append(apart("load", each, given))
    medians = {
        each: {what: statistics.median(one[what] for one in seen) for what in seen[0]} for each, seen in loads.items()
    }
    cells = [f"{value / medians[OURS][what]:.2f}" for what, value in medians[name].items()]
    for ratios in apart("compare", name, given).values():
        low, middle, high = statistics.quantiles(ratios, n=4)
        cells.append(f"{middle:.3f} ({low:.2f}–{high:.2f})")
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> int:
    from benchmarks.bench import processor

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--only", nargs="+", choices=LEVERS, default=LEVERS, help="these settings alone")
    parser.add_argument("--compare", choices=LEVERS, help=argparse.SUPPRESS)
    parser.add_argument("--load", choices=LEVERS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.compare:
        print(json.dumps(compare(given.compare, given.model, given.threads, given.steps)))
    elif given.load:
        print(json.dumps(load(given.load, given.model, given.threads)))
    else:
        print(f"{processor()}, {given.threads} threads, load {os.getloadavg()[0]:.1f}\n")
        print("| setting | load | load, processor | anonymous | most resident | " + " | ".join(PARTS) + " |")
        print("|---" * (len(PARTS) + 5) + "|")
        for name in given.only:
            print(row(name, given), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
