"""A repository in memory whose owner can sign anything, however wrong, and a device that trusts it."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from securesystemslib.formats import encode_canonical

from contract.bundle.manifest import Chunk, FileEntry, encode_manifest
from contract.errors import BundleRefused, SourceUnavailable
from contract.identifiers import check_path, parse_reference
from contract.reasons import Reason
from contract.source import BundleSource
from contract.source.tar import TarSource
from contract.system.durable import Disk
from contract.trust.resolve import resolve
from contract.trust.rollback_floor import MemoryRollbackFloor
from contract.trust.signing import SigningKey
from contract.trust.store import TrustStore
from contract.trust.verified import TrustedManifest
from tests.contract.trust.samples import NOW, make_manifest

Change = Callable[[dict[str, Any]], None]
DAYS = {"root": 365, "targets": 180, "snapshot": 30, "timestamp": 7}


class MemorySource:
    """A source over a dictionary; passes the conformance tests of all sources."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.asked: list[str] = []
        self._closed = False

    @property
    def description(self) -> str:
        return "memory"

    def read(self, path: str, max_bytes: int) -> bytes | None:
        data = self._get(path)
        if data is not None and len(data) > max_bytes:
            raise BundleRefused(Reason.TOO_LARGE, f"{path} is longer than {max_bytes} bytes")
        return data

    def stream(self, path: str, start: int, length: int) -> Iterator[bytes]:
        data = self._get(path)
        if data is None or start + length > len(data):
            raise SourceUnavailable(f"{path} is missing or ends early")
        for offset in range(start, start + length, 2**20):
            yield data[offset : min(offset + 2**20, start + length)]

    def close(self) -> None:
        self._closed = True

    def _get(self, path: str) -> bytes | None:
        if self._closed:
            raise SourceUnavailable("closed")
        check_path(path)
        self.asked.append(path)
        return self.files.get(path)


def nothing(signed: dict[str, Any]) -> None:
    """No change."""


def sign(signed: dict[str, Any], keys: Sequence[SigningKey]) -> dict[str, Any]:
    """A metadata document with real signatures."""
    payload = encode_canonical(signed).encode()
    signatures = [{"keyid": key.keyid, "sig": key._private.sign(payload).hex()} for key in keys]
    return {"signatures": signatures, "signed": signed}


def encode(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


class Publisher:
    """Starts with root 1 and nothing else; every ``write_…`` makes one document, ``change``d before it is signed."""

    def __init__(self, now: datetime = NOW) -> None:
        self.now = now
        self.keys = {role: [SigningKey.generate()] for role in DAYS}
        self.thresholds = dict.fromkeys(DAYS, 1)
        self.versions = dict.fromkeys(DAYS, 0)
        self.targets: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}
        self.write_root()

    @property
    def source(self) -> MemorySource:
        return MemorySource(dict(self.files))

    @property
    def root(self) -> bytes:
        return self.files[f"metadata/{self.versions['root']}.root.json"]

    def tar(self, path: Path) -> TarSource:
        """The repository as it is now, in a tar."""
        with tarfile.open(path, "w") as file:
            for name, data in self.files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
        return TarSource(path)

    def expires(self, role: str) -> str:
        return (self.now + timedelta(days=DAYS[role])).strftime("%Y-%m-%dT%H:%M:%SZ")

    def _signed(self, role: str, **fields: Any) -> dict[str, Any]:
        self.versions[role] += 1
        common = {"_type": role, "spec_version": "1.0.31", "version": self.versions[role]}
        return {**common, "expires": self.expires(role), **fields}

    def _write(self, role: str, signed: dict[str, Any], change: Change, keys: Sequence[SigningKey] | None) -> bytes:
        change(signed)
        data = encode(sign(signed, self.keys[role] if keys is None else keys))
        name = "timestamp.json" if role == "timestamp" else f"{self.versions[role]}.{role}.json"
        self.files[f"metadata/{name}"] = data
        return data

    def write_root(self, change: Change = nothing, keys: Sequence[SigningKey] | None = None) -> bytes:
        public = {
            key.keyid: {"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": key.public}}
            for role in self.keys
            for key in self.keys[role]
        }
        roles = {
            role: {"keyids": [key.keyid for key in self.keys[role]], "threshold": self.thresholds[role]}
            for role in self.keys
        }
        return self._write(
            "root", self._signed("root", consistent_snapshot=True, keys=public, roles=roles), change, keys
        )

    def write_targets(self, change: Change = nothing, keys: Sequence[SigningKey] | None = None) -> bytes:
        return self._write("targets", self._signed("targets", targets=copy.deepcopy(self.targets)), change, keys)

    def write_snapshot(self, change: Change = nothing, keys: Sequence[SigningKey] | None = None) -> bytes:
        version = self.versions["targets"]
        meta = {"targets.json": {"version": version, **_described(self.files[f"metadata/{version}.targets.json"])}}
        return self._write("snapshot", self._signed("snapshot", meta=meta), change, keys)

    def write_timestamp(self, change: Change = nothing, keys: Sequence[SigningKey] | None = None) -> bytes:
        version = self.versions["snapshot"]
        meta = {"snapshot.json": {"version": version, **_described(self.files[f"metadata/{version}.snapshot.json"])}}
        return self._write("timestamp", self._signed("timestamp", meta=meta), change, keys)

    def write_online(self) -> None:
        self.write_snapshot()
        self.write_timestamp()

    def add(self, reference: str, *, contents: bytes = b"weights", stored: bytes | None = None) -> None:
        """Put a bundle of one file into the next targets."""
        name, version = parse_reference(reference)
        sha256 = hashlib.sha256(contents).hexdigest()
        chunks = [Chunk(size=len(contents), sha256=sha256)]
        file = FileEntry(path="model.onnx", size=len(contents), sha256=sha256, role="model", chunks=chunks)
        stored = encode_manifest(make_manifest(name, version, [file])) if stored is None else stored
        described = _described(stored)
        self.targets[f"manifests/{name}/{version}.json"] = described
        self.files[f"manifests/{name}/{described['hashes']['sha256']}.{version}.json"] = stored
        self.files[f"objects/{sha256}"] = contents

    def publish(self, reference: str = "demo@1.0.0", *, contents: bytes = b"weights") -> None:
        """Publish properly."""
        self.add(reference, contents=contents)
        self.write_targets()
        self.write_online()


def _described(data: bytes) -> dict[str, Any]:
    return {"length": len(data), "hashes": {"sha256": hashlib.sha256(data).hexdigest()}}


class Device:
    """A device provisioned with ``root``."""

    def __init__(self, path: Path, root: bytes, disk: Disk | None = None) -> None:
        self.path = path
        self.floor = MemoryRollbackFloor()
        self.store = TrustStore(path, disk)
        self.now = NOW
        self.store.provision(root, self.floor)

    def resolve(self, source: BundleSource, reference: str = "demo@1.0.0", *, grace: bool = True) -> TrustedManifest:
        name, version = parse_reference(reference)
        return resolve(
            store=self.store, source=source, name=name, version=version, floor=self.floor,
            clock=lambda: self.now, offline_grace=grace,
        )  # fmt: skip

    def refused(self, source: BundleSource, reference: str = "demo@1.0.0", *, grace: bool = True) -> Reason:
        """The reason code of a refusal; anything else fails the test."""
        try:
            got = self.resolve(source, reference, grace=grace)
        except BundleRefused as error:
            return error.reason
        raise AssertionError(f"{got} was accepted")
