"""What is fired and broken, minute after minute, and what is written down of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.siege.field import Field
from tests.siege.grammar import VERSIONS, Grammar
from tests.siege.invariants import Invariants
from tests.siege.shots import Blow, Step

BLOWS = (
    "worker killed", "agent killed", "broker restarted", "agent ended", "broker hung", "agent away", "broker killed",
    "namesake", "worker hung", "captive portal", "agent killed while it starts",
)  # fmt: skip

ROUND_SECONDS = 60.0
SHOTS_PER_BLOW = 250
"""In the long run; fewer where every kind of blow is to come within seconds."""

WINDOW = 48
"""Owed answers outstanding, outside of bursts; fewer than the device's queue holds, so that most are taken."""

PATIENCE_SECONDS = 0.5
"""The next shot waits no longer, whatever is outstanding."""

LOST_SECONDS = 3.0
"""What was not answered by then may have been lost with a broker; it is asked again in the end."""

BURST = 40
SHOTS_PER_BURST = 400


@dataclass
class Report:
    """``broken`` says what did not hold; empty when all did."""

    seed: int
    shots: Counter[str] = field(default_factory=Counter)
    blows: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    owed: int = 0
    frames: int = 0
    unsendable: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    memory: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    state_bytes: list[int] = field(default_factory=list)
    seconds: float = 0.0
    broken: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        said = [
            f"seed {self.seed}: {self.shots.total()} messages in {self.seconds:.0f} s and {self.rounds} rounds, "
            f"{self.unsendable} of them not sent by the client's library; {self.owed} owed an answer at their id",
            f"messages: {dict(self.shots.most_common())}",
            f"{self.blows.total()} blows: {dict(self.blows)}",
            f"{self.frames} frames came back; last ones: {dict(self.outcomes.most_common())}",
        ]
        if self.memory:
            said.append(
                f"the agent's RSS at the end of a round: {min(self.memory) / 2**20:.1f} to "
                f"{max(self.memory) / 2**20:.1f} MiB, open files {min(self.files)} to {max(self.files)}, "
                f"state.db at most {max(self.state_bytes) / 2**20:.1f} MiB"
            )
        return said


class Siege:
    """One agent for ``minutes``; the messages since the last good check are kept in ``root`` when one is not good."""

    def __init__(
        self, root: Path, bundle: Path, seed: int, say: Callable[[str], None], *, shots_per_blow: int = SHOTS_PER_BLOW
    ) -> None:
        self._root = root
        self._seed = seed
        self._say = say
        self._shots_per_blow = shots_per_blow
        self._grammar = Grammar(seed)
        self._random = Random(f"{seed}/blows")
        self._report = Report(seed)
        self._steps: list[Step] = []
        self._next = 0
        self._field = Field(root, bundle)
        self._invariants = Invariants(self._field, self._report.broken, say)

    def run(self, minutes: float, round_seconds: float = ROUND_SECONDS, *, go_on: bool = False) -> Report:
        """Everything; ends at the first round whose check is not good, unless told to ``go_on``."""
        started = time.monotonic()
        self._field.start(VERSIONS)
        try:
            self._invariants.before_anything()
            while go_on or not self._report.broken:
                self._storm(min(round_seconds, minutes * 60))
                self._check()
                if time.monotonic() - started > minutes * 60:
                    break
            if not self._report.broken:
                self._invariants.at_the_end()
        finally:
            self._field.stop()
            self._report.seconds = time.monotonic() - started
        return self._report

    def replay(self, steps: Sequence[Step]) -> Report:
        """These only, in this order, and one check."""
        self._field.start(VERSIONS)
        try:
            self._invariants.before_anything()
            for step in steps:
                self._do(step)
            self._check()
        finally:
            self._field.stop()
        return self._report

    def _storm(self, seconds: float) -> None:
        """For so long, and until there was each kind of blow."""
        end = time.monotonic() + seconds
        self._field.gunners.sleep()
        while time.monotonic() < end or self._report.blows.total() < len(BLOWS):
            if self._next % self._shots_per_blow == self._shots_per_blow - 1:
                blows = self._report.blows.total()
                self._do(Blow(BLOWS[blows] if blows < len(BLOWS) else self._random.choice(BLOWS)))
            self._field.tick()
            self._do(self._grammar.shot(self._next))
            self._next += 1
        self._field.gunners.wake()

    def _do(self, step: Step) -> None:
        self._steps.append(step)
        if isinstance(step, Blow):
            self._say(f"{self._next} messages; {step.kind}")
            self._report.blows[step.kind] += 1
            self._field.strike(step.kind)
            return
        self._report.shots[step.what] += 1
        self._report.owed += step.owed
        self._field.witness.expect(step)
        self._field.gunners.fire(step)
        if step.number % SHOTS_PER_BURST >= BURST:
            self._pace()

    def _pace(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._field.witness.outstanding(LOST_SECONDS) > WINDOW and time.monotonic() < deadline:
            time.sleep(0.005)

    def _check(self) -> None:
        report, field_ = self._report, self._field
        before = len(report.broken)
        self._say(f"{self._next} messages; looking")
        self._invariants.after_a_round(report.rounds)
        report.rounds += 1
        report.frames, report.outcomes = field_.witness.frames, field_.witness.outcomes
        report.unsendable = field_.gunners.unsendable
        report.memory, report.files = self._invariants.memory, self._invariants.files
        report.state_bytes = self._invariants.state_bytes
        if len(report.broken) > before:
            path = self._root / f"round-{report.rounds}.jsonl"
            path.write_text("".join(step.line() + "\n" for step in self._steps))
            self._say(f"{len(self._steps)} messages and blows since the last good check: {path}")
        else:
            self._say(f"round {report.rounds} holds: {report.shots.total()} messages, {report.blows.total()} blows")
        self._steps.clear()
