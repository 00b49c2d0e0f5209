"""The units on a booted systemd, in a container; needs root."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.container import Container, debian

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        os.geteuid() != 0 or not (shutil.which("debootstrap") and shutil.which("systemd-nspawn")),
        reason="needs root, debootstrap and systemd-nspawn",
    ),
    pytest.mark.timeout(1200),
]

UNITS = Path(__file__).resolve().parents[2] / "systemd"
UNIT_FILES = ("edge-agent.service", "edge-agent-worker@.service", "edge-agent-worker.socket", "edge-agent.slice")


@pytest.fixture(scope="module")
def base() -> Path:
    return debian(Path(os.environ.get("EDGE_CACHE", ".cache")))


@pytest.fixture(scope="module")
def bare(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """A booted device with our units, and stand-ins for the two programs that they start."""
    with Container([base], tmp_path_factory.mktemp("bare")) as container:
        for name in UNIT_FILES:
            container.copy_in(UNITS / name, f"/etc/systemd/system/{name}")
        container.copy_in(UNITS / "sysusers.d/edge-agent.conf", "/etc/sysusers.d/edge-agent.conf")
        container.copy_in(UNITS / "tmpfiles.d/edge-agent.conf", "/etc/tmpfiles.d/edge-agent.conf")
        container.run("systemd-sysusers")
        container.run("systemd-tmpfiles", "--create", "edge-agent.conf")
        container.run("mkdir", "-p", "/opt/edge-agent/current/bin")
        container.run("ln", "-s", "/usr/bin/python3", "/opt/edge-agent/current/bin/python")
        container.run("systemctl", "daemon-reload")
        yield container


def put_program(container: Container, path: str, text: str) -> None:
    container.run("sh", "-c", f"cat > {path}; chmod 755 {path}", text=text)


WORKER_THAT_LOOKS_AROUND = """
import json, os, pathlib, socket, sys
connection = socket.socket(fileno=int(sys.argv[sys.argv.index("--fd") + 1]))
def can(action):
    try:
        action()
    except OSError as error:
        return type(error).__name__
    return True
connection.sendall(json.dumps({
    "user": os.getuid(),
    "state": sorted(os.listdir("/var/lib/edge-agent")),
    "bundle": pathlib.Path("/var/lib/edge-agent/bundles/a/model").read_text(),
    "write bundle": can(lambda: open("/var/lib/edge-agent/bundles/a/new", "w")),
    "read config": can(lambda: os.listdir("/etc/edge-agent")),
    "internet": can(lambda: socket.create_connection(("127.0.0.1", 9))),
    "interfaces": [name for _, name in socket.if_nameindex()] if can(socket.if_nameindex) is True else [],
    "home": can(lambda: os.listdir("/root")),
}).encode())
connection.shutdown(socket.SHUT_WR)
connection.recv(1)
"""


def test_systemd_accepts_the_units(bare: Container) -> None:
    units = [f"/etc/systemd/system/{name}" for name in UNIT_FILES]
    put_program(bare, "/opt/edge-agent/current/bin/edge-agent", "#!/bin/sh\n")
    done = bare.run("systemd-analyze", "verify", "--man=no", *units, check=False)
    assert not [line for line in done.stderr.splitlines() if "edge-agent" in line]


def test_accounts_and_directories_are_as_documented(bare: Container) -> None:
    for path, expected in (
        ("/etc/edge-agent", "750 root edge-agent"),
        ("/etc/edge-agent/credentials", "700 root root"),
        ("/var/lib/edge-agent", "750 edge-agent edge-agent"),
    ):
        assert bare.run("stat", "-c", "%a %U %G", path).stdout.strip() == expected


def test_a_connection_starts_a_worker_that_sees_bundles_and_nothing_else(bare: Container) -> None:
    agent = ("runuser", "-u", "edge-agent", "--")
    bare.run(
        *agent,
        "sh",
        "-c",
        "umask 027; cd /var/lib/edge-agent; mkdir -p bundles/a trust; echo weights > bundles/a/model",
    )
    bare.run("sh", "-c", "echo secret > /etc/edge-agent/credentials/password")
    bare.run("mkdir", "-p", "/usr/lib/python3/dist-packages/agent/worker")
    put_program(bare, "/usr/lib/python3/dist-packages/agent/worker/main.py", WORKER_THAT_LOOKS_AROUND)
    bare.run("systemctl", "start", "edge-agent-worker.socket")
    connect = (
        "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/edge-agent-worker.sock'); "
        "print(b''.join(iter(lambda: s.recv(4096), b'')).decode())"
    )
    seen = bare.run(*agent, "python3", "-c", connect)
    assert seen.stdout.strip(), bare.journal("edge-agent-worker@*")
    facts = json.loads(seen.stdout)
    assert facts["user"] == int(bare.run("id", "-u", "edge-agent-worker").stdout)
    assert facts["state"] == ["bundles", "derived"] or facts["state"] == ["bundles"]
    assert facts["bundle"] == "weights\n"
    assert facts["write bundle"] == "OSError" or facts["write bundle"] == "PermissionError"
    assert facts["read config"] == "PermissionError"
    assert facts["internet"] is not True
    assert facts["home"] == "PermissionError"
    # Other accounts may not start workers.
    assert bare.run("runuser", "-u", "mosquitto", "--", "python3", "-c", connect, check=False).returncode != 0
