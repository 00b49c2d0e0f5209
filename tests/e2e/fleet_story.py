"""Three devices, a fleet, a gateway: a good bundle goes out in waves, a slow one halts in the first, programs ask on.

As a user does it: ``edge-packager``, ``edge-agent``, ``edge-fleet``, a broker, and the openai package.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai

from fleet.rollout.model import Rollout
from fleet.rollout.states import ENDED, RolloutState, TargetState
from fleet.store import devices, rollouts
from fleet.store.database import Database, parse_database
from fleet.store.devices import DeviceRow
from tests.agent.install.market import make_variant
from tests.broker import Broker, free_port
from tests.e2e.narrator import Narrator
from tests.e2e.slow_model import slow_down
from tests.e2e.story import TEMPLATE, StoryFailed, unpack_model
from tests.kept import SMOLLM2, kept

NAME = "smollm2"
BOXES = ("box-1", "box-2", "box-3")
QUESTION = "What is the capital of France?"
WORDS = 12
"""Tokens of an answer to those who ask all the time."""

AGENT = """
device = "{device}"
groups = ["boxes"]
state_dir = "{state}"
[broker]
host = "127.0.0.1"
port = {port}
[sources]
depot = "{repository}"
[install]
probation_seconds = 2
# What a device judges by itself. Here the fleet shall see it, which compares devices.
speed_ratio = 0.05
[worker]
threads = 1
# Nothing is prepacked, at the lowest priority: the boxes share this machine's cores.
engine = "genai"
[telemetry]
interval_seconds = 1
"""

ROLLOUT = """
where = "group=boxes"
waves = [1, "100%"]
holdout = 1
bake = "12s"
deadline = "10m"
[halt]
max_failures = 1
[gates]
# The boxes share the cores of this machine, with whatever else runs on it: a bundle is slow that has half the speed,
# which is compared with the control group over the same time.
tokens_per_second = 0.5
first_token_p95 = false
min_requests = 5
"""

STEP_SECONDS = 600.0
"""Longest that one step may take, on a machine that does much else."""

PAUSE_SECONDS = 0.5
"""Between two questions to one box: a candidate is tried at the lowest priority, and needs cores that nobody takes."""


class FleetStory:
    """One telling, in a directory of its own. ``close`` stops everything that was started, in any state."""

    def __init__(self, home: Path, cache: Path, tell: Narrator, *, bundle: Path | None = None) -> None:
        """``bundle``: a bundle of SmolLM2 that is there already; without one it is built."""
        self.home = home
        self.cache = cache
        self.tell = tell
        self.repository, self.keys = home / "repository", home / "keys"
        self.database = f"sqlite:///{home}/fleet.db"
        self.store = Database(parse_database(self.database))
        self.broker = Broker(home / "broker")
        self.gateway = f"http://127.0.0.1:{free_port()}"
        self.key = ""
        self.installed: Counter[str] = Counter()
        self._bundle = bundle
        self._processes: list[subprocess.Popen[bytes]] = []
        self._stopping = threading.Event()
        self._askers: list[threading.Thread] = []
        self.asked: Counter[str] = Counter()
        home.mkdir(parents=True, exist_ok=True)

    def run(self, program: str, *arguments: str) -> str:
        """A command of ours; what it prints.

        Raises:
            StoryFailed: exit status not 0.
        """
        shown = (
            " ".join(arguments)
            .replace(f" --database {self.database}", "")
            .replace(str(self.home), "…")
            .replace(str(self.cache), "…")
        )
        if self.tell.verbose and "--json" not in arguments:
            self.tell.say(f"$ edge-{program} {shown}")
        command = [sys.executable, "-m", f"{program}.cli", *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=STEP_SECONDS)
        except subprocess.TimeoutExpired as late:
            raise StoryFailed(f"edge-{program} {shown}: not within {STEP_SECONDS:.0f} s") from late
        if done.returncode != 0:
            raise StoryFailed(f"edge-{program} {shown} ended with {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    def fleet(self, *arguments: str) -> str:
        return self.run("fleet", *arguments, "--database", self.database)

    def start(self, log: str, program: str, *arguments: str) -> None:
        """A process of ours, which :meth:`close` ends."""
        with (self.home / f"{log}.log").open("ab") as written:
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", f"{program}.cli", *arguments],
                    stdout=written, stderr=written, stdin=subprocess.DEVNULL,
                )
            )  # fmt: skip

    def until(self, look: Callable[[], Any], what: str) -> Any:
        """The first true thing that ``look`` sees.

        Raises:
            StoryFailed: it does not come, or a process of ours ended.
        """
        end = time.monotonic() + STEP_SECONDS
        while time.monotonic() < end:
            if found := look():
                return found
            for process in self._processes:
                if process.poll() is not None:
                    raise StoryFailed(f"{process.args} ended with {process.returncode}")
            time.sleep(0.3)
        raise StoryFailed(f"{what}: not within {STEP_SECONDS:.0f} s")

    # -- bundles ---------------------------------------------------------------------------------------------------

    def publish_bundles(self) -> None:
        """``1.0.0``; ``1.1.0``, as good; ``1.2.0``, which says the same and is slow. All of them are signed."""
        self.run("packager", "repo", "init", "--repo", str(self.repository), "--keys", str(self.keys), "--unencrypted")
        first = self._bundle or kept(SMOLLM2, self._build, cache=self.cache)
        made = {"1.0.0": first}
        template = (first / TEMPLATE).read_bytes()
        changes = {"1.1.0": {TEMPLATE: template + b"{# a remark of ours #}"},
                   "1.2.0": {"model.onnx": slow_down(first / "model.onnx")}}  # fmt: skip
        for version, files in changes.items():
            made[version] = self.home / f"bundle-{version}"
            make_variant(first, made[version], version, files)
        for bundle in made.values():
            words = ["repo", "publish", str(bundle), "--repo", str(self.repository), "--keys", str(self.keys)]
            self.run("packager", *words)

    def _build(self, out: Path) -> None:
        """As tests do, which share what it makes."""
        self.run("packager", "build", str(unpack_model(self.cache)), "--name", NAME, "--version", "1.0.0", "--out",
                 str(out), "--cache", str(self.cache), "--quantizer", "rtn")  # fmt: skip

    # -- broker, fleet, devices ------------------------------------------------------------------------------------

    def start_everything(self) -> None:
        """Broker, fleet with its gateway and a key, three devices that answer."""
        self.broker.start()
        self.fleet("init")
        self.key = self.fleet("token", "create", "demo", "--requests-per-day", "100000").strip()
        self.start("fleet", "fleet", "serve", "--broker", self.broker.url, "--database", self.database, "--roles",
                   "controller,ingest,web,gateway", "--listen", self.gateway.removeprefix("http://"))  # fmt: skip
        with ThreadPoolExecutor() as pool:
            list(pool.map(self._start_box, BOXES))
        self.until(lambda: len(self.running()) == len(BOXES), "three devices to be online")
        self.run("packager", "deploy", "--broker", self.broker.url, "--group", "boxes", f"{NAME}@1.0.0")
        self.until(lambda: set(self.running().values()) == {f"{NAME}@1.0.0"}, "1.0.0 to be active on all of them")

    def _start_box(self, box: str) -> None:
        config = self.home / f"{box}.toml"
        config.write_text(AGENT.format(
            device=box, state=self.home / box, port=self.broker.port, repository=self.repository))  # fmt: skip
        self.run("agent", "trust", "provision", str(self.root), "--config", str(config))
        self.start(box, "agent", "run", "--config", str(config))

    @property
    def root(self) -> Path:
        return self.repository / "metadata" / "1.root.json"

    def rows(self) -> list[DeviceRow]:
        """The registry. Read here: a command each time would take the cores that the devices need."""
        with self.store.read() as connection:
            return devices.rows(connection)

    def running(self) -> dict[str, str]:
        """The bundle of each device that is online."""
        return {row.traits.device: row.traits.bundle for row in self.rows() if row.traits.online}

    # -- asking ----------------------------------------------------------------------------------------------------

    def client(self) -> openai.OpenAI:
        """As any program: a base URL and a key."""
        return openai.OpenAI(base_url=f"{self.gateway}/v1", api_key=self.key, max_retries=5, timeout=120)

    def ask(self, model: str, show: bool = True) -> tuple[str, str]:
        """Stream an answer; its text, and the bundle that gave it."""
        text, bundle = "", ""
        if show:
            self.tell.say(f"> {QUESTION}   (model={model!r})")
            self.tell.token("   < ")
        with self.client() as client:
            messages = [{"role": "user", "content": QUESTION}]
            for chunk in client.chat.completions.create(
                model=model,
                messages=messages,
                max_tokens=32,
                stream=True,  # type: ignore[arg-type]
            ):
                bundle = chunk.model
                piece = chunk.choices[0].delta.content or "" if chunk.choices else ""
                text += piece
                if show:
                    self.tell.token(piece)
        if show:
            self.tell.token("\n")
        return text, bundle

    def keep_asking(self) -> None:
        """From now on somebody asks each device, as in a hall where people work."""
        for box in BOXES:
            thread = threading.Thread(target=self._keep_asking, args=(box,), daemon=True)
            thread.start()
            self._askers.append(thread)
        self.until(lambda: min(self.asked[box] for box in BOXES) >= 10, "ten answers of each device")

    def _keep_asking(self, box: str) -> None:
        number = 0
        with self.client() as client:
            while not self._stopping.is_set():
                number += 1
                messages = [{"role": "user", "content": f"Write about the number {number}."}]
                # A box that swaps its model says so, and is asked again.
                with contextlib.suppress(openai.APIError):
                    client.chat.completions.create(
                        model=f"device:{box}",
                        messages=messages,
                        max_tokens=WORDS,  # type: ignore[arg-type]
                    )
                    self.asked[box] += 1
                self._stopping.wait(PAUSE_SECONDS)

    # -- rollouts --------------------------------------------------------------------------------------------------

    def roll_out(self, version: str) -> Rollout:
        """Roll a version out and follow it to its end."""
        spec = self.home / "rollout.toml"
        spec.write_text(ROLLOUT)
        place = ["--depot", str(self.repository), "--root", str(self.root)]
        started = json.loads(self.fleet("rollout", "start", f"{NAME}@{version}", "--spec", str(spec), *place, "--json"))
        number = int(started["rollout"])
        self.tell.say(f"$ edge-fleet rollout start {NAME}@{version} --spec rollout.toml   → rollout {number}")
        seen = ""

        def ended() -> Rollout | None:
            nonlocal seen
            with self.store.read() as connection:
                found = rollouts.load(connection, number)
            for device, bundle in self.running().items():
                if bundle == f"{NAME}@{version}":
                    self.installed[f"{version} {device}"] += 1
            if (line := describe(found)) != seen:
                seen = line
                self.tell.say(f"  {line}")
            if found.state is RolloutState.PAUSED:
                # The boxes share this machine's cores, with whatever else runs on it.
                self.tell.say("  too little was asked to judge it by; it bakes again")
                self.fleet("rollout", "resume", str(number))
            return found if found.state in ENDED else None

        found: Rollout = self.until(ended, f"rollout {number} to end")
        return found

    def got(self, version: str) -> list[str]:
        """Devices that ever ran it."""
        return sorted(key.partition(" ")[2] for key in self.installed if key.startswith(f"{version} "))

    def healthy(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.gateway}/healthz", timeout=5) as reply:
            return bool(json.load(reply)["status"] == "ok")
        return False

    def log_tail(self) -> str:
        """The last lines of every process."""
        return "\n".join(
            f"--- {path.name}\n" + "\n".join(path.read_text("utf-8", "replace").splitlines()[-15:])
            for path in sorted(self.home.glob("*.log"))
        )

    def close(self) -> None:
        """Stop everything."""
        self._stopping.set()
        for thread in self._askers:
            thread.join(10)
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()
        self.broker.stop()
        self.store.close()


def describe(found: Rollout) -> str:
    """A rollout in a line."""
    why = f" ({found.reason})" if found.reason else ""
    waves = ", ".join(f"wave {wave.number} {wave.state}" for wave in found.waves)
    targets = [each for each in found.targets.values() if each.wave > 0]
    states = ", ".join(f"{each.device} {each.state}" for each in targets if each.state is not TargetState.PENDING)
    return f"{found.state}{why}: {waves}" + (f"; {states}" if states else "")


def bundle_of_environment() -> Path | None:
    """A bundle that is there already: EDGE_DEMO_BUNDLE."""
    named = os.environ.get("EDGE_DEMO_BUNDLE")
    return Path(named).resolve() if named else None
