"""What somebody who cannot see the box needs to know: facts, settings, decisions, log; no secrets, no prompts.

``state.db`` never goes in, since answers are in it. Passwords and keys are files that the configuration only names;
what could hide one (a URL's user part or query) is taken out.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import platform
import shutil
import subprocess
import tarfile
import time
import tomllib
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec

from agent.config import load_config
from agent.diagnosis.finding import Finding
from agent.install.status import bundle_statuses
from agent.state.installation import InstallationState
from agent.state.layout import StateDirectory
from agent.state.opening import open_to_read
from contract.errors import EdgeBundleError
from contract.system.durable import translate

LOG_LINES = 5000
"""Some hours of a talkative agent, half a megabyte compressed."""

AUDIT_LINES = 5000
LOG_SECONDS = 60.0
UNITS = ("edge-agent.service", "edge-agent-worker.socket", "edge-agent-worker@*.service")
HIDDEN = "(left out)"
_SECRET_WORDS = ("password", "secret", "token", "passphrase")


def write_report(path: Path, config_path: Path, findings: Iterable[Finding]) -> list[str]:
    """Write the support file, readable by its owner only; the names of what is in it.

    Raises:
        StoreFull, StoreBroken: it cannot be written.
    """
    members = {
        "doctor.json": _json(msgspec.to_builtins(list(findings))),
        "machine.json": _json(machine_facts()),
        "config.json": _json(redacted_config(config_path)),
        "journal.txt": _journal().encode(),
    }
    members |= _state(config_path)
    try:
        path.touch(mode=0o600)
        path.chmod(0o600)
        with tarfile.open(path, "w:gz") as archive:
            for name in sorted(members):
                member = tarfile.TarInfo(f"edge-agent-report/{name}")
                member.size, member.mtime = len(members[name]), int(time.time())
                archive.addfile(member, io.BytesIO(members[name]))
    except OSError as error:
        raise translate(error, f"writing {path}") from error
    return sorted(members)


def machine_facts() -> dict[str, Any]:
    """Kernel, memory, pressure and the versions of everything in this environment."""
    facts: dict[str, Any] = {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": dict(sorted((each.metadata["Name"], each.version) for each in importlib.metadata.distributions())),
    }
    for name in ("meminfo", "loadavg", "uptime", "pressure/memory", "pressure/cpu", "pressure/io"):
        try:
            facts[name] = (Path("/proc") / name).read_text().splitlines()
        except OSError:
            continue
    return facts


def redacted_config(path: Path) -> Any:
    """The configuration without what could be a secret; why not, if it cannot be read."""
    try:
        return _redact(tomllib.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as error:
        return {"unreadable": str(error)}


def _redact(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _redact(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_redact(inner, key) for inner in value]
    if isinstance(value, str):
        if any(word in key.lower() for word in _SECRET_WORDS) and not key.endswith("_file"):
            return HIDDEN
        return _without_credentials(value)
    return value


def _without_credentials(text: str) -> str:
    if "://" not in text:
        return text
    try:
        parts = urlsplit(text)
        where = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, where, parts.path, HIDDEN if parts.query else "", ""))
    except ValueError:
        return HIDDEN


def _state(config_path: Path) -> dict[str, bytes]:
    """Bundles, phases and the audit log; without a usable configuration or state, the reason."""
    try:
        state_dir = StateDirectory(load_config(config_path).state_dir)
        if not state_dir.database.is_file():
            return {}
        opened = open_to_read(state_dir)
        try:
            state = InstallationState(opened)
            snapshot, lines = state.snapshot(), bundle_statuses(state, state_dir)
            facts = {
                "active": snapshot.active, "previous": snapshot.previous, "phase": snapshot.phase,
                "epoch": snapshot.epoch,
                "role_versions": state.role_versions(), "clock_floor": state.clock_floor(), "bundles": lines,
            }  # fmt: skip
        finally:
            opened.close()
        found = {"state.json": _json(msgspec.to_builtins(facts))}
        if state_dir.audit.is_file():
            with state_dir.audit.open("rb") as audit:
                found["audit.jsonl"] = b"".join(deque(audit, AUDIT_LINES))
    except (EdgeBundleError, OSError) as error:
        return {"state.json": _json({"unreadable": str(error)})}
    return found


def _journal() -> str:
    """The agent's and workers' log; they never write prompts or answers to it."""
    if shutil.which("journalctl") is None:
        return "journalctl is not here\n"
    command = ["journalctl", "--no-pager", "-o", "short-iso", "-n", str(LOG_LINES)]
    for unit in UNITS:
        command += ["-u", unit]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=LOG_SECONDS, check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{error}\n"


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"
