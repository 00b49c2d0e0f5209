"""A device in service, as an operator and a client see it who want something of it that may fail."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.soak.asker import Asker
from tests.soak.world import SETTINGS, World
from tests.tiny import ANSWERS

SECONDS = 300.0
CANARY = "canary_seconds = 200.0"
"""In the configuration: candidates fail for what is wrong with them, and not for want of time on a busy machine."""
GOOD = "1.1.0"


class Scene:
    """A device that serves ``GOOD`` to a client that never stops asking."""

    def __init__(self, root: Path, bundle: Path) -> None:
        self.world = World(root, bundle, SETTINGS.replace("canary_seconds = 30.0", CANARY))
        self.world.start()
        self.reasons: dict[str, str] = {}
        self.asker = Asker(self.world.broker.port)
        self._ended = threading.Event()
        self._more = True
        self._asking = threading.Thread(target=self._ask)
        self._asking.start()
        self.asker.desire(self.world.publish())
        self.until(lambda: self.active == GOOD)

    def _ask(self) -> None:
        while not self._ended.wait(0.2):
            self.asker.step(more=self._more)

    def configure(self, old: str, new: str) -> None:
        """Another line in the configuration, and a restart."""
        config = self.world.root / "agent.toml"
        assert old in config.read_text()
        config.write_text(config.read_text().replace(old, new))
        assert self.world.end_agent() == 0
        self.world.start_agent()
        before = self.answered()
        self.until(lambda: self.answered() > before)

    def stop_asking(self) -> None:
        """Nothing new; what is open is asked again until it is answered."""
        self._more = False

    def close(self) -> None:
        self._ended.set()
        self._asking.join()
        self.asker.close()
        self.world.stop()

    def wrong_answers(self) -> list[bytes]:
        """Whatever was tried meanwhile, every answer is the one of the model that serves, and there is one.

        Who was being answered when the agent was ended may be told so instead.
        """
        wrong = []
        for request in self.asker.requests.values():
            for result in request.results:
                frame = json.loads(result)
                right = frame.get("text") == ANSWERS[request.question] or "error" in frame
                told = frame.get("error", {}).get("type", "interrupted") == "interrupted"
                if not (right and told) or len(request.results) > 1:
                    wrong.append(result)
        return wrong

    @property
    def active(self) -> str | None:
        return (self.asker.reported.get("active") or {}).get("version")

    def until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not holds():
            assert time.monotonic() < deadline, self.asker.reported
            time.sleep(0.02)

    def answered(self) -> int:
        return sum(bool(request.results) for request in list(self.asker.requests.values()))

    def refuses(self, version: str, **more: object) -> dict[str, Any]:
        """Wish for ``version``; what is reported of its failure."""
        before = self.answered()
        self.asker.desire(version, **more)
        self.until(
            lambda: (
                self.asker.reported.get("revision") == f"r{version}"
                and self.asker.reported["phase"] == "IDLE"
                and self.asker.reported.get("error") is not None
            )
        )
        said = dict(self.asker.reported)
        self.until(lambda: self.answered() > before)
        assert said["active"]["version"] == GOOD
        self.reasons[version] = said["error"]["reason"]
        return said

    def fetched(self, path: Path) -> bool:
        """Whether anybody asked the server for an object."""
        return path.name in (self.world.root / "web" / "access.log").read_text()
