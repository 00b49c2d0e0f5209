"""A device's life: a kit on a bare Debian without a network, prompts, crashes, hangs, a full disk, a power cut.

Needs root. One container, installed once; every test leaves it serving.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from packager.cli import main as packager
from tests.agent.install.market import Market
from tests.systemd.container import Container, debian
from tests.tiny import ANSWERS

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        os.geteuid() != 0 or not (shutil.which("debootstrap") and shutil.which("systemd-nspawn")),
        reason="needs root, debootstrap and systemd-nspawn",
    ),
    pytest.mark.timeout(1200),
]

QUESTION, ANSWER = next(iter(ANSWERS.items()))
PATIENCE = 120.0
LITTLE_BYTES = 1 << 20
"""Enough to keep requests and answers, too little for a bundle."""

CONFIG = """\
[broker]
host = "localhost"

[sources]
usb = "/srv/repository"

[install]
# An update takes some seconds then: long enough to pull the plug in the middle.
probation_seconds = 2.0
retry_first_seconds = 1.0
retry_longest_seconds = 3.0

[worker]
stall_seconds = 5.0
load_seconds = 60.0

[telemetry]
interval_seconds = 1
"""


class Device:
    """The agent in its container, seen as an operator and a client see it."""

    def __init__(self, container: Container) -> None:
        self.container = container

    def ask(self, identifier: str) -> str:
        """The answer to the question."""
        messages = [{"role": "user", "content": QUESTION}]
        body = {"id": identifier, "messages": messages, "max_tokens": 16, "temperature": 0, "stream": False}
        done = self.container.run(
            "mosquitto_rr", "-V", "5", "-W", "60", "-t", "edge/v1/d/edge/generate/tester",
            "-e", f"edge/v1/c/tester/r/edge/{identifier}", "-m", json.dumps(body),
        )  # fmt: skip
        return str(json.loads(done.stdout).get("text", done.stdout))

    def retained(self, topic: str) -> dict[str, Any]:
        done = self.container.run(
            "mosquitto_sub", "-V", "5", "-C", "1", "-W", "30", "-q", "1", "-t", f"edge/v1/d/edge/{topic}"
        )
        return dict(json.loads(done.stdout))

    def until(self, topic: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while not holds(seen := self.retained(topic)):
            assert time.monotonic() < deadline, f"{seen}\n{self.container.journal('edge-agent')[-3000:]}"
            time.sleep(0.1)
        return seen

    def deploy(self, version: str) -> None:
        wanted = {"revision": f"r{version}", "bundle": {"name": "tiny", "version": version}, "source": "usb"}
        self.container.run(
            "mosquitto_pub", "-V", "5", "-q", "1", "-r", "-t", "edge/v1/d/edge/desired", "-m", json.dumps(wanted)
        )

    def serving(self, version: str) -> None:
        self.until(
            "reported", lambda seen: (seen["active"] or {}).get("version") == version and seen["phase"] == "IDLE"
        )
        self.until("health", lambda seen: bool(seen["ready"]))

    def workers(self) -> list[int]:
        done = self.container.run("pgrep", "-u", "edge-agent-worker", check=False)
        return [int(line) for line in done.stdout.split()]


@pytest.fixture(scope="module")
def market(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Market:
    market = Market(tmp_path_factory.mktemp("market"), tiny_bundle)
    market.publish("1.0.0")
    # The second one shares no weights with the first, so that there is something to fetch.
    market.publish("1.1.0", {"extra.bin": os.urandom(2_000_000)})
    market.publish("1.2.0", {"extra.bin": os.urandom(3_000_000)})
    return market


@pytest.fixture(scope="module")
def kit(market: Market, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked agent kit for this machine and Debian 12's Python."""
    directory = tmp_path_factory.mktemp("kit")
    (directory / "agent.toml").write_text(CONFIG)
    arguments = [
        "agent-kit", "--arch", platform.machine(), "--python", "3.11", "--out", str(directory / "kit.tar"),
        "--root-json", str(market.root_json), "--config", str(directory / "agent.toml"),
    ]  # fmt: skip
    before, sys.argv = sys.argv, ["edge-packager", *arguments]
    try:
        assert packager() == 0
    finally:
        sys.argv = before
    with tarfile.open(directory / "kit.tar") as archive:
        archive.extractall(directory, filter="tar")
    (top,) = directory.glob("edge-agent-*")
    return top


@pytest.fixture(scope="module")
def device(kit: Path, market: Market, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    base = debian(Path(os.environ.get("EDGE_CACHE", ".cache")))
    with Container([base], tmp_path_factory.mktemp("device")) as container:
        container.copy_in(Path(market.location), "/srv/repository")
        container.copy_in(kit, "/root/kit")
        container.run("systemctl", "unmask", "mosquitto.service")
        put(container, "/etc/mosquitto/conf.d/local.conf", "listener 1883 127.0.0.1\nallow_anonymous true\n")
        put(container, "/etc/mosquitto/mosquitto.conf", BROKER)
        container.run("systemctl", "enable", "--now", "mosquitto.service")
        done = container.run("sh", "/root/kit/install.sh", "--device", "edge", seconds=400)
        print(done.stdout, container.run("du", "-sh", "/opt/edge-agent").stdout)
        container.run("rm", "-r", "/root/kit")
        device = Device(container)
        device.deploy("1.0.0")
        device.serving("1.0.0")
        yield device


BROKER = """\
persistence true
persistence_location /var/lib/mosquitto/
autosave_on_changes true
autosave_interval 1
include_dir /etc/mosquitto/conf.d
"""


def put(container: Container, path: str, text: str) -> None:
    container.run("sh", "-c", f"cat > {path}", text=text)


def test_a_kit_makes_a_bare_machine_serve_without_a_network(device: Device) -> None:
    assert device.ask("first") == ANSWER
    assert device.container.show("edge-agent.service", "ActiveState") == "active"
    told = device.container.show("edge-agent.service", "StatusText")
    ready, _, reasons = told.partition(": ")
    # What else runs on this machine may leave it short of memory or warm: the agent says so and serves.
    assert ready == "ready" and set(reasons.split(", ")) <= {"", "throttled_memory", "throttled_temperature"}, told
    info = device.retained("info")
    assert "seccomp" in info["engine"]["isolation"]
    # Nothing but loopback was ever there.
    assert device.container.run("ls", "/sys/class/net").stdout.split() == ["lo"]


def test_the_model_runs_in_the_workers_account(device: Device) -> None:
    (worker,) = device.workers()
    status = (device.container.root / f"proc/{worker}/status").read_text()
    assert "Seccomp:\t2" in status
    assert "CapBnd:\t0000000000000000" in status
    assert not device.container.run("ps", "-u", "edge-agent", "-o", "args=").stdout.count("agent.worker")


def test_the_worker_is_in_telemetry_although_the_agent_may_not_look_into_it(device: Device) -> None:
    done = device.container.run(
        "mosquitto_sub", "-V", "5", "-C", "1", "-W", "30", "-t", "edge/v1/d/edge/telemetry/system"
    )
    processes = {process["name"]: process for process in json.loads(done.stdout)["processes"]}
    assert processes.keys() == {"agent", "worker tiny@1.0.0"}
    assert processes["worker tiny@1.0.0"]["pid"] in device.workers()
    assert all(process["rss"] > 1 << 20 for process in processes.values())


def test_a_request_is_followed_through_the_journal_and_its_words_are_not_there(device: Device) -> None:
    assert device.ask("followed") == ANSWER
    journal = ("journalctl", "-o", "json", "EDGE_REQUEST=followed")
    device.container.wait_for("sh", "-c", f"{' '.join(journal)} | grep -q followed")
    (entry,) = (json.loads(line) for line in device.container.run(*journal).stdout.splitlines())
    assert entry["MESSAGE"].startswith("request ended client=tester request=followed outcome=stop")
    assert entry["_SYSTEMD_UNIT"] == "edge-agent.service"
    assert entry["SYSLOG_IDENTIFIER"] == "edge-agent"
    assert int(entry["EDGE_WORKER"]) in device.workers()
    everything = device.container.run("journalctl", "-o", "verbose", "--no-pager").stdout
    assert QUESTION not in everything
    assert ANSWER not in everything


def test_a_killed_worker_is_replaced(device: Device) -> None:
    (worker,) = device.workers()
    device.container.run("kill", "-KILL", str(worker))
    assert device.ask("after-kill") == ANSWER
    assert device.workers() != [worker]
    assert device.container.show("edge-agent.service", "NRestarts") == "0"


def test_a_hung_worker_is_given_up_on_and_swept_away(device: Device) -> None:
    (worker,) = device.workers()
    device.container.run("kill", "-STOP", str(worker))
    assert device.ask("after-hang") == ANSWER
    # Nobody may signal another account's process: its unit's watchdog removes it.
    device.container.wait_for("sh", "-c", f"! kill -0 {worker}", seconds=60)
    assert len(device.workers()) == 1


def test_a_hung_agent_is_replaced_by_the_watchdog(device: Device) -> None:
    container = device.container
    container.run("mkdir", "-p", "/run/systemd/system/edge-agent.service.d")
    put(container, "/run/systemd/system/edge-agent.service.d/quick.conf", "[Service]\nWatchdogSec=5\nRestartSec=0\n")
    container.run("systemctl", "daemon-reload")
    container.run("systemctl", "restart", "edge-agent.service")
    before = container.show("edge-agent.service", "MainPID")
    container.run("kill", "-STOP", before)
    container.wait_for(
        "sh",
        "-c",
        f'test "$(systemctl show --value -p MainPID edge-agent)" != {before} && systemctl is-active edge-agent',
    )
    container.run("rm", "-r", "/run/systemd/system/edge-agent.service.d")
    container.run("systemctl", "daemon-reload")
    device.serving("1.0.0")
    assert device.ask("after-agent-hang") == ANSWER


def test_a_wrong_configuration_stays_down_with_one_readable_line(device: Device) -> None:
    container = device.container
    good = container.run("cat", "/etc/edge-agent/agent.toml").stdout
    put(container, "/etc/edge-agent/agent.toml", good.replace("[broker]\nhost", "[broker]\nhots"))
    container.run("systemctl", "restart", "edge-agent.service", check=False)
    assert container.show("edge-agent.service", "ActiveState") == "failed"
    assert container.show("edge-agent.service", "ExecMainStatus") == "78"
    said = [line for line in container.journal("edge-agent").splitlines() if line.startswith("edge-agent: ")]
    assert said[-1] == "edge-agent: broker.hots is not a key of the configuration: did you mean broker.host?"
    assert "Traceback" not in container.journal("edge-agent")
    put(container, "/etc/edge-agent/agent.toml", good)
    container.run("systemctl", "restart", "edge-agent.service")
    device.serving("1.0.0")


def test_setting_up_again_finds_nothing_to_do(device: Device) -> None:
    done = device.container.run(
        "/opt/edge-agent/current/bin/edge-agent", "setup", "--yes", "--link", "/opt/edge-agent/current"
    )
    assert "nothing to do" in done.stdout


def test_a_power_cut_in_the_middle_of_an_update_is_survived(device: Device) -> None:
    container = device.container
    device.deploy("1.1.0")
    # Whichever phase it is in: the crash tests cut at every single effect, this one cuts a whole system.
    device.until("reported", lambda seen: seen["revision"] == "r1.1.0" and seen["phase"] != "IDLE")
    container.cut_power()
    container.start()
    # The old one serves while the new one is fetched.
    device.until("health", lambda seen: bool(seen["ready"]))
    assert device.ask("after-power-cut") == ANSWER
    device.serving("1.1.0")
    assert device.ask("after-update") == ANSWER


def test_a_full_disk_stops_installing_and_not_serving(device: Device) -> None:
    container = device.container
    container.run("systemctl", "stop", "edge-agent.service")
    container.run("sh", "-c", "cp -a /var/lib/edge-agent /var/lib/kept")
    container.run("mount", "-t", "tmpfs", "-o", "size=16M,mode=750", "tmpfs", "/var/lib/edge-agent")
    container.run("sh", "-c", "cp -a /var/lib/kept/. /var/lib/edge-agent/ && chown edge-agent: /var/lib/edge-agent")
    container.run("sh", "-c", "rm -rf /var/lib/edge-agent/bundles/*.sealing; sync")
    container.run("systemctl", "start", "edge-agent.service")
    device.serving("1.1.0")
    # Something else takes the disk but for a little, and then that too.
    free = int(container.run("stat", "-f", "-c", "%a", "/var/lib/edge-agent").stdout) * 4096
    container.run("fallocate", "-l", str(free - LITTLE_BYTES), "/var/lib/edge-agent/filler")
    device.deploy("1.2.0")
    seen = device.until("reported", lambda seen: seen["revision"] == "r1.2.0" and seen["error"] is not None)
    assert seen["error"]["reason"] == "store_full"
    assert seen["active"]["version"] == "1.1.0"
    assert device.ask("while-full") == ANSWER
    container.run("sh", "-c", "cat /dev/zero > /var/lib/edge-agent/rest; true", check=False)
    assert device.ask("while-quite-full") == ANSWER or "store_unavailable" in device.ask("while-quite-full-2")
    container.run("systemctl", "is-active", "edge-agent.service")
    container.run("rm", "/var/lib/edge-agent/filler", "/var/lib/edge-agent/rest")
    device.serving("1.2.0")
    assert device.ask("after-full-disk") == ANSWER
    assert container.show("edge-agent.service", "NRestarts") in ("0", "1")


def test_what_root_does_without_the_agent_is_of_use_to_it(device: Device) -> None:
    container, program = device.container, "/opt/edge-agent/current/bin/edge-agent"
    container.run("systemctl", "stop", "edge-agent.service")
    container.run(program, "rollback")
    container.run(program, "install", "/srv/repository", "tiny@1.2.0")
    assert container.run("find", "/var/lib/edge-agent", "!", "-user", "edge-agent").stdout == ""
    container.run("systemctl", "start", "edge-agent.service")
    device.serving("1.2.0")
    assert device.ask("after-root") == ANSWER


ASK_HOSTILE = """
import socket
with socket.socket(socket.AF_UNIX) as line:
    line.settimeout(60)
    line.connect("/run/edge-agent-worker.sock")
    while part := line.recv(65536):
        print(part.decode(), end="")
"""


def test_a_worker_that_was_taken_over_gets_nowhere(device: Device) -> None:
    container, drop_in = device.container, "/run/systemd/system/edge-agent-worker@.service.d"
    container.copy_in(Path(__file__).with_name("hostile_worker.py"), "/usr/local/share/hostile_worker.py")
    container.run("mkdir", "-p", drop_in)
    program = "/opt/edge-agent/current/bin/python -P /usr/local/share/hostile_worker.py"
    put(container, f"{drop_in}/hostile.conf", f"[Service]\nExecStart=\nExecStart={program}\n")
    container.run("systemctl", "stop", "edge-agent.service")
    container.run("systemctl", "daemon-reload")
    found = json.loads(container.run("python3", "-c", ASK_HOSTILE).stdout)
    container.run("rm", "-r", drop_in)
    container.run("systemctl", "daemon-reload")
    assert "done" not in found.values(), found
    assert found["fork without end"] == "EAGAIN", "as many as the unit says"
    assert container.show("edge-agent.slice", "MemoryMax") != "infinity", "what it eats is bounded with the agent's"
    container.run("systemctl", "start", "edge-agent.service")
    device.serving("1.2.0")
    assert device.ask("after-hostile") == ANSWER
