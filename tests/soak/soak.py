"""What happens, in which order, and what it came to."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.soak.asker import Asker
from tests.soak.world import World
from tests.tiny import ANSWERS

FAULTS = ("worker killed", "broker restarted", "server cut", "worker hung", "broker killed", "agent killed")
GENTLE = tuple(fault for fault in FAULTS if fault != "agent killed")
"""In the second half nobody kills the agent: it must not grow meanwhile."""

FAULT_SECONDS = 5.0
"""Between two faults, on the average."""

SWAP_SECONDS = 3.0
"""Another version is wanted so long after the last one is settled."""

SETTLE_SECONDS = 300.0
"""Nobody breaks anything any more: everything that was accepted is answered by then."""

MAX_GROWTH = 0.2
"""Of the agent's memory over the second half; caches fill, and allocators do not give everything back."""

MAX_MORE_FILES = 8


@dataclass
class Report:
    """``broken`` says what did not hold; empty when all did. Memory in bytes, of the agent that lived last."""

    requests: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    swaps: int = 0
    rollbacks: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    memory: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        why = f": {dict(self.rollbacks)}" if self.rollbacks else ""
        said = [
            f"{self.requests} requests in {self.seconds:.0f} s, {self.swaps} swaps, "
            f"{self.rollbacks.total()} rolled back{why}",
            f"{self.faults.total()} faults injected: {dict(self.faults)}",
            f"answers lost: {self.lost}; ended with an error that says so: {dict(self.errors) or 0}",
        ]
        if self.memory:
            first, last = (
                typical(self.memory[: len(self.memory) // 4 + 1]),
                typical(self.memory[-len(self.memory) // 4 :]),
            )
            said.append(
                f"agent's RSS: {first / 2**20:.1f} MiB, at the end {last / 2**20:.1f} MiB ({last / first - 1:+.1%}); "
                f"open files: {self.files[0]}, at the end {self.files[-1]} (at most {max(self.files)})"
            )
        return said


def typical(values: list[int]) -> int:
    """The median."""
    return sorted(values)[len(values) // 2]


class Soak:
    """One agent for ``minutes``; ``say`` hears of every fault."""

    def __init__(
        self,
        root: Path,
        bundle: Path,
        minutes: float,
        seed: int,
        say: Callable[[str], None],
        *,
        fault_seconds: float = FAULT_SECONDS,
    ) -> None:
        self._world = World(root, bundle)
        self._seconds = minutes * 60
        self._fault_seconds = fault_seconds
        self._random = random.Random(seed)
        self._say = say
        self._report = Report()
        self._wanted = ""
        self._versions: set[str] = set()

    def run(self) -> Report:
        """Everything; the report."""
        started = time.monotonic()
        self._world.start()
        try:
            self._asker = Asker(self._world.broker.port)
            try:
                self._want_another()
                self._until(lambda: self._settled() and self._wanted == self._active(), 120, "nothing became active")
                self._live()
                self._end()
            finally:
                self._asker.close()
        finally:
            self._world.stop()
        self._judge()
        self._report.seconds = time.monotonic() - started
        return self._report

    def _live(self) -> None:
        began = time.monotonic()
        next_fault, next_swap, next_sample = began + 2, began + 1, began
        faults = 0
        while (now := time.monotonic()) < began + self._seconds:
            self._asker.step(more=True)
            second_half = now > began + self._seconds / 2
            if now >= next_fault:
                kinds = GENTLE if second_half else FAULTS
                # Each kind once before any comes again, so that a short run sees all of them.
                kind = FAULTS[faults % len(FAULTS)] if faults < len(FAULTS) else self._random.choice(kinds)
                faults += 1
                self._break(kind)
                next_fault = time.monotonic() + self._fault_seconds * self._random.uniform(0.5, 1.5)
            if not self._settled():
                next_swap = now + SWAP_SECONDS * self._random.uniform(0.2, 1.0)
            elif now >= next_swap:
                self._want_another()
                next_swap = now + SWAP_SECONDS
            if second_half and now >= next_sample and faults > len(FAULTS):
                self._sample()
                next_sample = now + 1
            time.sleep(0.03)

    def _break(self, kind: str) -> None:
        self._say(f"{len(self._asker.requests)} requests, {self._asker.swaps} swaps; {kind}")
        self._report.faults[kind] += 1
        getattr(self._world, "fault_" + kind.replace(" ", "_"))()

    def _want_another(self) -> None:
        self._wanted = self._world.publish()
        self._versions.add(self._wanted)
        self._asker.desire(self._wanted)

    def _active(self) -> str | None:
        active = self._asker.reported.get("active")
        return None if active is None else str(active["version"])

    def _settled(self) -> bool:
        """The device has done with the last wish: it runs it, or has said why not."""
        last = self._asker.reported
        if last.get("revision") != f"r{self._wanted}" or last.get("phase") != "IDLE":
            return False
        error = last.get("error") or {}
        return self._active() == self._wanted or error.get("reason", "source_unavailable") not in LATER

    def _sample(self) -> None:
        try:
            self._report.memory.append(self._world.agent.memory_info().rss)
            self._report.files.append(self._world.agent.num_fds())
        except psutil.Error:
            self._report.broken.append("the agent died by itself")

    def _until(self, holds: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                self._report.broken.append(f"{what}: {self._asker.reported}")
                return
            self._asker.step(more=False)
            time.sleep(0.1)

    def _end(self) -> None:
        """With everything whole again: all is answered, one more version is taken, and every byte is right."""
        self._until(lambda: not self._asker.open, SETTLE_SECONDS, "not everything was answered")
        self._until(self._settled, SETTLE_SECONDS, "the last wish was never settled")
        self._want_another()
        self._until(lambda: self._active() == self._wanted, SETTLE_SECONDS, "the last version was not taken")
        self._until(lambda: len(self._world.workers()) == 1, 30, "workers were left over")
        self._sample()
        if self._world.end_agent() != 0:
            self._report.broken.append("the agent did not end in order")
        if self._world.run("verify") != 0:
            self._report.broken.append("what is installed does not verify")

    def _judge(self) -> None:
        report, asker = self._report, self._asker
        report.requests, report.swaps, report.rollbacks = len(asker.requests), asker.swaps, asker.rollbacks
        for name, request in asker.requests.items():
            if not request.results:
                report.lost += 1
                report.broken.append(f"{name} was never answered")
            if len(request.results) > 1:
                report.broken.append(f"{name} has {len(request.results)} results")
            for result in request.results:
                frame = json.loads(result)
                if "error" in frame:
                    report.errors[frame["error"]["type"]] += 1
                elif frame["text"] != ANSWERS[request.question]:
                    report.broken.append(f"{name} got {frame['text']!r} to {request.question!r}")
                elif frame["bundle"].removeprefix("tiny@") not in self._versions:
                    report.broken.append(f"{name} was answered by {frame['bundle']}")
        if report.memory:
            quarter = len(report.memory) // 4 + 1
            first, last = typical(report.memory[:quarter]), typical(report.memory[-quarter:])
            if last > first * (1 + MAX_GROWTH):
                report.broken.append(f"the agent grew from {first} to {last} bytes")
            if report.files[-1] > report.files[0] + MAX_MORE_FILES:
                report.broken.append(f"{report.files[-1]} files are open, {report.files[0]} were")


LATER = frozenset({"source_unavailable", "store_full", "store_broken", "interrupted"})
"""Reasons of a device that will try again by itself."""
