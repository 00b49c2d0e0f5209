"""One change to some bytes, and what a device makes of it."""

from __future__ import annotations

import hashlib
import random
import re
import tempfile
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from msgspec import Struct

from contract.bundle.layout import object_path
from contract.errors import BundleRefused, SourceUnavailable
from contract.reasons import Reason
from contract.source import BundleSource
from contract.source.tar import TarSource
from contract.trust.resolve import resolve
from contract.trust.rollback_floor import MemoryRollbackFloor
from contract.trust.store import TrustStore
from packager.publish import Repository
from tests.contract.trust.publisher import MemorySource
from tests.contract.trust.samples import NOW, make_bundle

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|-?[0-9.]+|true|false|null')


class Kind(StrEnum):
    """How bytes are changed."""

    FLIP_BIT = "flip a bit"
    SET_BYTE = "set a byte"
    DELETE_TOKEN = "delete a token"
    DUPLICATE_TOKEN = "duplicate a token"
    SWAP_TOKENS = "swap two tokens"
    TRUNCATE = "truncate"


class Sample(Struct, frozen=True):
    """A published repository as files and as a tar, the root a device has, and what it must install."""

    files: dict[str, bytes]
    tar: bytes
    root: bytes
    expected: dict[str, bytes]


def make_sample(path: Path) -> Sample:
    """Publish one small bundle."""
    repository = Repository.init(path / "repository", path / "keys", clock=lambda: NOW)
    bundle = make_bundle(path / "bundle", weights=3000)
    repository.publish(bundle)
    repository.rotate("timestamp")
    manifest = repository.export("demo", "1.0.0", path / "demo.edgebundle")
    roots = [path / "repository"]
    files = {
        file.relative_to(roots[0]).as_posix(): file.read_bytes()
        for file in sorted(roots[0].rglob("*.json")) + sorted(roots[0].glob("objects/*"))
    }
    expected = {entry.path: (bundle / entry.path).read_bytes() for entry in manifest.files}
    expected["manifest.json"] = (bundle / "manifest.json").read_bytes()
    return Sample(files, (path / "demo.edgebundle").read_bytes(), files["metadata/1.root.json"], expected)


def mutate(data: bytes, kind: Kind, choose: Callable[[int], int]) -> bytes:
    """``data`` with one change, or as it is when there is nothing to change; ``choose(n)`` picks one of n."""
    if not data:
        return data
    if kind in (Kind.FLIP_BIT, Kind.SET_BYTE, Kind.TRUNCATE):
        at = choose(len(data))
        if kind is Kind.TRUNCATE:
            return data[:at]
        byte = data[at] ^ (1 << choose(8)) if kind is Kind.FLIP_BIT else choose(256)
        return data[:at] + bytes([byte]) + data[at + 1 :]
    tokens = list(_TOKEN.finditer(data))
    if not tokens:
        return data
    token = tokens[choose(len(tokens))]
    if kind is Kind.DELETE_TOKEN:
        return data[: token.start()] + data[token.end() :]
    if kind is Kind.DUPLICATE_TOKEN:
        return data[: token.end()] + token.group() + data[token.end() :]
    first, second = sorted((token, tokens[choose(len(tokens))]), key=lambda match: match.start())
    if first.start() == second.start():
        return data
    between = data[first.end() : second.start()]
    return data[: first.start()] + second.group() + between + first.group() + data[second.end() :]


def install(source: BundleSource, root: bytes) -> dict[str, bytes]:
    """What a device provisioned with ``root`` would install from ``source``: every chunk and file checked.

    Raises:
        BundleRefused, SourceUnavailable.
    """
    with tempfile.TemporaryDirectory() as directory:
        store, floor = TrustStore(Path(directory)), MemoryRollbackFloor()
        store.provision(root, floor)
        trusted = resolve(
            store=store, source=source, name="demo", version="1.0.0", floor=floor, clock=lambda: NOW,
            offline_grace=True,
        )  # fmt: skip
    installed = {"manifest.json": trusted.stored}
    for entry in trusted.manifest.files:
        whole = b""
        for chunk in entry.chunks:
            piece = b"".join(source.stream(object_path(entry.sha256), len(whole), chunk.size))
            if hashlib.sha256(piece).hexdigest() != chunk.sha256:
                raise BundleRefused(Reason.DIGEST_MISMATCH, f"a chunk of {entry.path} is damaged")
            whole += piece
        if hashlib.sha256(whole).hexdigest() != entry.sha256:
            raise BundleRefused(Reason.DIGEST_MISMATCH, f"{entry.path} is damaged")
        installed[entry.path] = whole
    return installed


class Verdict(StrEnum):
    """What a device did."""

    REFUSED = "refused"
    UNAVAILABLE = "source unusable"
    UNCHANGED = "installed unchanged"


def judge(open_changed: Callable[[], BundleSource], sample: Sample) -> tuple[Verdict, Reason | None]:
    """Try to install; anything but a clean refusal or the original bytes is an AssertionError."""
    try:
        source = open_changed()
        try:
            installed = install(source, sample.root)
        finally:
            source.close()
    except BundleRefused as error:
        assert error.reason is not None
        return Verdict.REFUSED, error.reason
    except SourceUnavailable as error:
        return Verdict.UNAVAILABLE, error.reason
    assert installed == sample.expected, "a changed bundle was installed"
    return Verdict.UNCHANGED, None


def try_repository(sample: Sample, path: str, changed: bytes) -> tuple[Verdict, Reason | None]:
    """Judge the repository with one file changed."""
    return judge(lambda: MemorySource({**sample.files, path: changed}), sample)


def try_tar(sample: Sample, changed: bytes, scratch: Path) -> tuple[Verdict, Reason | None]:
    """Judge a changed tar."""
    file = scratch / "changed.edgebundle"
    file.write_bytes(changed)
    return judge(lambda: TarSource(file), sample)


def random_change(sample: Sample, source: random.Random, scratch: Path) -> tuple[str, Verdict, Reason | None]:
    """One random change of one random file or of the tar; where it was, and the outcome."""
    kind = source.choice(list(Kind))
    if source.random() < 0.4:
        return f"tar, {kind}", *try_tar(sample, mutate(sample.tar, kind, source.randrange), scratch)
    path = source.choice(sorted(sample.files))
    changed = mutate(sample.files[path], kind, source.randrange)
    return f"{path.split('/')[0]}, {kind}", *try_repository(sample, path, changed)
