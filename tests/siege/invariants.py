"""What holds whatever was sent and broken: looked at from outside, as a client, an operator and a disk see it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial

from tests.siege.field import Field
from tests.siege.grammar import DEVICE, ROOT
from tests.tiny import ANSWERS

SECONDS = 300.0
"""Nobody breaks anything any more: everything is answered and done by then, on a busy machine, too."""

AGAIN_SECONDS = 4.0
"""Who heard nothing for so long asks again, with the same bytes."""

FULL_WINDOW = 120
"""More than a broker delivers before the first is acknowledged: answered all, none of those before is owed."""

MOST_MEMORY = 192 << 20
MOST_FILES = 96
MOST_STATE = 192 << 20
"""64 MB of answers, as much of requests that wait, and the log of a database that is being written."""

QUESTION = "What is the capital of France?"


class Invariants:
    """Each method adds to ``broken`` what does not hold."""

    def __init__(self, field: Field, broken: list[str], say: Callable[[str], None]) -> None:
        self._field = field
        self._broken = broken
        self._say = say
        self._asked = 0
        self._log_end = 0
        self._last = ""
        self.memory: list[int] = []
        self.files: list[int] = []
        self.state_bytes: list[int] = []

    def before_anything(self) -> None:
        """A device without a model says so everywhere; then it follows its first wish."""
        self._until(lambda: self._health() == ["no_model"], "a device without a model does not say so")
        self._doctor(False)
        self._last = "1.1.0"
        self._follow(self._last, "first")
        self._answers()

    def after_a_round(self, number: int) -> None:
        """Everything, in the order in which a fault would be found."""
        self._field.mend()
        for look in (
            self._answers,
            self._settle,
            partial(self._follow_another, f"good-{number}"),
            self._burst,
            self._answers,
            partial(self._doctor, True),
            self._bounded,
            self._poison,
            partial(self._restart, kill=number % 2 == 1),
            self._judge,
            self._no_traceback,
        ):
            before = len(self._broken)
            look()
            for line in self._broken[before:]:
                self._say(f"BROKEN: {line}")

    def at_the_end(self) -> None:
        """Without a broker or an agent nobody is answered, and doctor says so; what is installed is whole."""
        self._field.world.broker.stop()
        self._doctor(False)
        self._field.world.broker.start()
        self._answers()
        if self._field.world.end_agent() != 0:
            self._broken.append("the agent did not end in order")
        self._doctor(False)
        if self._field.world.run("verify") != 0:
            self._broken.append("what is installed does not verify")

    # -- a client's view -----------------------------------------------------------------------------------------------

    def _ask(self, name: str, body: dict[str, object], seconds: float = SECONDS) -> dict[str, object] | None:
        """The last frame, asked for as often as it takes; None if there is none in time."""
        witness = self._field.witness
        payload = json.dumps({"id": name, **body}).encode()
        account = witness.account(("plain", name))
        deadline, due = time.monotonic() + seconds, 0.0
        while not account.lasts:
            now = time.monotonic()
            if now > deadline:
                return None
            if now >= due:
                witness.publish(f"{ROOT}/d/{DEVICE}/generate/plain", payload)
                due = now + AGAIN_SECONDS
            time.sleep(0.01)
        return dict(json.loads(next(iter(account.lasts))))

    def _answers(self) -> None:
        """A plain request gets its answer."""
        self._asked += 1
        body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 64, "temperature": 0}
        last = self._ask(f"plain-{self._asked}", body)
        if last is None:
            self._broken.append(
                f"a plain request is not answered; health: {self._field.witness.retained.get('health')}"
            )
        elif last.get("text") != ANSWERS[QUESTION]:
            self._broken.append(f"a plain request got {last}")

    def _settle(self) -> None:
        self._until(self._settled, "not everything was answered")

    def _settled(self) -> bool:
        """Everything owed has been answered; what was lost with a broker is asked again."""
        open_ = list(self._field.witness.open.values())
        for shot in open_[:FULL_WINDOW]:
            self._field.gunners.fire(shot)
        if open_:
            deadline = time.monotonic() + AGAIN_SECONDS
            while self._field.witness.open and time.monotonic() < deadline:
                time.sleep(0.02)
        return not self._field.witness.open

    def _burst(self) -> None:
        """Nothing is left unacknowledged: the broker would stop delivering within this many messages."""
        self._asked += 1
        witness = self._field.witness
        names = [f"burst-{self._asked}-{number}" for number in range(FULL_WINDOW)]
        for name in names:
            witness.publish(f"{ROOT}/d/{DEVICE}/generate/burst", json.dumps({"id": name, "prompt": ""}).encode())
        self._until(
            lambda: all(witness.account(("burst", name)).settled for name in names),
            "a burst of wrong requests is not answered: something before it was not acknowledged",
        )

    def _poison(self) -> None:
        """Whoever got a 500 asks once more, alone: it was the worker's death then, and is none of the request's."""
        for key, shot in list(self._field.witness.failed.items()):
            body = json.loads(shot.payload)
            body.pop("id", None)
            self._asked += 1
            last = self._ask(f"again-{self._asked}", body)
            error = (last or {}).get("error")
            if last is None or (isinstance(error, dict) and error["code"] == 500):
                self._broken.append(f"{key} gets {last} again, though nobody breaks anything: {shot.payload[:500]!r}")
        self._field.witness.failed.clear()

    def _judge(self) -> None:
        """Exactly one result each."""
        self._broken += self._field.witness.judge()

    # -- an operator's view --------------------------------------------------------------------------------------------

    def _health(self) -> list[str] | None:
        health = self._field.witness.retained.get("health")
        return None if health is None else list(health["reasons"])

    def _follow(self, version: str, revision: str) -> None:
        """A good desired document is followed to its end."""
        self._field.want(version, revision)

        def followed() -> bool:
            last = self._field.witness.retained.get("reported", {})
            active = last.get("active") or {}
            return bool(
                last.get("revision") == revision and last["phase"] == "IDLE" and active.get("version") == version
            )

        self._until(followed, f"a good desired document ({revision}: {version}) is not followed", "reported")

    def _follow_another(self, revision: str) -> None:
        self._last = self._field.world.publish()
        self._follow(self._last, revision)

    def _doctor(self, well: bool) -> None:
        """Doctor's verdict is what a client sees; so is the device's own, where it can be heard."""
        verdict, bad = self._field.doctor()
        if verdict != well:
            self._broken.append(f"doctor says {'all is well' if verdict else bad!r}, a client sees the contrary")
        if well and not self._field.witness.retained["health"]["ready"]:
            self._broken.append(
                f"a device that answers calls itself not ready: {self._field.witness.retained['health']}"
            )

    def _restart(self, *, kill: bool) -> None:
        """It comes up again with all that it has stored, and serves what it served."""
        if kill:
            self._field.world.kill_agent()
        elif (status := self._field.world.end_agent()) != 0:
            self._broken.append(f"the agent ended with status {status} at SIGTERM")
        self._field.other_protocol()
        self._field.world.start_agent()
        self._answers()
        self._until(
            lambda: (self._field.witness.retained["reported"]["active"] or {}).get("version") == self._last,
            "after a restart another bundle is active", "reported",
        )  # fmt: skip

    def _bounded(self) -> None:
        memory, files, state = self._field.measure()
        self.memory.append(memory)
        self.files.append(files)
        self.state_bytes.append(state)
        for what, value, most in (
            ("bytes", memory, MOST_MEMORY),
            ("files", files, MOST_FILES),
            ("state", state, MOST_STATE),
        ):
            if value > most:
                self._broken.append(f"the agent has {value} {what}, at most {most} are right")

    def _no_traceback(self) -> None:
        """Nothing from outside may run into what nobody thought of."""
        said, self._log_end = self._field.log(self._log_end)
        at = said.find("Traceback")
        if at >= 0:
            self._broken.append(f"the log has a traceback: {said[max(0, at - 400) : at + 2000]}")

    def _until(self, holds: Callable[[], bool], what: str, retained: str = "health") -> None:
        deadline = time.monotonic() + SECONDS
        while not holds():
            if time.monotonic() > deadline:
                self._broken.append(f"{what}; {retained}: {self._field.witness.retained.get(retained)}")
                return
            time.sleep(0.02)
