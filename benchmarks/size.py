"""What it takes to build a bundle of a real model's shape, and to run it on a device: memory by process, disk, seconds,
tokens a second.

    make size MODEL=phi-3.5-mini            # or python -m benchmarks.size phi-3.5-mini --directory build/size

The weights are random (``tests/random_checkpoint.py``), so what the bundle answers means nothing. The checkpoint is
made once and kept. Memory is anonymous (``RssAnon``), added up over all processes of the build, fifty times a second
at most: files that are mapped can be taken back by the system and are not in it. ``--limit GIB`` runs the build in a
memory cgroup of that size, mapped files and all (needs root), which shows the bound instead of measuring it;
``--plain`` builds once more with the model builder as it comes, for its time and its memory.

The bundle is then published, installed into an agent in a memory cgroup of 4 GiB without swap (``--device GIB``;
without root there is no limit), asked, and swapped for another version under load (``--device 0``: none of that).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.size_device import serve
from benchmarks.watching import GIB, Watched, bytes_in, memory_group, watch
from packager.build.plan import BuildPlan, builder_options
from packager.evaluate.evidence import host_line
from tests.random_checkpoint import SHAPES, config_of, make_random_checkpoint, small_config

ACCEPT = "random weights of a real shape"


def build(checkpoint: Path, work: Path, options: list[str], group: Path | None) -> Watched:
    """``edge-packager build``, into ``work/bundle``."""
    line = ["build", str(checkpoint), "--name", "size", "--version", "1.0.0", "--out", str(work / "bundle")]
    line += ["--cache", str(work / "cache"), "--accept-quality", ACCEPT, *options]
    return watch([sys.executable, "-m", "packager.cli", *line], group)


def build_plain(checkpoint: Path, work: Path) -> Watched:
    """The model builder alone, with nothing of ours."""
    options = builder_options(BuildPlan("source", "size", "1.0.0"))
    line = ["-i", str(checkpoint), "-o", str(work / "plain"), "-p", "int4", "-e", "cpu", "-c", str(work / "scratch")]
    return watch(
        [sys.executable, "-m", "onnxruntime_genai.models.builder", *line, "--extra_options", *options],
    )


def table(shape: str, checkpoint: Path, work: Path, found: Watched, plain: Watched | None) -> str:
    """What is printed."""
    manifest = json.loads((work / "bundle" / "manifest.json").read_text("utf-8"))
    promise = re.search(r"needs about ([\d.]+) ([KMG])iB of memory", found.output)
    promised = f"{float(promise[1]) / 1024 ** 'GMK'.index(promise[2]):.2f}" if promise else "?"
    rows = [
        f"{shape}, {manifest['model']['parameters'] / 1e9:.2f} billion parameters; {host_line()}",
        "",
        "| process | most anonymous memory, GiB | seconds |",
        "|---|---|---|",
    ]
    for name, peak in sorted(found.peaks.items(), key=lambda item: -item[1]):
        rows.append(f"| {name} | {peak / GIB:.2f} | {found.seconds[name]:.0f} |")
    rows.append(f"| **together** (promised {promised}) | **{found.together / GIB:.2f}** | |")
    if plain is not None:
        took = max(plain.seconds.values())
        rows.append(f"| the model builder as it comes | {plain.together / GIB:.2f} | {took:.0f} |")
    files = manifest["files"]
    budget = manifest["budget"]
    rows += [
        "",
        f"checkpoint {bytes_in(checkpoint) / 1e9:.2f} GB, bundle {sum(file['size'] for file in files) / 1e9:.3f} GB, "
        f"left in the cache {bytes_in(work / 'cache') / 1e9:.2f} GB; "
        f"embedding {manifest['quality']['embedding']}, lm_head {manifest['quality']['lm_head']}",
        f"loads in {budget['load_seconds']:.1f} s, {budget['tokens_per_second']:.1f} tokens/s on {budget['threads']} "
        f"threads, peak {budget['peak_rss_bytes'] / GIB:.2f} GiB resident with mapped files",
    ]
    return "\n".join(rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("--directory", type=Path, default=Path("build/size"))
    parser.add_argument("--small", action="store_true", help="two narrow layers of the shape")
    parser.add_argument("--limit", type=float, metavar="GIB", help="build in a memory cgroup of that size")
    parser.add_argument("--device", type=float, metavar="GIB", default=4.0, help="memory of the device (4; 0: none)")
    parser.add_argument("--tokens", type=int, default=64, help="length of every answer of the device")
    parser.add_argument("--plain", action="store_true", help="build with the model builder as it comes, too")
    parser.add_argument("options", nargs="*", metavar="OPTION", help="of edge-packager build, after --")
    given = parser.parse_args(arguments)
    checkpoint = given.directory / f"{'small-' if given.small else ''}{given.shape}"
    if not checkpoint.is_dir():
        staging = checkpoint.with_name(f".{checkpoint.name}")
        shutil.rmtree(staging, ignore_errors=True)
        config = small_config(given.shape) if given.small else config_of(given.shape)
        make_random_checkpoint(staging, config)
        staging.rename(checkpoint)
    with tempfile.TemporaryDirectory(prefix="build-", dir=given.directory) as place:
        with memory_group(given.limit) as group:
            found = build(checkpoint, Path(place), given.options, group)
        plain = build_plain(checkpoint, Path(place)) if given.plain else None
        print(table(checkpoint.name, checkpoint, Path(place), found, plain))
        if given.device:
            print(f"\n{serve(Path(place) / 'bundle', Path(place), given.device, given.tokens)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
