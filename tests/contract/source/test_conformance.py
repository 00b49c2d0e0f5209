"""What every source promises, run over all of them."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from contract.errors import BundleRefused, SourceUnavailable
from contract.reasons import Reason
from contract.source import BundleSource
from contract.source.directory import DirectorySource
from contract.source.http import HttpSource
from contract.source.opening import open_source
from contract.source.tar import TarSource
from tests.contract.source.servers import OldHandler, PlainHandler, serve
from tests.contract.trust.publisher import MemorySource

BIG = bytes(range(256)) * 12_000  # three megabytes: several pieces
BIG_PATH = f"objects/{hashlib.sha256(BIG).hexdigest()}"
EMPTY_PATH = f"objects/{hashlib.sha256(b'').hexdigest()}"
LONG_VERSION = "1.0.0-" + "a" * 40 + "+b.1"
FILES = {
    "metadata/1.root.json": b'{"root": 1}',
    "metadata/timestamp.json": b"{}",
    f"manifests/m/{'0' * 64}.{LONG_VERSION}.json": b"a long name",
    BIG_PATH: BIG,
    EMPTY_PATH: b"",
}
KINDS = ("memory", "directory", "http", "http-without-range", "http-1.0", "tar-pax", "tar-gnu")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree") / "repository"
    for name, data in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.fixture(params=KINDS)
def source(request: pytest.FixtureRequest, tree: Path, tmp_path: Path) -> Iterator[BundleSource]:
    with ExitStack() as stack:
        made: BundleSource
        if request.param == "memory":
            made = MemorySource(FILES)
        elif request.param == "directory":
            made = DirectorySource(tree)
        elif request.param == "http":
            made = HttpSource(stack.enter_context(serve(tree)))
        elif request.param == "http-without-range":
            made = HttpSource(stack.enter_context(serve(tree.parent, PlainHandler)) + "/repository/")
        elif request.param == "http-1.0":
            made = HttpSource(stack.enter_context(serve(tree, OldHandler)))
        else:
            path = tmp_path / "r.edgebundle"
            kind = tarfile.PAX_FORMAT if request.param == "tar-pax" else tarfile.GNU_FORMAT
            with tarfile.open(path, "w", format=kind) as tar:
                for name in FILES:
                    tar.add(tree / name, arcname=name)
            made = TarSource(path)
        stack.callback(made.close)
        yield made


def test_is_a_bundle_source_with_a_description(source: BundleSource) -> None:
    assert isinstance(source, BundleSource)
    assert source.description


@pytest.mark.parametrize("name", FILES)
def test_reads_whole_files(source: BundleSource, name: str) -> None:
    assert source.read(name, len(FILES[name])) == FILES[name]


def test_says_none_for_what_it_does_not_have(source: BundleSource) -> None:
    assert source.read("metadata/2.root.json", 100) is None
    assert source.read("metadata/1.root.json", 100) is not None


def test_refuses_a_file_longer_than_allowed(source: BundleSource) -> None:
    with pytest.raises(BundleRefused) as caught:
        source.read("metadata/1.root.json", 5)
    assert caught.value.reason is Reason.TOO_LARGE
    assert source.read("metadata/timestamp.json", 2) == b"{}"


@pytest.mark.parametrize(
    ("start", "length"),
    [(0, len(BIG)), (0, 1), (len(BIG) - 1, 1), (5, 0), (100, 2**20), (2**20 - 1, 2**20 + 2), (0, 0)],
)
def test_streams_exactly_the_range_in_bounded_pieces(source: BundleSource, start: int, length: int) -> None:
    pieces = list(source.stream(BIG_PATH, start, length))
    assert b"".join(pieces) == BIG[start : start + length]
    assert all(0 < len(piece) <= 2**20 for piece in pieces)


def test_streams_ranges_one_after_another_backwards_too_and_half_read(source: BundleSource) -> None:
    for start in (0, 70_000, 2_000_000, 10, 2_500_000):
        assert b"".join(source.stream(BIG_PATH, start, 1000)) == BIG[start : start + 1000]
        half = source.stream(BIG_PATH, start, 500_000)
        assert BIG[start : start + 2**20].startswith(next(iter(half)))
    assert source.read("metadata/timestamp.json", 10) == b"{}"


def test_an_empty_file_streams_nothing(source: BundleSource) -> None:
    assert list(source.stream(EMPTY_PATH, 0, 0)) == []


def test_a_missing_file_cannot_be_streamed(source: BundleSource) -> None:
    with pytest.raises(SourceUnavailable):
        list(source.stream(f"objects/{'1' * 64}", 0, 10))


@pytest.mark.parametrize(("start", "length"), [(0, len(BIG) + 1), (len(BIG), 1), (len(BIG) + 5, 10)])
def test_a_file_that_ends_early_is_the_sources_fault(source: BundleSource, start: int, length: int) -> None:
    with pytest.raises(SourceUnavailable):
        list(source.stream(BIG_PATH, start, length))


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "metadata/../../x", "", "a\\b", "objects/./x", "x\0y"])
def test_refuses_paths_that_could_lead_out(source: BundleSource, path: str) -> None:
    for attempt in (lambda: source.read(path, 10), lambda: list(source.stream(path, 0, 10))):
        with pytest.raises(BundleRefused) as caught:
            attempt()
        assert caught.value.reason is Reason.UNSAFE_PATH


def test_nothing_can_be_read_after_close(source: BundleSource) -> None:
    source.close()
    source.close()
    attempts: list[Callable[[], object]] = [
        lambda: source.read("metadata/timestamp.json", 10),
        lambda: list(source.stream(BIG_PATH, 0, 10)),
    ]
    for attempt in attempts:
        with pytest.raises(SourceUnavailable):
            attempt()


def test_open_source_knows_all_kinds(tree: Path, tmp_path: Path) -> None:
    tar = tmp_path / "x.edgebundle"
    with tarfile.open(tar, "w") as file:
        file.add(tree / "metadata/1.root.json", arcname="metadata/1.root.json")
    assert isinstance(open_source(str(tree)), DirectorySource)
    assert isinstance(open_source(str(tar)), TarSource)
    assert isinstance(open_source("https://user:secret@example.org/r"), HttpSource)
    assert "secret" not in open_source("https://user:secret@example.org/r").description
    for nothing in (
        str(tmp_path / "no"),
        "ftp://example.org/r",
        "http:///x",
        "https://example.org/?q=1",
        "http://[::1",
    ):
        with pytest.raises(SourceUnavailable):
            open_source(nothing)
