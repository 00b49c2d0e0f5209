"""What this device trusts, on disk: one file, replaced atomically, so that no power cut leaves half of it.

python-tuf keeps one file per role, does not flush them and passes over an unreadable one as if it had never been
there; with emptied files it accepts a rolled-back timestamp and a revoked root key. Here all roles are one document
with a digest of its own, written through :class:`~contract.system.durable.Disk`; the floor in ``state.db`` knows the
versions it must have; anything less is TRUST_STATE_LOST and stays so until an operator provisions again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from contract import strict_json
from contract.errors import BundleRefused, UsageError
from contract.reasons import Reason
from contract.system.durable import Disk
from contract.trust.refresh import TrustFiles, check_root
from contract.trust.rollback_floor import ResettableRollbackFloor, RollbackFloor

FILE = "trusted.json"
MAX_STORE_BYTES = 32_000_000
"""All four documents at their largest, escaped once more."""

_ROLES = ("root", "timestamp", "snapshot", "targets")


class _Stored(Struct, frozen=True, forbid_unknown_fields=True):
    """``metadata`` holds the documents as text, exactly as they were signed; ``sha256`` is over everything.

    ``anchor`` is the SHA-256 of the root that an operator provisioned, the beginning of this trust.
    """

    anchor: str
    metadata: dict[str, str]
    sha256: str


def _digest(anchor: str, metadata: Mapping[str, str]) -> str:
    whole = hashlib.sha256(anchor.encode())
    for role in sorted(metadata):
        data = metadata[role].encode()
        whole.update(f"{role} {len(data)}\n".encode() + data)
    return whole.hexdigest()


def _lost(why: str) -> BundleRefused:
    return BundleRefused(
        Reason.TRUST_STATE_LOST,
        f"{why}; provision this device again with `edge-agent trust provision ROOT_JSON --replace`",
    )


def _era(root: bytes) -> str:
    roles = json.loads(root)["signed"]["roles"]
    keys = [[sorted(roles[role]["keyids"]), roles[role]["threshold"]] for role in ("timestamp", "snapshot")]
    return hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:16]


def role_versions(files: TrustFiles) -> dict[str, int]:
    """Versions of ``files`` as the floor counts them: those of an era of timestamp and snapshot keys stand apart."""
    era = _era(files["root"])
    return {
        role if role == "root" else f"{role}@{era}": int(json.loads(data)["signed"]["version"])
        for role, data in files.items()
    }


def fallen_below(files: TrustFiles, floor: RollbackFloor) -> str | None:
    """The first role of ``files`` that is missing or older than ``floor`` allows, None if there is none."""
    versions, era = role_versions(files), _era(files["root"])
    for role, least in floor.role_versions().items():
        if role.partition("@")[2] in ("", era) and versions.get(role, 0) < least:
            return role.partition("@")[0]
    return None


class TrustStore:
    """The trust of one device, in ``directory``.

    Raises:
        StoreBroken, StoreFull: from every method that touches the disk.
    """

    def __init__(self, directory: Path, disk: Disk | None = None) -> None:
        self._directory = directory
        self._disk = disk or Disk()

    @property
    def scratch(self) -> Path:
        """Where a refresh may work: on the same disk; what a killed one left there is removed first."""
        for left in self._directory.glob("work-*"):
            shutil.rmtree(left, ignore_errors=True)
        for left in self._directory.glob(f".{FILE}.*.tmp"):
            left.unlink(missing_ok=True)
        return self._directory

    def provision(self, root_json: bytes, floor: RollbackFloor) -> int:
        """Trust ``root_json`` from now on, on a device that has trusted nothing yet; the root's version.

        Provisioning once more with the root that this device's trust began with changes nothing.

        Raises:
            BundleRefused: the root does not hold by itself.
            UsageError: the device trusts another repository already.
        """
        version = check_root(root_json)
        if (self._directory / FILE).exists() or floor.role_versions():
            anchor, _ = self._read(floor)
            if anchor == hashlib.sha256(root_json).hexdigest():
                return version
            raise UsageError("this device trusts a repository already; --replace makes it forget that one for ever")
        self._write(hashlib.sha256(root_json).hexdigest(), {"root": root_json}, floor)
        return version

    def reprovision(self, root_json: bytes, floor: ResettableRollbackFloor) -> int:
        """Forget all trust and begin anew with ``root_json``: the operator's decision, never a program's.

        Raises:
            BundleRefused: the root does not hold by itself.
        """
        version = check_root(root_json)
        # A power cut after the reset leaves the old trust with no floor, which the next load raises again.
        floor.reset_role_versions()
        self._write(hashlib.sha256(root_json).hexdigest(), {"root": root_json}, floor)
        return version

    def load(self, floor: RollbackFloor) -> dict[str, bytes]:
        """The verified metadata by role.

        Raises:
            BundleRefused: TRUST_STATE_LOST when it is missing, damaged, or below the floor.
        """
        return self._read(floor)[1]

    def keep(self, files: TrustFiles, floor: RollbackFloor) -> None:
        """Make verified ``files`` this device's trust, durably, then raise the floor to them.

        Raises:
            BundleRefused: METADATA_ROLLBACK when they are below the floor; nothing is changed then.
        """
        fallen = fallen_below(files, floor)
        if fallen is not None:
            raise BundleRefused(Reason.METADATA_ROLLBACK, f"the {fallen} metadata is older than what was seen before")
        anchor, known = self._read(floor)
        if files != known:
            self._write(anchor, files, floor)

    def keep_root(self, root: bytes, floor: RollbackFloor) -> None:
        """Keep a verified newer root although the rest of a refresh failed: it may have revoked keys."""
        anchor, known = self._read(floor)
        # Versions signed by retired timestamp or snapshot keys bind nobody any more (TUF specification 5.3.11).
        others = {role: data for role, data in known.items() if _era(known["root"]) == _era(root)}
        self._write(anchor, {**others, "root": root}, floor)

    def _read(self, floor: RollbackFloor) -> tuple[str, dict[str, bytes]]:
        path = self._directory / FILE
        try:
            data = path.read_bytes()
        except OSError as error:
            if not floor.role_versions() and isinstance(error, FileNotFoundError):
                raise BundleRefused(
                    Reason.TRUST_STATE_LOST,
                    "no root of trust is provisioned on this device: run `edge-agent trust provision ROOT_JSON`",
                ) from error
            raise _lost(f"the trust of this device is gone ({error.strerror})") from error
        try:
            stored = strict_json.decode(data, _Stored, max_bytes=MAX_STORE_BYTES, what=FILE)
            if stored.sha256 != _digest(stored.anchor, stored.metadata):
                raise ValueError("digest")
            files = {role: text.encode() for role, text in stored.metadata.items()}
            fallen = fallen_below(files, floor)
        except (BundleRefused, ValueError, KeyError, TypeError) as error:
            raise _lost(f"{path} is damaged") from error
        if fallen is not None:
            raise _lost(f"the trust of this device fell back: its {fallen} metadata is older than it was")
        # A cut between writing the store and raising the floor is mended here.
        floor.raise_role_versions(role_versions(files))
        return stored.anchor, files

    def _write(self, anchor: str, files: TrustFiles, floor: RollbackFloor) -> None:
        metadata = {role: files[role].decode() for role in _ROLES if role in files}
        document = {"anchor": anchor, "metadata": metadata, "sha256": _digest(anchor, metadata)}
        self._disk.make_directory(self._directory, 0o700)
        # Store first: a store above its floor is whole, one below it would count as lost.
        self._disk.write_file(self._directory / FILE, json.dumps(document).encode(), 0o600)
        floor.raise_role_versions(role_versions(files))
