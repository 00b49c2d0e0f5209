"""A device with an aarch64 processor, as a kernel of its own sees it: installed, sandboxed, deployed to over MQTT,
asked, examined, switched off. For both sizes of a page of memory. ``make test-arm``; needs root and qemu-system-arm.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from packager.cli import main as packager
from tests.agent.install.market import Market
from tests.arm import debian, image
from tests.arm.machine import Machine
from tests.kept import CACHE
from tests.tiny import ANSWERS

pytestmark = [pytest.mark.arm, pytest.mark.timeout(1500)]

QUESTION, ANSWER = next(iter(ANSWERS.items()))
PAGES = {"4k": 4096, "16k": 16384}
AGENT = "/opt/edge-agent/current/bin/edge-agent"
CONFIG = """\
[broker]
host = "localhost"

[sources]
usb = "/srv/repository"

[worker]
load_seconds = 300.0
stall_seconds = 120.0

[install]
probation_seconds = 2.0
"""


@pytest.fixture(scope="module")
def tree(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A device's disk as a directory: Debian, the agent of a kit, a published bundle on a stick."""
    scratch = tmp_path_factory.mktemp("kit")
    market = Market(scratch / "market", tiny_bundle)
    market.publish("1.0.0")
    (scratch / "agent.toml").write_text(CONFIG)
    edge_packager(
        "agent-kit", "--arch", "aarch64", "--python", "3.11", "--out", str(scratch / "kit.tar"),
        "--root-json", str(market.root_json), "--config", str(scratch / "agent.toml"),
    )  # fmt: skip
    with tarfile.open(scratch / "kit.tar") as archive:
        archive.extractall(scratch, filter="tar")
    (kit,) = scratch.glob("edge-agent-*")
    tree = scratch / "tree"
    shutil.copytree(debian.root(CACHE / "aarch64"), tree, symlinks=True)
    image.with_agent(tree, kit)
    image.take_commands(tree)
    shutil.copytree(market.location, tree / "srv/repository")
    for name in ("agent.toml", "root.json"):
        shutil.copyfile(kit / name, tree / "srv" / name)
    broker = tree / "etc/mosquitto/conf.d/local.conf"
    broker.write_text("listener 1883\nallow_anonymous true\nset_tcp_nodelay true\n")
    return tree


PATIENCE = ("--timeout", "660")
"""An emulated device takes half a minute, and has ten to try it; pytest waits longer, so that what it does is said."""


@contextlib.contextmanager
def booted(pages: str, tree: Path, directory: Path) -> Iterator[Machine]:
    directory.mkdir()
    kernel, initial = image.boot_files(CACHE / "aarch64", pages, tree)
    image.disk(tree, directory / "disk")
    try:
        with Machine(kernel, initial, directory / "disk", directory / "console.log") as machine:
            assert machine.run("getconf PAGESIZE; uname -m").split() == [str(PAGES[pages]), "aarch64"]
            yield machine
    finally:
        (directory / "disk").unlink()


def edge_packager(*arguments: str) -> None:
    before, sys.argv = sys.argv, ["edge-packager", *arguments]
    try:
        assert packager() == 0
    finally:
        sys.argv = before


def retained(machine: Machine, topic: str) -> dict[str, Any]:
    said = machine.run(f"mosquitto_sub -V 5 -C 1 -W 120 -q 1 -t edge/v1/d/armbox/{topic}")
    return dict(json.loads(said))


@pytest.mark.parametrize("pages", PAGES)
def test_a_device_with_an_arm_processor_serves(
    pages: str, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One story: each step needs the one before. An emulator that stands still says nothing of the device: once, the
    machine is booted anew.
    """
    with booted(pages, tree, tmp_path / "first") as machine:
        try:
            return _serve(machine, capsys)
        except BaseException as error:  # a time-out of pytest, too
            with capsys.disabled():
                print(f"\n{error}\n{machine.describe()}")
            if not isinstance(error, Exception) or not machine.frozen:
                raise
    with booted(pages, tree, tmp_path / "again") as machine:
        _serve(machine, capsys)


def _serve(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.run(
        f"{AGENT} setup --yes --link /opt/edge-agent/current --config /srv/agent.toml --root-json /srv/root.json "
        "--device armbox"
    )
    broker = f"mqtt://127.0.0.1:{machine.port}"
    assert retained(machine, "status")["online"] is True
    edge_packager(
        "deploy", "--device", "armbox", "--source", "usb", "tiny@1.0.0", "--wait", *PATIENCE, "--broker", broker
    )
    capsys.readouterr()
    asked = ("--max-tokens", "16", "--temperature", "0", "--broker", broker)
    edge_packager("prompt", QUESTION, "--device", "armbox", *asked)
    assert capsys.readouterr().out.strip() == ANSWER
    engine = retained(machine, "info")["engine"]
    assert engine["engine"] == "batched", engine["why"]
    assert "KleidiAI" in engine["kernels"], "a Cortex-A76 offers a choice, which the canaries decide"
    assert "landlock" in engine["isolation"].lower()
    assert "seccomp" in engine["isolation"].lower()
    worker = machine.run("cat /proc/$(pgrep -u edge-agent-worker)/status")
    assert "Seccomp:\t2" in worker
    assert "NoNewPrivs:\t1" in worker
    machine.run(f"{AGENT} doctor")
    assert machine.power_off() == 0
