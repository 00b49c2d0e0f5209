"""``python -m tests.tuf_client``, the TUF client that independent suites drive: a process of its own, against a
repository that python-tuf alone has made, with the options and exit statuses that those suites expect.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from tests.contract.source.servers import RangeHandler, serve

ROOT = Path(__file__).resolve().parents[3]
ROLES = ("root", "timestamp", "snapshot", "targets")


class Upstream:
    """A repository written with python-tuf's own classes below ``path``, and the requests that its server got."""

    def __init__(self, path: Path, *, consistent: bool = True) -> None:
        self.path = path
        self.url = ""
        self.asked: list[str] = []
        self.signers = {role: CryptoSigner.generate_ed25519() for role in ROLES}
        expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
        self.root = Root(expires=expires, consistent_snapshot=consistent)
        self.targets = Targets(expires=expires)
        self.snapshot = Snapshot(expires=expires)
        self.timestamp = Timestamp(expires=expires)
        for role, signer in self.signers.items():
            self.root.add_key(signer.public_key, role)
        self.write_root()

    def write_root(self, *extra: CryptoSigner) -> None:
        metadata = Metadata(self.root)
        for signer in (self.signers["root"], *extra):
            metadata.sign(signer, append=True)
        self._write(f"metadata/{self.root.version}.root.json", metadata.to_bytes())

    def rotate(self, role: str, signer: CryptoSigner) -> None:
        """Give ``role`` another key and publish the next root."""
        old = self.signers[role]
        self.root.revoke_key(old.public_key.keyid, role)
        self.root.add_key(signer.public_key, role)
        self.signers[role] = signer
        self.root.version += 1
        self.write_root(*([old] if role == "root" else []))

    def add(self, name: str, data: bytes) -> None:
        target = TargetFile.from_data(name, data, ["sha256"])
        self.targets.targets[name] = target
        directory, _, base = name.rpartition("/")
        prefix = f"{target.hashes['sha256']}." if self.root.consistent_snapshot else ""
        self._write(f"targets/{directory}/{prefix}{base}", data)

    def publish(self) -> None:
        """Write targets, snapshot and timestamp, each one version on."""
        self.targets.version += 1
        targets = self._sign("targets", self.targets)
        self.snapshot.meta["targets.json"] = MetaFile.from_data(self.targets.version, targets, ["sha256"])
        self.snapshot.version += 1
        snapshot = self._sign("snapshot", self.snapshot)
        self.timestamp.snapshot_meta = MetaFile.from_data(self.snapshot.version, snapshot, ["sha256"])
        self.timestamp.version += 1
        self._sign("timestamp", self.timestamp)

    def _sign(self, role: str, signed: Targets | Snapshot | Timestamp) -> bytes:
        metadata: Metadata[Targets | Snapshot | Timestamp] = Metadata(signed)
        metadata.sign(self.signers[role])
        data = metadata.to_bytes()
        versioned = self.root.consistent_snapshot and role != "timestamp"
        self._write(f"metadata/{f'{signed.version}.' if versioned else ''}{role}.json", data)
        return data

    def _write(self, name: str, data: bytes) -> None:
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_bytes(data)


class Driven:
    """The client's command line, each call a process."""

    def __init__(self, path: Path, upstream: Upstream) -> None:
        self.path = path
        self.upstream = upstream
        self.metadata = path / "metadata"
        self.artifacts = path / "artifacts"
        self.error = ""

    def __call__(self, *words: str, any_key: bool = False) -> int:
        options = ["--any-key"] if any_key else []
        command = [sys.executable, "-m", "tests.tuf_client", *options, "--metadata-dir", str(self.metadata), *words]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, timeout=250)
        self.error = done.stderr
        assert "Traceback" not in done.stderr
        assert bool(done.stderr) == (done.returncode != 0)
        return done.returncode

    def init(self, *, any_key: bool = False) -> int:
        return self("init", str(self.upstream.path / "metadata/1.root.json"), any_key=any_key)

    def refresh(self, *, any_key: bool = False) -> int:
        return self("--metadata-url", f"{self.upstream.url}/metadata", "refresh", any_key=any_key)

    def download(self, *names: str) -> int:
        wanted = [word for name in names for word in ("--target-name", name)]
        return self(
            "--metadata-url", f"{self.upstream.url}/metadata", *wanted,
            "--target-base-url", f"{self.upstream.url}/targets", "--target-dir", str(self.artifacts), "download",
        )  # fmt: skip

    def versions(self) -> dict[str, int]:
        return {
            file.name.removesuffix(".json"): Metadata.from_file(str(file)).signed.version
            for file in self.metadata.glob("*.json")
        }


@pytest.fixture(params=[True, False], ids=["consistent", "plain"])
def upstream(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Upstream]:
    yield from _served(Upstream(tmp_path / "upstream", consistent=request.param))


@pytest.fixture
def consistent(tmp_path: Path) -> Iterator[Upstream]:
    yield from _served(Upstream(tmp_path / "upstream"))


def _served(made: Upstream) -> Iterator[Upstream]:
    class Recording(RangeHandler):
        def do_GET(self) -> None:
            made.asked.append(unquote(self.path))
            super().do_GET()

    with serve(made.path, Recording) as url:
        made.url = url
        yield made


def test_names_in_the_metadata_directory_are_not_versioned(upstream: Upstream, tmp_path: Path) -> None:
    upstream.publish()
    client = Driven(tmp_path, upstream)
    assert client.init() == 0
    assert client.versions() == {"root": 1}
    assert client.refresh() == 0
    assert client.versions() == {"root": 1, "timestamp": 2, "snapshot": 2, "targets": 2}
    upstream.publish()
    assert client.refresh() == 0
    assert client.versions() == {"root": 1, "timestamp": 3, "snapshot": 3, "targets": 3}


def test_several_artifacts_with_directories_and_characters_that_urls_escape(upstream: Upstream, tmp_path: Path) -> None:
    contents = {
        "plain.txt": b"one",
        "a/b/c/deep.bin": bytes(range(256)) * 5000,
        "with space+plus.txt": b"three",
        "50% of it/ü#1.txt": b"four",
        "empty": b"",
    }
    for name, data in contents.items():
        upstream.add(name, data)
    upstream.publish()
    client = Driven(tmp_path, upstream)
    assert client.init() == 0
    assert client.download(*contents) == 0, client.error
    found = sorted(file.read_bytes() for file in client.artifacts.rglob("*") if file.is_file())
    assert found == sorted(contents.values())
    assert all(file.resolve().is_relative_to(client.artifacts) for file in client.artifacts.rglob("*"))


def test_a_cached_artifact_is_not_asked_for_again(upstream: Upstream, tmp_path: Path) -> None:
    upstream.add("dir/model.bin", b"weights")
    upstream.publish()
    client = Driven(tmp_path, upstream)
    assert client.init() == 0
    assert client.download("dir/model.bin") == 0
    if upstream.root.consistent_snapshot:
        digest = hashlib.sha256(b"weights").hexdigest()
        assert f"/targets/dir/{digest}.model.bin" in upstream.asked, "the digest stands before the name"
    else:
        assert "/targets/dir/model.bin" in upstream.asked
    upstream.asked.clear()
    assert client.download("dir/model.bin") == 0
    assert not [path for path in upstream.asked if path.startswith("/targets")]
    (kept,) = client.artifacts.iterdir()
    kept.write_bytes(b"changed")
    assert client.download("dir/model.bin") == 0
    assert kept.read_bytes() == b"weights"


def test_an_artifact_that_is_unlisted_changed_or_longer_is_refused(consistent: Upstream, tmp_path: Path) -> None:
    consistent.add("model.bin", b"weights")
    consistent.publish()
    client = Driven(tmp_path, consistent)
    assert client.init() == 0
    assert client.download("other.bin") == 1
    (file,) = (consistent.path / "targets").glob("*.model.bin")
    for changed in (b"weighty", b"weights and more", b"w", None):
        file.unlink() if changed is None else file.write_bytes(changed)
        assert client.download("model.bin") == 1
        assert list(client.artifacts.iterdir()) == []


@pytest.mark.parametrize("role", ROLES)
def test_rotated_keys_are_followed(consistent: Upstream, tmp_path: Path, role: str) -> None:
    consistent.publish()
    client = Driven(tmp_path, consistent)
    assert client.init() == 0
    assert client.refresh() == 0
    old = consistent.signers[role]
    consistent.rotate(role, CryptoSigner.generate_ed25519())
    consistent.publish()
    assert client.refresh() == 0, client.error
    assert client.versions()["root"] == 2
    if role != "root":
        consistent.signers[role] = old
        consistent.publish()
        assert client.refresh() == 1, "the old key counts for nothing any more"


def test_rollback_freeze_and_mixes_are_refused_from_process_to_process(consistent: Upstream, tmp_path: Path) -> None:
    consistent.publish()
    old = (consistent.path / "metadata/timestamp.json").read_bytes()
    client = Driven(tmp_path, consistent)
    assert client.init() == 0
    consistent.publish()
    assert client.refresh() == 0
    (consistent.path / "metadata/timestamp.json").write_bytes(old)
    assert client.refresh() == 1
    consistent.publish()
    assert client.refresh() == 0
    (consistent.path / f"metadata/{consistent.targets.version}.targets.json").write_bytes(b"{}")
    consistent.snapshot.meta["targets.json"].version += 1
    assert client.refresh() == 0, "what is trusted already is not asked for again"
    consistent.timestamp.expires = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=1)
    consistent.publish()
    assert client.refresh() == 1
    assert "expired" in client.error


def test_an_emptied_cache_is_refused_and_not_passed_over(consistent: Upstream, tmp_path: Path) -> None:
    consistent.publish()
    client = Driven(tmp_path, consistent)
    assert client.init() == 0
    assert client.refresh() == 0
    (client.metadata / "timestamp.json").write_bytes(b"")
    assert client.refresh() == 1
    assert client.init() == 0, "begin again"
    assert client.refresh() == 0


def test_other_key_types_are_admitted_only_with_any_key(consistent: Upstream, tmp_path: Path) -> None:
    client = Driven(tmp_path, consistent)
    for signer in (
        CryptoSigner.generate_rsa(scheme="rsassa-pss-sha256"),
        CryptoSigner.generate_rsa(scheme="rsa-pkcs1v15-sha256"),
        CryptoSigner.generate_ecdsa(),
    ):
        made = Upstream(tmp_path / signer.public_key.scheme)
        for role in ROLES:
            made.root.revoke_key(made.signers[role].public_key.keyid, role)
            made.root.add_key(signer.public_key, role)
            made.signers[role] = signer
        made.write_root()
        made.publish()
        client.upstream = made
        with serve(made.path) as url:
            made.url = url
            assert client.init() == 1, "the product's policy is Ed25519"
            assert client.init(any_key=True) == 0, client.error
            assert client.refresh(any_key=True) == 0, client.error
            assert client.refresh() == 1


@pytest.mark.parametrize(
    "words",
    [
        ("refresh", "--metadata-irl", "x"),
        ("freshen",),
        ("init",),
        ("refresh",),
        ("--metadata-url", "x", "download"),
        (),
    ],
    ids=["misspelt option", "misspelt action", "no root", "no address", "no artifact", "no action"],
)
def test_any_failure_is_one_also_of_the_command_line(consistent: Upstream, tmp_path: Path, words: list[str]) -> None:
    driven = Driven(tmp_path / "client", consistent)
    assert driven(*words) == 1
    assert driven.error.count("tuf_client: ") == 1
