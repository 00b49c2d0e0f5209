"""The agent is put together in one place: only the modules named here make its parts."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

ROOT_MODULE = "agent/app.py"
"""The composition root; the rooms that it is made of put themselves together in one module each."""

MADE_IN = {
    "agent/app.py": {
        "BrokerMemory", "SystemSampler", "TelemetryLoop", "InstallationState", "WeightPrepacker", "Presence",
        "Announcer", "AnnouncementRecord", "PrometheusEndpoint", "ControlServer", "Heartbeat",
    },
    "agent/frontend.py": {"Sender", "ResultWriter", "LlmMeter", "Gateway", "Serving"},
    "agent/serving/serving.py": {
        "Scheduler", "Replies", "Completion", "StreamSender", "Loop", "Intake", "Controls", "Switchover", "StoreHealth",
        "RequestLog",
    },
    "agent/install/compose.py": {
        "Reconciler", "DesiredIntake", "Planner", "TrustMonitor", "UpdateRunner", "StepReporter", "Activation",
        "CanaryRun", "DownloadStep", "Restorer", "Collector", "AuditRateLimiter",
    },
}  # fmt: skip

ALSO = {
    "agent/mqtt/connection.py": {"Sender"},  # a passing visit has one of its own
    "agent/install/offline.py": {"InstallationState"},  # a command while no agent runs
    "agent/install/process/installer.py": {"InstallationState"},  # another process
}

ROOMS = {"make_frontend": "agent/frontend.py", "make_reconciler": "agent/install/compose.py"}


def calls(path: Path) -> set[str]:
    """Names of what ``path`` calls: functions and classes, by the last part of their names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            name = node.func
            found.add(name.id if isinstance(name, ast.Name) else getattr(name, "attr", ""))
    return found


def test_each_part_is_made_in_one_place() -> None:
    parts = set().union(*MADE_IN.values())
    made: dict[str, set[str]] = {}
    for path in sorted((ROOT / "agent").rglob("*.py")):
        name = str(path.relative_to(ROOT))
        if (here := calls(path) & parts) and not name.startswith(("agent/commands/", "agent/diagnosis/")):
            made[name] = here - ALSO.get(name, set())
    assert {name: found for name, found in made.items() if found} == MADE_IN


def test_only_the_root_and_the_offline_command_put_rooms_together() -> None:
    callers = {
        room: {
            str(path.relative_to(ROOT))
            for path in (ROOT / "agent").rglob("*.py")
            if room in calls(path)
        }
        for room in ROOMS
    }  # fmt: skip
    assert callers == {
        "make_frontend": {ROOT_MODULE},
        "make_reconciler": {ROOT_MODULE, "agent/install/offline.py"},
    }
