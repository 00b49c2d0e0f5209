"""``python -m tests.tuf_client`` in this process, against what a publisher of bundles puts on a web server."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root

from tests.contract.source.servers import RangeHandler, serve
from tests.contract.trust.publisher import Publisher
from tests.tuf_client.__main__ import main


class Site:
    """A publisher's files behind a real web server, and what was asked for."""

    def __init__(self, path: Path, url: str) -> None:
        self.path = path
        self.url = url
        self.publisher = Publisher(datetime.now(UTC))
        self.publisher.publish()
        self.upload()

    def upload(self) -> None:
        for name, data in self.publisher.files.items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_bytes(data)


asked: list[str] = []


class Recording(RangeHandler):
    def do_GET(self) -> None:
        asked.append(self.path)
        super().do_GET()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "site").mkdir()
    with serve(tmp_path / "site", Recording) as url:
        yield Site(tmp_path / "site", url)


@pytest.fixture
def root(site: Site) -> str:
    return str(site.path / "metadata/1.root.json")


def tuf(*words: str) -> int:
    return main(words)


def client(tmp_path: Path, site: Site, *words: str) -> int:
    return tuf("--metadata-dir", str(tmp_path / "md"), "--metadata-url", f"{site.url}/metadata", *words)


def download(tmp_path: Path, site: Site, *names: str, base: str = "") -> int:
    targets = [word for name in names for word in ("--target-name", name)]
    return client(
        tmp_path, site, *targets, "--target-base-url", base or site.url, "--target-dir", str(tmp_path / "t"), "download"
    )


def test_init_refresh_and_download(tmp_path: Path, site: Site, root: str) -> None:
    assert tuf("--metadata-dir", str(tmp_path / "md"), "init", root) == 0
    assert client(tmp_path, site, "refresh") == 0
    assert {path.name for path in (tmp_path / "md").glob("*.json")} == {
        "root.json", "timestamp.json", "snapshot.json", "targets.json",
    }  # fmt: skip
    assert download(tmp_path, site, "manifests/demo/1.0.0.json") == 0
    (got,) = (tmp_path / "t").iterdir()
    assert got.read_bytes() in site.publisher.files.values()


def test_a_cached_artifact_is_not_downloaded_again(tmp_path: Path, site: Site, root: str) -> None:
    tuf("--metadata-dir", str(tmp_path / "md"), "init", root)
    assert download(tmp_path, site, "manifests/demo/1.0.0.json") == 0
    asked.clear()
    assert download(tmp_path, site, "manifests/demo/1.0.0.json") == 0
    assert not [path for path in asked if path.startswith("/manifests")]
    (got,) = (tmp_path / "t").iterdir()
    got.write_bytes(b"changed on disk")
    assert download(tmp_path, site, "manifests/demo/1.0.0.json") == 0
    assert got.read_bytes() in site.publisher.files.values()


def test_every_failure_is_status_1_and_one_sentence(
    tmp_path: Path, site: Site, root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    md = ("--metadata-dir", str(tmp_path / "md"))
    assert client(tmp_path, site, "refresh") == 1, "not initialised"
    assert tuf(*md, "init", str(tmp_path / "missing")) == 1
    assert tuf(*md, "refresh") == 1, "no URL"
    assert tuf(*md, "init", root) == 0
    assert download(tmp_path, site, "no/such/target") == 1
    for file in site.path.glob("manifests/demo/*"):
        file.write_bytes(b"x" * file.stat().st_size)
    assert download(tmp_path, site, "manifests/demo/1.0.0.json") == 1
    assert not list((tmp_path / "t").iterdir())
    (site.path / "metadata/timestamp.json").unlink()
    assert client(tmp_path, site, "refresh") == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error


def test_attack_emptied_client_cache_is_not_passed_over(tmp_path: Path, site: Site, root: str) -> None:
    tuf("--metadata-dir", str(tmp_path / "md"), "init", root)
    assert client(tmp_path, site, "refresh") == 0
    (tmp_path / "md/timestamp.json").write_bytes(b"")
    assert client(tmp_path, site, "refresh") == 1
    tuf("--metadata-dir", str(tmp_path / "md"), "init", root)
    assert client(tmp_path, site, "refresh") == 0


def test_rollback_is_refused_from_run_to_run(tmp_path: Path, site: Site, root: str) -> None:
    tuf("--metadata-dir", str(tmp_path / "md"), "init", root)
    old = site.publisher.files["metadata/timestamp.json"]
    site.publisher.publish("demo@1.1.0")
    site.upload()
    assert client(tmp_path, site, "refresh") == 0
    (site.path / "metadata/timestamp.json").write_bytes(old)
    assert client(tmp_path, site, "refresh") == 1


def test_other_key_types_only_with_any_key(tmp_path: Path) -> None:
    signer = CryptoSigner.generate_ecdsa()
    made = Root(expires=datetime(2036, 1, 1, tzinfo=UTC))
    for role in ("root", "timestamp", "snapshot", "targets"):
        made.add_key(signer.public_key, role)
    metadata = Metadata(made)
    metadata.sign(signer)
    (tmp_path / "root.json").write_bytes(metadata.to_bytes())
    assert tuf("--metadata-dir", str(tmp_path / "md"), "init", str(tmp_path / "root.json")) == 1
    assert tuf("--metadata-dir", str(tmp_path / "md"), "--any-key", "init", str(tmp_path / "root.json")) == 0
