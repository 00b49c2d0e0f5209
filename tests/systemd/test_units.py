"""The units as systemd's own tools judge them: valid, closed, and explained. No root, no running systemd."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNITS = Path(__file__).resolve().parents[2] / "systemd"
SERVICES = ["edge-agent.service", "edge-agent-worker@.service"]
ALL_UNITS = [*SERVICES, "edge-agent-worker.socket", "edge-agent.slice"]

MAX_EXPOSURE = 1.5
"""On systemd's scale of 0 to 10; a service without any sandbox has 9.6."""

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


def directives(text: str) -> list[tuple[str, str]]:
    """(key, value) of every setting, in order, with repeated keys."""
    found = re.findall(r"^([A-Za-z]+)=(.*)$", text, re.MULTILINE)
    return [(key, value) for key, value in found]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units beside each other, pointing to programs that exist here: verify looks for them."""
    program = tmp_path / "bin"
    program.mkdir()
    for name in ("edge-agent", "python"):
        (program / name).symlink_to(sys.executable)
    for name in ALL_UNITS:
        text = (UNITS / name).read_text()
        (tmp_path / name).write_text(text.replace("/opt/edge-agent/current/bin", str(program)))
    return tmp_path


@needs_systemd
@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_closed_as_far_as_its_work_allows(name: str) -> None:
    command = ["systemd-analyze", "security", "--offline=yes", f"--threshold={MAX_EXPOSURE * 10:.0f}"]
    done = subprocess.run([*command, str(UNITS / name)], capture_output=True, text=True, timeout=120, check=False)
    assert "Overall exposure level" in done.stdout, done.stderr
    assert done.returncode == 0, done.stdout[-200:]


def test_niceness_decides_who_of_the_slice_waits_for_a_core() -> None:
    """A share for one of the services would give each of them, and so each worker, a share of its own."""
    for name in SERVICES:
        keys = [key for key, _ in directives((UNITS / name).read_text())]
        assert not [key for key in keys if re.match("(Startup)?(CPU|AllowedCPUs|Delegate)", key)]
    assert ("CPUWeight", "100") in directives((UNITS / "edge-agent.slice").read_text())


@needs_systemd
def test_nobody_can_reach_a_worker_over_a_network() -> None:
    command = [
        "systemd-analyze",
        "security",
        "--offline=yes",
        "--json=short",
        str(UNITS / "edge-agent-worker@.service"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    exposed = {row["name"] for row in json.loads(done.stdout) if row["set"] is False}
    assert not exposed & {"PrivateNetwork=", "IPAddressDeny=", "RestrictAddressFamilies=~AF_(INET|INET6)"}


@needs_systemd
@pytest.mark.parametrize("name", ALL_UNITS)
def test_systemd_has_nothing_to_say_against_the_unit(installed: Path, name: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(installed / name.replace("@", "@1"))],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{installed}:"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    # Others' units are reported as well; ours are those in our directory.
    ours = [line for line in done.stderr.splitlines() if "edge-agent" in line]
    assert not ours


@pytest.mark.parametrize("name", ALL_UNITS)
def test_every_group_of_directives_says_why(name: str) -> None:
    explained, since = False, 0
    for line in (UNITS / name).read_text().splitlines():
        if line.startswith("#"):
            explained, since = True, 0
        elif "=" in line:
            since += 1
            # Description, Documentation and the install target say it themselves.
            if not re.match(r"(Description|Documentation|WantedBy)=", line):
                assert explained, f"{line} has no reason"
                assert since <= 8, f"{line} is far from its reason"
        elif not line:
            explained = False


def test_a_bad_configuration_stays_down_and_everything_else_comes_back() -> None:
    settings = dict(directives((UNITS / "edge-agent.service").read_text()))
    assert settings["RestartPreventExitStatus"] == "78"
    assert settings["Restart"] == "on-failure"
    assert settings["StartLimitIntervalSec"] == "0"
    assert settings["Type"] == "notify"
    assert float(settings["WatchdogSec"]) > 0


def test_workers_are_killed_before_the_agent_that_replaces_them() -> None:
    agent, worker = (dict(directives((UNITS / name).read_text())) for name in SERVICES)
    assert int(worker["OOMScoreAdjust"]) > 0 > int(agent["OOMScoreAdjust"])
    assert worker["User"] != agent["User"]
    assert worker["Slice"] == agent["Slice"]


def test_worker_sees_only_bundles_of_the_state_directory() -> None:
    worker = dict(directives((UNITS / "edge-agent-worker@.service").read_text()))
    assert worker["TemporaryFileSystem"] == "/var/lib:ro"
    assert {path.removeprefix("-") for path in worker["BindReadOnlyPaths"].split()} == {
        "/var/lib/edge-agent/bundles",
        "/var/lib/edge-agent/derived",
    }


def test_landlock_is_allowed_after_the_filter_that_lacks_it() -> None:
    for name in SERVICES:
        filters = [value for key, value in directives((UNITS / name).read_text()) if key == "SystemCallFilter"]
        assert filters[0] == "@system-service"
        assert "~@privileged" in filters[1]
        assert "landlock_restrict_self" in filters[2]


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd is not installed")
def test_accounts_and_directories_come_from_systemds_own_formats(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}", str(UNITS / "sysusers.d/edge-agent.conf")],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    accounts = (tmp_path / "etc/passwd").read_text()
    assert re.search(r"^edge-agent:.*:/var/lib/edge-agent:/usr/sbin/nologin$", accounts, re.MULTILINE)
    assert re.search(r"^edge-agent-worker:.*:/:/usr/sbin/nologin$", accounts, re.MULTILINE)
