"""FETCH to SEAL of a large bundle from a local directory, against openssl, cp and sync of the same files.

    python -m benchmarks.install BUNDLE [--megabytes N] [--rounds N] [--directory DIR]

``BUNDLE`` is any finished bundle directory; random bytes make it large. Both sides run alternately; the median of the
rounds counts. What is measured of ours is the real installer process, from CHECK to SEAL. CPU time is printed beside it
(of ours with start and trust, which take about a second): on a busy host it says more than the clock.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from agent.install.process.client import COMMAND
from agent.install.process.messages import Failed, Reached, encode_line, parse_line
from agent.install.update.state_machine import Event
from tests.agent.install.market import Market, make_variant


def cpu_seconds() -> float:
    """What the processes that were started from here and have ended used so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def plain(files: list[Path], target: Path) -> float:
    """Seconds to hash, copy and flush with the system's own tools."""
    target.mkdir()
    started = time.monotonic()
    subprocess.run(["openssl", "dgst", "-sha256", *map(str, files)], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cp", *map(str, files), str(target)], check=True)
    subprocess.run(["sync", *(str(target / file.name) for file in files), str(target)], check=True)
    return time.monotonic() - started


def ours(market: Market, device: Path) -> dict[str, float]:
    """Seconds of each step of the installer."""
    device.mkdir()
    process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(encode_line(market.job(device, "1.0.0", parallel_fetches=4)))
    process.stdin.flush()
    spent: dict[str, float] = {}
    last = time.monotonic()
    for text in process.stdout:
        line = parse_line(text)
        if isinstance(line, Failed):
            sys.exit(f"the installation failed: {line.message}")
        if isinstance(line, Reached):
            now = time.monotonic()
            spent[line.event] = now - last
            last = now
    process.wait()
    process.stdin.close()
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.install", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="on the disk to measure")
    arguments = parser.parse_args()
    steps = (Event.RESERVED, Event.FETCHED, Event.VERIFIED, Event.SEALED)
    with tempfile.TemporaryDirectory(prefix="install-", dir=arguments.directory) as scratch:
        root = Path(scratch)
        base = root / "base"
        make_variant(arguments.bundle, base, "1.0.0", {"extra.bin": os.urandom(arguments.megabytes << 20)}, name="tiny")
        market = Market(root / "market", base)
        market.publish("1.0.0")
        shutil.rmtree(base)
        shutil.rmtree(market.root / "built-1.0.0")
        files = sorted((market.root / "repository" / "objects").iterdir())
        os.sync()
        pairs = []
        for number in range(arguments.rounds):
            before = cpu_seconds()
            seconds = plain(files, root / "plain")
            plain_cpu = cpu_seconds() - before
            shutil.rmtree(root / "plain")
            before = cpu_seconds()
            spent = ours(market, root / f"device-{number}")
            own_cpu = cpu_seconds() - before
            subprocess.run(["chmod", "-R", "u+w", str(root / f"device-{number}")], check=True)
            shutil.rmtree(root / f"device-{number}")
            own = sum(spent[step] for step in steps)
            pairs.append((own, seconds))
            detail = ", ".join(f"{step} {spent[step]:.2f}" for step in steps)
            print(
                f"ours {own:.2f} s ({detail}), plain {seconds:.2f} s, ratio {own / seconds:.2f}; "
                f"CPU {own_cpu:.2f} s against {plain_cpu:.2f} s",
                flush=True,
            )
        ratio = statistics.median(own / seconds for own, seconds in pairs)
        print(f"median ratio {ratio:.2f}, load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
