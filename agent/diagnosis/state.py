"""The state directory: permissions, database, trust and its expiries, what is installed and whether it fits here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from agent.diagnosis.finding import Finding
from agent.host import facts as host
from agent.install.settings import InstallSettings
from agent.state.audit import AuditLog
from agent.state.database import Database, check_not_lost
from agent.state.installation import InstallationState
from agent.state.layout import StateDirectory
from agent.state.lock import FileLock, is_held
from agent.state.opening import open_to_read
from agent.state.schema import SCHEMA
from contract.bundle.manifest import MANIFEST_FILE, parse_manifest
from contract.errors import BundleRefused, EdgeBundleError
from contract.system.durable import Disk

TRUST_SECONDS = 60.0
BY_ITSELF = "An agent that runs serves on and needs no restart; edge-agent bundles lists what lies there"
READ_ONLY = f"dmesg says what is wrong with the disk; check it and mount it for writing. {BY_ITSELF}"
EXPIRY_WARNING = timedelta(days=14)
MIN_FREE_BYTES = 64 << 20
"""state.db, its log and audit.jsonl must always find room."""


def directory(state_dir: StateDirectory, self_reported: str = "") -> Finding:
    """Whether the account that owns it, or this one, can use it; ``self_reported``: by the agent that runs here."""
    if not state_dir.root.is_dir():
        return Finding("state", "bad", f"{state_dir.root} does not exist", "edge-agent setup")
    facts = state_dir.root.stat()
    if facts.st_mode & 0o007:
        return Finding("state", "bad", f"{state_dir.root} is open to everybody", f"chmod o= {state_dir.root}")
    if os.geteuid() not in (0, facts.st_uid):
        return Finding("state", "note", f"{state_dir.root} belongs to another account (uid {facts.st_uid})", "use sudo")
    used = "in use by a running agent" if is_held(state_dir.lock) else "not in use"
    text = f"{state_dir.root}, {host.disk_available(state_dir.root) / 1e9:.1f} GB free, {used}"
    fault, fix = _disk_fault(state_dir.root, self_reported)
    return Finding("state", "bad", f"{text}: {fault}", fix) if fault else Finding("state", "ok", text)


def unwritable(state_dir: StateDirectory) -> str:
    """Why the state can only be read; empty where it can be written, or what is wrong with it lies elsewhere."""
    if not state_dir.database.is_file():
        return ""
    try:
        opened = open_to_read(state_dir)
    except EdgeBundleError:
        return ""
    try:
        return "" if opened.unwritable is None else opened.unwritable.message
    finally:
        opened.close()


def _disk_fault(root: Path, self_reported: str) -> tuple[str, str]:
    """What is wrong with the disk and what to do about it; nothing where it can be written."""
    disk = os.statvfs(root)
    if disk.f_flag & os.ST_RDONLY:
        return "the disk can only be read", READ_ONLY
    if disk.f_files and not disk.f_favail:
        return "the disk has no inodes left", f"remove files there. {BY_ITSELF}"
    if (free := host.disk_available(root)) < MIN_FREE_BYTES:
        return (
            f"the disk is full, or soon will be: {free / 1e6:.1f} MB are free",
            f"free some space, or set install.quota_bytes. {BY_ITSELF}",
        )
    return self_reported, READ_ONLY


def database(state_dir: StateDirectory) -> Finding:
    if not state_dir.database.is_file():
        check_not_lost(state_dir)
        return Finding("database", "note", "nothing was installed here yet")
    opened = open_to_read(state_dir)
    try:
        verdict = str(opened.query("PRAGMA quick_check(1)")[0][0])
    finally:
        opened.close()
    if verdict != "ok":
        fix = "move the state directory away, provision trust again and let the agent fetch its bundle again"
        return Finding("database", "bad", f"state.db is damaged: {verdict}", fix)
    return Finding("database", "ok", "state.db is intact")


def trust(state_dir: StateDirectory) -> list[Finding]:
    """In a child: reading metadata needs libraries that the agent does without."""
    if not state_dir.trust.exists():
        return [Finding("trust", "bad", "no repository is trusted", "edge-agent trust provision ROOT_JSON --config …")]
    command = [sys.executable, "-P", "-m", "agent.cli", "trust", "show", "--json", "--state-dir", str(state_dir.root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TRUST_SECONDS, check=False)
    if done.returncode != 0:
        output = done.stderr.strip().splitlines()
        # Only what is itself wrong is mended by beginning anew, which forgets what must not be accepted again.
        lost = done.returncode == BundleRefused.exit_status
        fix = "edge-agent trust provision ROOT_JSON --replace, with a root.json that you know is the right one"
        return [
            Finding(
                "trust", "bad", output[-1] if output else "it cannot be read", fix if lost else "see the lines above"
            )
        ]
    roles = json.loads(done.stdout)["roles"]
    return [
        *_lost_floors(state_dir),
        *(_expiry(role, facts["version"], datetime.fromisoformat(facts["expires"])) for role, facts in roles.items()),
    ]


def _lost_floors(state_dir: StateDirectory) -> list[Finding]:
    """Every installation is refused where it is not known what trust may never fall below: said before one is tried."""
    if not state_dir.database.is_file():
        return []
    opened = open_to_read(state_dir)
    try:
        InstallationState(opened).check_floors()
    except BundleRefused as refused:
        return [Finding("trust", "bad", refused.message, "edge-agent trust provision ROOT_JSON --replace")]
    finally:
        opened.close()
    return []


def _expiry(role: str, version: int, expires: datetime) -> Finding:
    left = expires - datetime.now(UTC)
    text = f"{role} version {version} expires {expires:%Y-%m-%d}"
    fix = {
        "root": "edge-packager repo renew root, with its keys",
        "targets": "edge-packager repo renew targets, with its keys",
    }.get(role, "edge-packager repo refresh, on the workstation; the device reads it at the next installation")
    if left < timedelta(0):
        return Finding("trust", "bad", f"{text}: over; nothing new is installed, what is installed serves on", fix)
    if left < EXPIRY_WARNING and role in ("root", "targets"):
        return Finding("trust", "bad", f"{text}: soon", fix)
    return Finding("trust", "ok", text)


def clock_floor(state_dir: StateDirectory) -> int:
    """The latest time that this device has seen signed; 0 if there is no state."""
    if not state_dir.database.is_file():
        return 0
    opened = open_to_read(state_dir)
    try:
        return InstallationState(opened).clock_floor()
    finally:
        opened.close()


def active_bundle(state_dir: StateDirectory, settings: InstallSettings) -> Finding:
    """What is served, and whether memory and disk still are what it needs."""
    if not state_dir.database.is_file():
        return Finding("bundle", "note", "none is installed", "edge-agent install SOURCE NAME@VERSION")
    opened = open_to_read(state_dir)
    try:
        snapshot = InstallationState(opened).snapshot()
    finally:
        opened.close()
    if snapshot.active is None:
        return Finding("bundle", "note", "none is active", "edge-agent install SOURCE NAME@VERSION, or deploy one")
    path = state_dir.bundle(snapshot.active) / MANIFEST_FILE
    if not path.is_file():
        return Finding(
            "bundle", "bad", f"the active bundle {snapshot.active[:12]} is not on the disk", "edge-agent verify"
        )
    manifest = parse_manifest(path.read_bytes())
    host.check_requires(manifest.requires, host.measure_host(state_dir.root), room_bytes=settings.quota_bytes or None)
    return Finding("bundle", "ok", f"{manifest.reference}, {manifest.total_bytes / 1e6:.0f} MB on disk")


def reset_clock_floor(state_dir: StateDirectory) -> None:
    """Forget the latest signed time, after a clock far in the future was believed.

    Raises:
        StoreBroken: STATE_LOCKED while an agent runs; StoreFull.
    """
    with FileLock(state_dir.lock, "a running agent"):
        opened = Database(state_dir.database, SCHEMA)
        try:
            AuditLog(state_dir.audit, Disk(), "operator").record("clock_floor_reset")
            InstallationState(opened).reset_clock_floor()
        finally:
            opened.close()
