"""A published repository with variants of a real bundle, and a device with its trust provisioned."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from agent.install.ports import SealedBundle
from agent.install.process.installer import run_job
from agent.install.process.messages import InstallJob, Line, Reached, RefreshTrustJob
from agent.install.update.state_machine import Event
from agent.state.audit import Entry, read_audit
from agent.state.database import Database
from agent.state.installation import InstallationState
from agent.state.layout import StateDirectory
from agent.state.schema import SCHEMA
from contract.bundle.chunks import digest_chunks
from contract.bundle.manifest import MANIFEST_FILE, FileEntry, Manifest, encode_manifest, parse_manifest
from contract.system.durable import Disk
from packager.publish.repository import Repository

Changes = Mapping[str, bytes | None]


def make_variant(base: Path, target: Path, version: str, files: Changes | None = None, **fields: object) -> Manifest:
    """A copy of the bundle ``base`` as ``version``, with ``files`` replaced (None removes) and manifest ``fields``."""
    shutil.copytree(base, target)
    for path in [target, *target.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    manifest = parse_manifest((target / MANIFEST_FILE).read_bytes())
    entries = {entry.path: entry for entry in manifest.files}
    for name, data in (files or {}).items():
        if data is None:
            del entries[name]
            (target / name).unlink()
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(data)
        sha256, chunks = digest_chunks(target / name)
        role = entries[name].role if name in entries else "evidence"
        entries[name] = FileEntry(name, len(data), sha256, role, chunks)
    manifest = msgspec.structs.replace(manifest, version=version, files=list(entries.values()), **fields)
    (target / MANIFEST_FILE).write_bytes(encode_manifest(manifest))
    return manifest


class Market:
    """A repository that grows by variants of one bundle."""

    def __init__(self, root: Path, base: Path) -> None:
        self.root = root
        self.base = base
        self.repository = Repository.init(root / "repository", root / "keys")

    @property
    def location(self) -> str:
        return str(self.root / "repository")

    @property
    def root_json(self) -> Path:
        return self.root / "repository" / "metadata" / "1.root.json"

    def publish(self, version: str, files: Changes | None = None, **fields: object) -> Manifest:
        target = self.root / f"built-{version}"
        manifest = make_variant(self.base, target, version, files, **fields)
        assert self.repository.publish(target).published
        return manifest

    def object(self, manifest: Manifest, path: str) -> Path:
        """The published file behind ``path``."""
        entry = next(entry for entry in manifest.files if entry.path == path)
        return self.root / "repository" / "objects" / entry.sha256

    def job(self, state_dir: Path, version: str, **fields: object) -> InstallJob:
        job = InstallJob(
            state_dir=str(state_dir), name="tiny", version=version, sources=[self.location], root=str(self.root_json)
        )
        return msgspec.structs.replace(job, **fields)


class Device:
    """A state directory and what an installer in this process said about it."""

    def __init__(self, root: Path) -> None:
        root.mkdir(exist_ok=True)
        self.directory = StateDirectory(root)
        self.lines: list[Line] = []

    def install(self, job: InstallJob, disk: Disk | None = None) -> SealedBundle:
        self.lines = []
        sealed = run_job(job, disk or Disk(), self.lines.append)
        assert sealed is not None
        return sealed

    def refresh(self, job: InstallJob) -> None:
        """Refresh trust only."""
        assert run_job(RefreshTrustJob(job.state_dir, job.sources), Disk(), self.lines.append) is None

    def audit(self) -> list[Entry]:
        return read_audit(self.directory.audit)

    @property
    def events(self) -> list[Event]:
        return [line.event for line in self.lines if isinstance(line, Reached)]

    def state(self) -> InstallationState:
        return InstallationState(Database(self.directory.database, SCHEMA))

    def activate(self, bundle: SealedBundle) -> None:
        self.state().commit_candidate(bundle.digest)

    def names(self, place: Callable[[StateDirectory], Path]) -> list[str]:
        """What lies in one of its directories."""
        directory = place(self.directory)
        return sorted(path.name for path in directory.iterdir()) if directory.exists() else []
