"""What changes for a device when one bundle replaces another: files, bytes on the way, model, quality, template."""

from __future__ import annotations

import difflib
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from contract.bundle.layout import manifest_path, object_path
from contract.bundle.manifest import MANIFEST_FILE, FileEntry, Manifest, parse_manifest
from contract.errors import UsageError
from contract.identifiers import Digest, parse_reference
from contract.system.durable import translate
from packager.evaluate.verify import read_bundle_manifest
from packager.publish.metadata import PublishedMetadata
from packager.sources.checkpoint import read_chat_template

TEMPLATE_FILES = ("chat_template.jinja", "tokenizer_config.json")
"""Where a chat template may stand (:func:`packager.sources.checkpoint.read_chat_template`)."""


class StoredBundle(Struct, frozen=True):
    """A bundle as it lies somewhere: its manifest, its identity, and the path of each file's bytes."""

    manifest: Manifest
    digest: Digest
    files: dict[str, Path]


class FileChange(Struct, frozen=True):
    """``fetched_bytes`` are those that a device with the older bundle has not got."""

    path: str
    change: str
    size_before: int
    size_after: int
    fetched_bytes: int


class FieldChange(Struct, frozen=True):
    """One value of the manifest; None where it is absent."""

    field: str
    before: Any
    after: Any


class BundleDifference(Struct, frozen=True):
    """From ``before`` to ``after`` (NAME@VERSION). ``fields`` are of model, requires, budget, quality and the rest."""

    before: str
    after: str
    identical: bool
    files: list[FileChange]
    total_bytes: int
    fetched_bytes: int
    fields: list[FieldChange]
    template: list[str]


def find_bundle(text: str, repository: Path) -> StoredBundle:
    """The bundle directory ``text``, or else NAME@VERSION of ``repository``.

    Raises:
        UsageError: there is neither.
        BuildRefused: ``repository`` is not one.
        BundleRefused: the manifest is not valid.
    """
    directory = Path(text)
    if (directory / MANIFEST_FILE).is_file():
        found = read_bundle_manifest(directory)
        files = {entry.path: directory / entry.path for entry in found.manifest.files}
        return StoredBundle(found.manifest, found.digest, files)
    if directory.exists() or "@" not in text:
        raise UsageError(
            f"{text!r} is not a bundle: name a directory that holds {MANIFEST_FILE}, or NAME@VERSION of --repo",
            field="bundle",
        )
    return _published_bundle(text, repository)


def _published_bundle(reference: str, repository: Path) -> StoredBundle:
    name, version = parse_reference(reference)
    listed = PublishedMetadata(repository).listing.bundles
    if reference not in listed:
        near = difflib.get_close_matches(reference, listed, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"{reference} is not published in {repository}{hint}", field="bundle")
    stored = repository / manifest_path(name, version, listed[reference].digest)
    try:
        manifest = parse_manifest(stored.read_bytes())
    except OSError as error:
        raise translate(error, f"reading {stored}") from error
    files = {entry.path: repository / object_path(entry.sha256) for entry in manifest.files}
    return StoredBundle(manifest, listed[reference].digest, files)


def compare_bundles(before: StoredBundle, after: StoredBundle) -> BundleDifference:
    """What a device that runs ``before`` would fetch, and what would be different.

    A device copies every chunk that it has, under whatever name, and fetches a content that is listed twice once.
    """
    known = {chunk.sha256 for entry in before.manifest.files for chunk in entry.chunks}
    older = {entry.path: entry for entry in before.manifest.files}
    newer = {entry.path: entry for entry in after.manifest.files}
    contents = {entry.sha256 for entry in before.manifest.files}
    changes = []
    for path in sorted(older.keys() | newer.keys()):
        old, new = older.get(path), newer.get(path)
        if old is not None and new is not None and old.sha256 == new.sha256:
            continue
        fetched = 0 if new is None or new.sha256 in contents else _missing_bytes(new, known)
        if new is not None:
            contents.add(new.sha256)
        changes.append(
            FileChange(
                path=path,
                change="added" if old is None else "removed" if new is None else "changed",
                size_before=0 if old is None else old.size,
                size_after=0 if new is None else new.size,
                fetched_bytes=fetched,
            )
        )
    return BundleDifference(
        before=before.manifest.reference,
        after=after.manifest.reference,
        identical=before.digest == after.digest,
        files=changes,
        total_bytes=after.manifest.total_bytes,
        fetched_bytes=sum(change.fetched_bytes for change in changes),
        fields=_changed_fields(before.manifest, after.manifest),
        template=_template_difference(before, after),
    )


def _missing_bytes(entry: FileEntry, known: set[str]) -> int:
    return sum(chunk.size for chunk in entry.chunks if chunk.sha256 not in known)


def _changed_fields(before: Manifest, after: Manifest) -> list[FieldChange]:
    left, right = _flatten(before), _flatten(after)
    return [
        FieldChange(field=field, before=left.get(field), after=right.get(field))
        for field in {**left, **right}
        if left.get(field) != right.get(field)
    ]


def _flatten(manifest: Manifest) -> dict[str, Any]:
    """Every single value of the manifest by its dotted path, without the files and what always differs."""
    document = msgspec.to_builtins(manifest)
    for name in ("files", "created", "name", "version", "schema"):
        del document[name]
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, each in value.items():
                walk(f"{prefix}.{key}" if prefix else key, each)
        elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
            for number, each in enumerate(value):
                walk(f"{prefix}[{number}]", each)
        else:
            flat[prefix] = value

    walk("", document)
    return flat


def _template_difference(before: StoredBundle, after: StoredBundle) -> list[str]:
    """Unified difference of the chat templates, without line ends; empty where they are the same."""
    texts = [_read_template(bundle).decode("utf-8", "replace").splitlines() for bundle in (before, after)]
    names = (before.manifest.reference, after.manifest.reference)
    return list(difflib.unified_diff(texts[0], texts[1], *names, lineterm=""))


def _read_template(bundle: StoredBundle) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        for name in TEMPLATE_FILES:
            if name in bundle.files:
                (Path(scratch) / name).write_bytes(bundle.files[name].read_bytes())
        return read_chat_template(Path(scratch)) or b""
