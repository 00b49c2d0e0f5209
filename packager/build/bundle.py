"""Writing a bundle directory: files with their roles and chunks, the manifest, and nothing half-written.

Everything is made in a hidden directory beside the target and renamed into place at the end; interrupted at any point,
the target does not exist.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from msgspec import Struct

from contract.bundle.chunks import digest_chunks
from contract.bundle.genai_config import CONFIG_FILE
from contract.bundle.manifest import (
    MANIFEST_FILE,
    FileEntry,
    Manifest,
    Role,
    encode_manifest,
    manifest_digest,
    parse_manifest,
)
from contract.errors import UsageError
from contract.identifiers import Digest, check_path
from contract.onnx.rules import external_path
from contract.onnx.wire import read_graph_file
from contract.system.durable import Disk
from contract.system.file_lock import take_lock, wait_for_lock
from packager.evaluate.evidence import EVIDENCE_DIR

PARTIAL = ".partial"

_TOKENIZER = ("tokenizer", "vocab", "merges", "special_tokens_map", "added_tokens", "chat_template", "spiece")
_CONFIG_SUFFIXES = (".json", ".jinja", ".txt", ".md")


class BuiltBundle(Struct, frozen=True):
    """A finished bundle directory. ``digest`` is its identity."""

    directory: Path
    manifest: Manifest
    digest: Digest


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A hidden directory beside ``target``, gone when the block ends however it ends, with the directories above that
    were made for it and are empty; where the process is killed, the next that makes ``target`` removes it.

    Raises:
        UsageError: ``target`` is already there or being made, or lies nowhere.
    """
    if target.exists() or target.is_symlink():
        raise UsageError(f"{target} is already there; name another directory with --out or remove it", field="out")
    above = [path for path in target.parents if not path.exists()]
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            directory, lock = _begin(target)
        except OSError as error:
            raise UsageError(f"{target.parent} cannot be written: {error.strerror}", field="out") from error
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)
            os.close(lock)
    finally:
        for path in above:
            with contextlib.suppress(OSError):  # the bundle is there, or somebody else's, or it was not made
                path.rmdir()


def _begin(target: Path) -> tuple[Path, int]:
    """The directory to make ``target`` in, and the lock on it; others that nobody holds any more are removed.

    Raises:
        UsageError: somebody holds one.
        OSError: there is no writing here.
    """
    beside = target.parent
    abandoned = re.compile(rf"\.{re.escape(target.name)}\.[a-z0-9_]{{8}}{PARTIAL}(\.kv-[a-z0-9_]{{8}})?")
    gate = _open_directory(beside)
    try:
        wait_for_lock(gate)  # or one that was just made would be taken for one that nobody holds
        found = [path for path in beside.iterdir() if abandoned.fullmatch(path.name) and not path.is_symlink()]
        for path in found:
            if path.suffix == PARTIAL and _is_held(path):
                raise UsageError(
                    f"another process is making {target}; wait for it, or name another directory with --out",
                    field="out",
                )
        for path in found:
            shutil.rmtree(path, ignore_errors=True)
        directory = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=PARTIAL, dir=beside))
        lock = _open_directory(directory)
        take_lock(lock)
        return directory, lock
    finally:
        os.close(gate)


def _open_directory(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _is_held(path: Path) -> bool:
    handle = _open_directory(path)
    try:
        return not take_lock(handle)
    finally:
        os.close(handle)


def role_of(path: str) -> Role:
    """What a file of a model folder is for."""
    pure = PurePosixPath(path)
    if pure.parts[0] == EVIDENCE_DIR or pure.name.upper().startswith(("LICENSE", "NOTICE", "README")):
        return "evidence"
    if pure.suffix == ".onnx_adapter":
        return "adapter"
    if pure.name.startswith(_TOKENIZER):
        return "tokenizer"
    return "config" if pure.suffix in _CONFIG_SUFFIXES else "model"


def list_files(model_dir: Path) -> list[FileEntry]:
    """Every file below ``model_dir`` except the manifest, with digests and chunks; configuration first, weights last.

    Raises:
        BundleRefused: a path that no bundle may hold.
    """
    paths = sorted(
        path.relative_to(model_dir).as_posix()
        for path in model_dir.rglob("*")
        if path.is_file() and path != model_dir / MANIFEST_FILE
    )
    boundaries = _tensor_boundaries(model_dir, paths)
    entries: list[FileEntry] = []
    for path in paths:
        check_path(path)
        sha256, chunks = digest_chunks(model_dir / path, boundaries.get(path, ()))
        size = sum(chunk.size for chunk in chunks)
        entries.append(FileEntry(path=path, size=size, sha256=sha256, role=role_of(path), chunks=chunks))
    order = {"config": 0, "tokenizer": 1, "evidence": 2, "adapter": 3, "model": 4}
    return sorted(entries, key=lambda entry: (entry.path != CONFIG_FILE, order[entry.role], entry.path))


def _tensor_boundaries(model_dir: Path, paths: list[str]) -> dict[str, set[int]]:
    """Where tensors start and end, by file: in the graph itself and in its external data."""
    found: dict[str, set[int]] = {}
    for path in paths:
        if not path.endswith(".onnx"):
            continue
        for tensor in read_graph_file(model_dir / path).walk_tensors():
            if tensor.external is not None:
                where = external_path(path, tensor.external.location)
                start, size = tensor.external.offset, tensor.needed_bytes or 0
                found.setdefault(where, set()).update((start, start + size))
            elif tensor.inline is not None and tensor.inline[1] - tensor.inline[0] >= MIN_INLINE_BYTES:
                found.setdefault(path, set()).update(tensor.inline)
    return found


MIN_INLINE_BYTES = 65536
"""Tensors inside a graph file are mostly constants of a few bytes; a chunk for each only lengthens the manifest."""


def finish_bundle(staged: Path, target: Path, manifest: Manifest, disk: Disk | None = None) -> BuiltBundle:
    """Write the manifest into ``staged`` and rename it to ``target``; the bytes are on the disk when this returns.

    Raises:
        BundleRefused: the manifest is not one that a device would read.
        StoreFull, StoreBroken: the disk.
    """
    disk = disk or Disk()
    stored = encode_manifest(manifest)
    parse_manifest(stored)
    for entry in manifest.files:
        (staged / entry.path).chmod(0o644)
        disk.sync_file(staged / entry.path)
    disk.write_file(staged / MANIFEST_FILE, stored)
    for directory, _, _ in os.walk(staged):
        Path(directory).chmod(0o755)
    disk.rename(staged, target)
    return BuiltBundle(directory=target, manifest=manifest, digest=manifest_digest(stored))
