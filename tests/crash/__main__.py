"""``python -m tests.crash``: all scenarios, or those named, at every point; exit status 1 if anything did not hold."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import stat
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from agent.host.facts import Host, measure_host
from agent.state.database import Database
from agent.state.installation import InstallationState
from agent.state.layout import StateDirectory
from agent.state.schema import SCHEMA
from contract.bundle.manifest import MANIFEST_FILE, Manifest, manifest_digest, parse_manifest
from contract.errors import BundleRefused
from contract.system.durable import Disk, Effects
from tests.agent.install.market import Device, Market
from tests.crash.invariants import after_restart, at_the_end, missing_bytes
from tests.crash.scenarios import EARLY, SCENARIOS, Scenario, prepare, publish, source_of
from tests.crash.unsynced import UnsyncedModel
from tests.crash.world import KILLED, Deed, Life, NumberedEffects

SCRATCH = Path("/dev/shm")
"""Cutting the power means ending a process here, so nothing is gained by waiting for a disk."""


class Run:
    """One scenario on one market."""

    def __init__(
        self,
        scenario: Scenario,
        market: Market,
        root: Path,
        host: Host,
        *,
        lose_unsynced: bool = False,
        forget: str | None = None,
    ) -> None:
        self.lose_unsynced = lose_unsynced
        self.forget = forget
        self.scenario = scenario
        self.market = market
        self.root = root
        self.host = host
        self.template = root / "template"
        in_child(self._prepare)

    def _life(self, place: Path, effects: Effects) -> Life:
        return Life(StateDirectory(place), source_of(self.scenario, self.market), Disk(effects), self.host)

    def _prepare(self) -> list[str]:
        def live(device: Device, deed: Deed) -> None:
            Life(device.directory, str(self.market.root / EARLY), Disk(), self.host).live(deed)

        prepare(self.scenario, self.market, self.template, live)
        return []

    def count(self) -> list[str]:
        """The points of the undisturbed deed, in order."""
        place = self._copy("whole")

        def whole() -> list[str]:
            effects = NumberedEffects()
            self._life(place, effects).live(self.scenario.deed)
            return effects.points

        return in_child(whole)

    def cut_at(self, number: int) -> list[str]:
        """Cut the power at point ``number``; what did not hold afterwards.

        With unsynced writes lost, once with all of them lost and once with a part that depends on ``number``.
        """
        if not self.lose_unsynced:
            return self._cut(number, None)
        return [
            f"(unsynced writes lost by {seed}) {fault}" for seed in (0, number) for fault in self._cut(number, seed)
        ]

    def _cut(self, number: int, seed: int | None) -> list[str]:
        place = self._copy(f"device-{number}")
        left = place if seed is None else self.root / f"left-{number}"

        def doomed() -> list[str]:
            model = UnsyncedModel(place) if seed is not None else None
            if self.forget is not None:
                forget_to_flush(self.forget)

            def cut() -> None:
                if model is not None:
                    model.leave(left, seed or 0)
                os._exit(KILLED)

            self._life(place, NumberedEffects(number, cut)).live(self.scenario.deed)
            return ["the power was not cut"]

        faults = in_child(doomed, killed_is_fine=True) or in_child(lambda: self._recover(left))
        for each in {place, left}:
            Disk().remove(each)
        return faults

    def cut_each(self, numbers: Sequence[int], points: Sequence[str]) -> list[str]:
        """:meth:`cut_at` for all of ``numbers``; faults with the place they belong to."""
        return [f"{each}, {points[each - 1]}: {fault}" for each in numbers for fault in self.cut_at(each)]

    def _recover(self, place: Path) -> list[str]:
        # As the power left it: what a restart threw away would not be missing otherwise.
        missing = self._missing(place)
        fresh = self._life(place, Effects())
        fresh.live()
        faults = list(after_restart(self.scenario, fresh))
        again = self._life(place, Effects())
        again.live(self.scenario.deed)
        return faults + list(at_the_end(self.scenario, again, missing))

    def _missing(self, place: Path) -> int:
        directory = StateDirectory(place)
        # Read from a copy: opening it may change it.
        with tempfile.TemporaryDirectory(dir=self.root) as copy:
            for file in place.glob(f"{directory.database.name}*"):
                shutil.copy(file, copy)
            database = Database(Path(copy) / directory.database.name, SCHEMA)
            bundles = InstallationState(database).bundles()
            database.close()
        stored = (self.market.root / f"built-{self.scenario.wanted}" / MANIFEST_FILE).read_bytes()
        others: list[Manifest] = []
        for bundle in bundles:
            file = directory.bundle(bundle.digest) / MANIFEST_FILE
            with contextlib.suppress(FileNotFoundError, BundleRefused):
                others.append(parse_manifest(file.read_bytes()))
        return missing_bytes(directory, parse_manifest(stored), manifest_digest(stored), others)

    def _copy(self, name: str) -> Path:
        place = self.root / name
        shutil.copytree(self.template, place, symlinks=True)
        return place


def in_child(work: Callable[[], list[str]], *, killed_is_fine: bool = False) -> list[str]:
    """Run ``work`` in a fork, where a cut ends nothing but the fork; what it returns, or why it ended."""
    return _collect(_begin(work), killed_is_fine=killed_is_fine)


def in_children(works: Sequence[Callable[[], list[str]]]) -> list[str]:
    """As :func:`in_child`, all at the same time."""
    children = [_begin(work) for work in works]
    return [line for child in children for line in _collect(child)]


def _begin(work: Callable[[], list[str]]) -> tuple[int, int]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            with os.fdopen(writer, "w") as pipe:
                json.dump(work(), pipe)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writer)
    return child, reader


def _collect(begun: tuple[int, int], *, killed_is_fine: bool = False) -> list[str]:
    child, reader = begun
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == KILLED and killed_is_fine:
        return []
    if code != 0:
        return [f"the process ended with status {code}"]
    result = json.loads(said)
    assert isinstance(result, list)
    return result


def choose(points: Sequence[str], *, every: bool, stride: int) -> list[int]:
    """Numbers of the points to be tried; without ``every``, one of two with nothing between them.

    Nothing happens to the disk after one effect and before the next, nor within an effect of one step.
    """
    numbers = [
        number
        for number, point in enumerate(points, 1)
        if every or number == len(points) or not point.startswith("after ")
    ]
    return numbers[::stride]


def forget_to_flush(what: str) -> None:
    """Take the flushing of ``files`` or ``directories`` out of this process: the tests must notice."""
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) != (what == "directories"):
            real(handle)

    os.fsync = fsync  # type: ignore[assignment]  # every flush of this process passes here now


def default_bundle() -> Path:
    """A tiny bundle, made once for each state of the sources."""
    from packager.build.pipeline import build_bundle
    from packager.build.plan import BuildPlan
    from tests.forked import forked_children
    from tests.kept import CACHE, kept
    from tests.tiny import make_checkpoint

    def make(directory: Path) -> None:
        with tempfile.TemporaryDirectory() as checkpoint, forked_children():
            make_checkpoint(Path(checkpoint))
            build_bundle(BuildPlan(checkpoint, "tiny", "1.0.0", quantizer="rtn"), directory, cache=CACHE)

    return kept("crash-bundle", make)


KINDS = ("before", "within", "after")


def points_in(count: Counter[str]) -> int:
    return sum(count[kind] for kind in KINDS)


def table(tried: Mapping[str, Counter[str]]) -> str:
    """For every scenario: its effects, the points that were tried, and what did not hold."""
    head = ("effects", *KINDS, "points", "faults")
    rows = {**tried, "all": sum(tried.values(), Counter())}
    lines = [f"{'SCENARIO':24}" + "".join(f"{column.upper():>9}" for column in head)]
    for name, count in rows.items():
        cells = {**count, "points": points_in(count)}
        lines.append(f"{name:24}" + "".join(f"{cells.get(column, 0):9,}" for column in head))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--bundle", type=Path, help="a finished bundle directory named tiny (made where not given)")
    parser.add_argument("--scenario", action="append", choices=[scenario.name for scenario in SCENARIOS])
    parser.add_argument("--stride", type=int, default=1, help="try every n-th point only")
    parser.add_argument("--last", type=int, default=0, metavar="N", help="try the last N points only")
    parser.add_argument("--brief", action="store_true", help="leave out points that leave the same disk as another")
    parser.add_argument("--lose-unsynced", action="store_true", help="what was not flushed may be lost or reordered")
    parser.add_argument("--forget", choices=("files", "directories"), help="leave their flushing out; must fail")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--scratch", type=Path, default=SCRATCH if SCRATCH.is_dir() else None, metavar="DIR")
    arguments = parser.parse_args()
    # Loaded once, before forking: a fork that imports tuf takes ten times as long as the installation.
    import agent.install.trust.refresh  # noqa: F401

    started = time.monotonic()
    tried: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory(prefix="crash-", dir=arguments.scratch) as scratch:
        root = Path(scratch)
        market = publish(root / "market", arguments.bundle or default_bundle())
        host = measure_host(root)
        for scenario in SCENARIOS:
            if arguments.scenario and scenario.name not in arguments.scenario:
                continue
            place = root / scenario.name.replace(" ", "-")
            place.mkdir()
            run = Run(scenario, market, place, host, lose_unsynced=arguments.lose_unsynced, forget=arguments.forget)
            points = run.count()
            numbers = choose(points, every=not arguments.brief, stride=arguments.stride)[-arguments.last :]
            shares = [numbers[start :: arguments.jobs] for start in range(arguments.jobs)]
            faults = in_children([partial(run.cut_each, share, points) for share in shares])
            for fault in faults:
                print(f"{scenario.name}, point {fault}")
            count = Counter(points[number - 1].split()[0] for number in numbers)
            count |= {"effects": sum(point.startswith("before ") for point in points), "faults": len(faults)}
            tried[scenario.name] = count
            print(f"{scenario.name}: {len(numbers)} points, {len(faults)} faults", flush=True)
            Disk().remove(place)
    print(table(tried))
    failures = sum(count["faults"] for count in tried.values())
    total = sum(points_in(count) for count in tried.values())
    print(f"{total} points tried in {time.monotonic() - started:.0f} s, {failures} faults")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
