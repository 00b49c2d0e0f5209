"""Every directive of the two services on a booted systemd: what it does, seen from inside; needs root."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.systemd.container import Container
from tests.systemd.test_boot import UNITS, bare, base, pytestmark

__all__ = ["bare", "base", "pytestmark"]

AGENT, WORKER = "edge-agent.service", "edge-agent-worker@.service"
PROGRAM = "/opt/edge-agent/look_around.py"
PYTHON = "/opt/edge-agent/current/bin/python -P"
NO_CAPABILITY = "0000000000000000"

Facts = dict[str, Any]


class Seen(NamedTuple):
    """What look_around.py found: in the two services, and as root outside of every sandbox."""

    agent: Facts
    worker: Facts
    outside: Facts


@pytest.fixture(scope="module")
def seen(bare: Container) -> Seen:
    bare.copy_in(Path(__file__).with_name("look_around.py"), PROGRAM)
    bare.run("mkdir", "-p", "/usr/lib/modules", "/var/lib/edge-agent/bundles", "/var/lib/edge-agent/trust")
    bare.run("chown", "-R", "edge-agent:edge-agent", "/var/lib/edge-agent")
    bare.run("touch", "/tmp/others-file")
    bare.run("sh", "-c", "echo secret > /etc/edge-agent/credentials/password")
    for unit, lines in (
        # Its output is opened by systemd before the sandbox is closed.
        (AGENT, f"Type=oneshot\nRestart=no\nStandardOutput=truncate:/root/agent.json\nExecStart={PYTHON} {PROGRAM}"),
        (WORKER, f"ExecStart={PYTHON} {PROGRAM} --fd 3"),
    ):
        bare.run("mkdir", "-p", f"/run/systemd/system/{unit}.d")
        text = f"[Service]\nExecStart=\n{lines}\n"
        bare.run("sh", "-c", f"cat > /run/systemd/system/{unit}.d/look.conf", text=text)
    bare.run("systemctl", "daemon-reload")
    outside = json.loads(bare.run("python3", PROGRAM).stdout)
    bare.run("systemctl", "start", "edge-agent-worker.socket")
    bare.run("systemctl", "start", AGENT)
    agent = json.loads(bare.run("cat", "/root/agent.json").stdout)
    connect = (
        "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/edge-agent-worker.sock'); "
        "print(b''.join(iter(lambda: s.recv(65536), b'')).decode())"
    )
    worker = json.loads(bare.run("python3", "-c", connect).stdout)
    return Seen(agent, worker, outside)


def one_service(name: str, inside: object, *, differs: bool = True) -> Callable[[Facts, Facts], bool]:
    """``name`` is found to be ``inside`` in the service and, with ``differs``, something else outside."""
    return lambda facts, outside: facts[name] == inside and (not differs or outside[name] != inside)


def other(name: str) -> Callable[[Facts, Facts], bool]:
    return lambda facts, outside: facts["name spaces"][name] != outside["name spaces"][name]


def limited(name: str, most: int) -> Callable[[Facts, Facts], bool]:
    return lambda facts, _: facts["limits"][name] == most


def has(name: str, part: str) -> Callable[[Facts, Facts], bool]:
    return lambda facts, _: part in facts[name]


def told(name: str, value: str) -> Callable[[Facts, Facts], bool]:
    return lambda facts, _: facts["environment"].get(name) == value


BOTH: dict[str, Callable[[Facts, Facts], bool]] = {
    "NoNewPrivileges": one_service("no new privileges", "1"),
    "CapabilityBoundingSet": one_service("capabilities", [NO_CAPABILITY] * 3),
    "AmbientCapabilities": one_service("capabilities", [NO_CAPABILITY] * 3),
    "PrivateUsers": other("user"),
    "RestrictSUIDSGID": one_service("set-uid file", "EPERM"),
    "RestrictNamespaces": one_service("name space", "EPERM"),
    "LockPersonality": one_service("personality", "refused"),
    # Without the capability it is refused anyhow: two walls that cannot be told apart from inside.
    "RestrictRealtime": one_service("real time", "EPERM", differs=False),
    "ProtectSystem": lambda facts, outside: not set(facts["writable"]) & {"/", "/boot", "/opt", "/usr"},
    "ProtectHome": one_service("root's home", "EACCES"),
    "PrivateTmp": lambda facts, outside: "others-file" in outside["/tmp"] and "others-file" not in facts["/tmp"],
    "PrivateMounts": other("mnt"),
    "NoExecPaths": one_service("run from /tmp", "EACCES"),
    "PrivateDevices": lambda facts, outside: "null" in facts["/dev"] and "console" not in facts["/dev"],
    "ProtectClock": one_service("set clock", "EPERM"),
    "ProtectHostname": lambda facts, outside: facts["set host name"] == "EPERM" and other("uts")(facts, outside),
    # systemd-nspawn does the next two to the whole container, so outside is no different.
    "ProtectKernelTunables": one_service("kernel parameters", "ro", differs=False),
    "ProtectControlGroups": one_service("control groups", "ro", differs=False),
    "ProtectKernelModules": one_service("modules", "EACCES"),
    "ProtectKernelLogs": one_service("kernel log", True, differs=False),
    "ProtectProc": one_service("process 1", False),
    "MemoryDenyWriteExecute": one_service("write and execute", "EPERM"),
    "SystemCallFilter": lambda facts, _: facts["filter"] == "2" and facts["chroot"] == "EPERM",
    # Otherwise it would not have lived to tell.
    "SystemCallErrorNumber": one_service("chroot", "EPERM"),
    "Slice": has("slice", "edge-agent.slice"),
    "LimitCORE": limited("CORE", 0),
    "WatchdogSec": told("WATCHDOG_USEC", "60000000"),
    "Environment": told("ORT_DISABLE_TELEMETRY", "1"),
}

ALONE: dict[str, dict[str, Callable[[Facts, Facts], bool]]] = {
    AGENT: {
        "User": one_service("user", "edge-agent"),
        "Group": one_service("group", "edge-agent"),
        "Nice": one_service("niceness", -5),
        "UMask": one_service("umask", "0027"),
        "StateDirectory": told("STATE_DIRECTORY", "/var/lib/edge-agent"),
        "StateDirectoryMode": one_service("state directory", "0o750", differs=False),
        "ReadOnlyPaths": one_service(
            "writable",
            ["/run/edge-agent", "/tmp", "/var/lib/edge-agent", "/var/lib/edge-agent/bundles", "/var/tmp"],
        ),
        "RuntimeDirectory": one_service("runtime directory", "done"),
        "RuntimeDirectoryMode": told("RUNTIME_DIRECTORY", "/run/edge-agent"),
        "LoadCredential": lambda facts, _: facts["credentials"] == ["edge_password"],
        "RestrictAddressFamilies": lambda facts, outside: (
            [facts[name] for name in ("internet", "unix", "netlink")] == ["done"] * 3
            and facts["raw packets"] == "EAFNOSUPPORT" != outside["raw packets"]
        ),
        "LimitNOFILE": limited("NOFILE", 1024),
    },
    WORKER: {
        "User": one_service("user", "edge-agent-worker"),
        "Group": one_service("group", "edge-agent-worker"),
        "SupplementaryGroups": lambda facts, _: len(facts["groups"]) == 2,
        "UMask": one_service("umask", "0077"),
        "StandardInput": one_service("input", "/dev/null", differs=False),
        "PrivateNetwork": other("net"),
        "RestrictAddressFamilies": lambda facts, _: (
            facts["unix"] == "done"
            and {facts[name] for name in ("internet", "netlink", "raw packets")} == {"EAFNOSUPPORT"}
        ),
        "TemporaryFileSystem": one_service("/var/lib", ["edge-agent"]),
        "BindReadOnlyPaths": lambda facts, outside: (
            facts["/var/lib/edge-agent"] == ["bundles"] != outside["/var/lib/edge-agent"]
            and "/var/lib/edge-agent/bundles" not in facts["writable"]
        ),
        "ReadOnlyPaths": one_service("writable", ["/tmp", "/var/tmp"]),
        "InaccessiblePaths": one_service("/etc/edge-agent", "EACCES"),
        "LimitNOFILE": limited("NOFILE", 256),
        "LimitNPROC": limited("NPROC", 512),
        "OOMScoreAdjust": one_service("first to go", 500),
    },
}
"""What each directive does, by what is found inside."""

PROPERTIES: dict[str, dict[str, tuple[str, str]]] = {
    AGENT: {
        "NotifyAccess": ("NotifyAccess", "main"),
        "RestartSec": ("RestartUSec", "5s"),
        "RestartPreventExitStatus": ("RestartPreventExitStatus", "78"),
        "TimeoutStartSec": ("TimeoutStartUSec", "3min"),
        "TimeoutStopSec": ("TimeoutStopUSec", "45s"),
        "KillMode": ("KillMode", "mixed"),
        "TasksMax": ("TasksMax", "64"),
        "OOMPolicy": ("OOMPolicy", "continue"),
        # A container may not protect itself from the machine's other processes.
        "OOMScoreAdjust": ("OOMScoreAdjust", "-200"),
        "LogRateLimitIntervalSec": ("LogRateLimitIntervalUSec", "30s"),
        "LogRateLimitBurst": ("LogRateLimitBurst", "300"),
        "SyslogIdentifier": ("SyslogIdentifier", "edge-agent"),
        "DevicePolicy": ("DevicePolicy", "closed"),
        "RemoveIPC": ("RemoveIPC", "yes"),
        "SystemCallArchitectures": ("SystemCallArchitectures", "native"),
    },
    WORKER: {
        "Type": ("Type", "exec"),
        "StandardOutput": ("StandardOutput", "journal"),
        "NotifyAccess": ("NotifyAccess", "main"),
        "Restart": ("Restart", "no"),
        "KillSignal": ("KillSignal", "9"),
        "WatchdogSignal": ("WatchdogSignal", "9"),
        "SendSIGKILL": ("SendSIGKILL", "yes"),
        "TimeoutStopSec": ("TimeoutStopUSec", "5s"),
        "TasksMax": ("TasksMax", "128"),
        "OOMPolicy": ("OOMPolicy", "kill"),
        "LogRateLimitIntervalSec": ("LogRateLimitIntervalUSec", "30s"),
        "LogRateLimitBurst": ("LogRateLimitBurst", "100"),
        "SyslogIdentifier": ("SyslogIdentifier", "edge-agent-worker"),
        "IPAddressDeny": ("IPAddressDeny", "0.0.0.0/0 ::/0"),
        "DevicePolicy": ("DevicePolicy", "closed"),
        "RemoveIPC": ("RemoveIPC", "yes"),
        "SystemCallArchitectures": ("SystemCallArchitectures", "native"),
    },
}
"""What cannot be found out from inside: that systemd has taken it as it was meant."""

REPLACED = {"Type", "Restart", "ExecStart"}
"""Replaced here by the program that looks around; test_device.py shows them at work: READY, restarts, a real worker."""


def directives(unit: str) -> set[str]:
    service = (UNITS / unit).read_text("utf-8").partition("[Service]")[2].partition("\n[")[0]
    return {line.partition("=")[0] for line in service.splitlines() if "=" in line and not line.startswith("#")}


@pytest.mark.parametrize("unit", [AGENT, WORKER])
def test_no_directive_is_left_out_here(unit: str) -> None:
    shown = {*BOTH, *ALONE[unit], *PROPERTIES[unit]}
    assert directives(unit) - shown <= REPLACED
    assert shown <= directives(unit), "nothing is shown here that the unit does not say"


@pytest.mark.parametrize(
    ("unit", "directive"),
    [(unit, directive) for unit in (AGENT, WORKER) for directive in (*BOTH, *ALONE[unit])],
)
def test_a_directive_does_what_it_is_there_for(seen: Seen, unit: str, directive: str) -> None:
    facts = seen.agent if unit == AGENT else seen.worker
    holds = {**BOTH, **ALONE[unit]}[directive]
    assert holds(facts, seen.outside), (facts, seen.outside)


@pytest.mark.parametrize("unit", [AGENT, WORKER])
def test_systemd_took_the_others_as_they_were_meant(bare: Container, seen: Seen, unit: str) -> None:
    name = unit.replace("@.", "@looked-at.")
    # Sets are shown in any order.
    found = {directive: sorted(bare.show(name, asked).split()) for directive, (asked, _) in PROPERTIES[unit].items()}
    assert found == {directive: sorted(meant.split()) for directive, (_, meant) in PROPERTIES[unit].items()}
    assert bare.show("edge-agent.slice", "CPUWeight") == "100"
