"""What it takes to build a bundle of a real model's shape, and to run it on a device: memory by process, disk, seconds,
tokens a second.

    make size MODEL=phi-3.5-mini            # or python -m benchmarks.size phi-3.5-mini --directory build/size

The weights are random (``tests/random_checkpoint.py``), so what the bundle answers means nothing. The checkpoint is
made once and kept; the bundle, its figures and the build's cache are kept until the device's part has ended well, so
that a run which was interrupted goes on where it was (``--keep``: they stay after that, too).

Memory is anonymous (``RssAnon``), added up over all processes of the build, ten times a second at most: files that
are mapped can be taken back by the system and are not in it. ``--limit GIB`` runs the build in a memory cgroup of that
size, mapped files and all (needs root), which shows the bound instead of measuring it; ``--plain`` builds once more
with the model builder as it comes, for its time and its memory.

The bundle is then published, installed into an agent in a memory cgroup of 4 GiB without swap, 8 for one that sees
(``--device GIB``; without root there is no limit), asked, about a picture too where it sees, and swapped for another
version under load (``--device 0``: none of that); with ``--full``, every slot is filled at once in the end.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

import msgspec

from benchmarks.size_device import Asked, serve, time_encoder
from benchmarks.watching import GIB, Watched, bytes_in, memory_group, watch
from packager.build.plan import BuildPlan, builder_options
from packager.evaluate.evidence import host_line
from packager.vision.family import ENCODER_FILE
from tests.random_checkpoint import SHAPES, config_of, make_random_checkpoint, small_config

ACCEPT = "random weights of a real shape"

FIGURES = "build.json"
"""Beside a finished bundle: with which options it was built, and what that took."""


def build(checkpoint: Path, work: Path, options: list[str], limit: float | None) -> Watched:
    """``edge-packager build``, into ``work/bundle``; what was found when the same was built before, if it was."""
    figures = work / FIGURES
    if figures.is_file():
        options_then, found = msgspec.json.decode(figures.read_bytes(), type=tuple[list[str], Watched])
        if options_then == options:
            return found
    figures.unlink(missing_ok=True)
    shutil.rmtree(work / "bundle", ignore_errors=True)
    line = ["build", str(checkpoint), "--name", "size", "--version", "1.0.0", "--out", str(work / "bundle")]
    line += ["--cache", str(work / "cache"), "--accept-quality", ACCEPT, *options]
    with memory_group(limit) as group:
        found = watch([sys.executable, "-m", "packager.cli", *line], group, work / "build.log", work)
    figures.write_bytes(msgspec.json.encode((options, found)))
    return found


def build_plain(checkpoint: Path, work: Path) -> Watched:
    """The model builder alone, with nothing of ours."""
    options = builder_options(BuildPlan("source", "size", "1.0.0"))
    line = ["-i", str(checkpoint), "-o", str(work / "plain"), "-p", "int4", "-e", "cpu", "-c", str(work / "scratch")]
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", *line, "--extra_options", *options]
    return watch(command, None, work / "plain.log")


def table(shape: str, checkpoint: Path, work: Path, found: Watched, plain: Watched | None) -> str:
    """What is printed."""
    manifest = json.loads((work / "bundle" / "manifest.json").read_text("utf-8"))
    memory, disk, minutes = promised_by(found.output)
    rows = [
        f"{shape}, {manifest['model']['parameters'] / 1e9:.2f} billion parameters; {host_line()}",
        "",
        "| process | most anonymous memory, GiB | seconds |",
        "|---|---|---|",
    ]
    for name, peak in sorted(found.peaks.items(), key=lambda item: -item[1]):
        rows.append(f"| {name} | {peak / GIB:.2f} | {found.seconds[name]:.0f} |")
    whole = found.seconds["packager.cli"]
    promised = f"promised {memory / GIB:.2f}, {60 * minutes} s"
    rows.append(f"| **together** ({promised}) | **{found.together / GIB:.2f}** | {whole:.0f} |")
    if plain is not None:
        took = max(plain.seconds.values())
        rows.append(f"| the model builder as it comes | {plain.together / GIB:.2f} | {took:.0f} |")
    files = manifest["files"]
    budget = manifest["budget"]
    rows += [
        "",
        f"checkpoint {bytes_in(checkpoint) / 1e9:.2f} GB, bundle {sum(file['size'] for file in files) / 1e9:.3f} GB, "
        f"disk of the build {found.disk / 1e9:.3f} GB (promised {disk / 1e9:.2f}), of which "
        f"{bytes_in(work / 'cache') / 1e9:.2f} stay in the cache; "
        f"embedding {manifest['quality']['embedding']}, lm_head {manifest['quality']['lm_head']}",
        f"loads in {budget['load_seconds']:.1f} s, {budget['tokens_per_second']:.1f} tokens/s on {budget['threads']} "
        f"threads, peak {budget['peak_rss_bytes'] / GIB:.2f} GiB resident with mapped files",
    ]
    return "\n".join(rows)


def promised_by(output: str) -> tuple[float, float, int]:
    """Bytes of memory and of disk, and minutes, that a build said it would take."""
    size = r"([\d.]+) ([KMG])iB"
    promise = re.search(rf"needs about {size} of memory, {size} of disk and (\d+) minute", output)
    assert promise is not None, output
    memory, disk = (float(promise[at]) * 1024 ** " KMG".index(promise[at + 1]) for at in (1, 3))
    return memory, disk, int(promise[5])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("--directory", type=Path, default=Path("build/size"))
    parser.add_argument("--small", action="store_true", help="two narrow layers of the shape")
    parser.add_argument("--limit", type=float, metavar="GIB", help="build in a memory cgroup of that size")
    parser.add_argument(
        "--device", type=float, metavar="GIB", help="memory of the device (4, 8 for a model that sees; 0: none)"
    )
    parser.add_argument("--tokens", type=int, default=64, help="length of every answer of the device")
    parser.add_argument(
        "--full", action="store_true", help="fill all slots of the device to their whole length at once"
    )
    parser.add_argument("--keep", action="store_true", help="leave bundle and cache for another run")
    parser.add_argument("--plain", action="store_true", help="build with the model builder as it comes, too")
    parser.epilog = "what follows after -- are options of edge-packager build"
    line = sys.argv[1:] if arguments is None else arguments
    end = line.index("--") if "--" in line else len(line)
    given, options = parser.parse_args(line[:end]), line[end + 1 :]
    given.directory = given.directory.resolve()  # an agent's configuration and its process know another directory
    checkpoint = given.directory / f"{'small-' if given.small else ''}{given.shape}"
    if not checkpoint.is_dir():
        staging = checkpoint.with_name(f".{checkpoint.name}")
        shutil.rmtree(staging, ignore_errors=True)
        config = small_config(given.shape) if given.small else config_of(given.shape)
        make_random_checkpoint(staging, config)
        staging.rename(checkpoint)
    work = given.directory / f"{checkpoint.name}-work"
    work.mkdir(exist_ok=True)
    found = build(checkpoint, work, options, given.limit)
    plain = build_plain(checkpoint, work) if given.plain else None
    print(table(checkpoint.name, checkpoint, work, found, plain), flush=True)
    sees = (work / "bundle" / ENCODER_FILE).is_file()
    if sees:
        print(f"\n{time_encoder(work / 'bundle', checkpoint)}", flush=True)
    device = (8.0 if sees else 4.0) if given.device is None else given.device
    if device:
        print(f"\n{serve(work / 'bundle', work, Asked(device, given.tokens, given.full))}")
    if not given.keep:
        shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
