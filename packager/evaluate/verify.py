"""Holding a bundle directory against its manifest: every file, every byte, then the model itself."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from msgspec import Struct

from contract.bundle.adapter_file import check_adapter, read_adapter_file
from contract.bundle.adapter_slots import find_slots
from contract.bundle.genai_config import CONFIG_FILE, read_genai_config
from contract.bundle.manifest import (
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    FileEntry,
    Manifest,
    manifest_digest,
    parse_manifest,
)
from contract.errors import BundleRefused, UsageError
from contract.identifiers import Digest, path_below
from contract.onnx.wire import read_graph_file
from contract.reasons import Reason
from packager.build.progress import BuildProgress
from packager.evaluate.check import CheckResult, check_model
from packager.graph.facts import GraphFacts, read_back
from packager.graph.not_executed import NOT_RUN, not_executed_result

STAGES = 3


class Verified(Struct, frozen=True):
    """What ``check`` found to be whole; ``checked`` holds what this host measured just now."""

    directory: Path
    digest: Digest
    manifest: Manifest
    graph: GraphFacts
    checked: CheckResult


def verify_bundle(directory: Path, log: Path, progress: BuildProgress, base: Path | None = None) -> Verified:
    """Check files, configuration and graph of ``directory``, load it, generate, and score its canaries.

    An adapter bundle is checked with the bundle that it belongs to, in ``base``.

    Raises:
        UsageError: there is no bundle at ``directory``.
        BundleRefused: with the reason of the first fault.
        BuildRefused: it does not load or generate here.
    """
    progress.stage(1, STAGES, "comparing every byte with the manifest")
    manifest, digest = read_manifest(directory)
    check_files(directory, manifest, progress)
    progress.stage(2, STAGES, "reading the graph")
    model_dir, adapter = _find_model(directory, manifest, base, progress)
    _, graph = read_back(model_dir)
    if manifest.model.ep != "cpu":
        progress.stage(3, STAGES, f"{NOT_RUN}: {manifest.model.ep}")
        return Verified(
            directory=directory, digest=digest, manifest=manifest, graph=graph, checked=not_executed_result(graph)
        )
    progress.stage(3, STAGES, "loading and scoring the canaries")
    known = [(canary.prompt, canary.expected_text, canary.stops) for canary in manifest.canary]
    questions = () if known else ("Hello",)
    checked = check_model(
        model_dir, log, questions=questions, known=known, adapter=adapter, on_progress=progress.advance
    )
    for canary, result in zip(manifest.canary, checked.canaries, strict=False):
        if abs(result.mean_nll - canary.mean_nll) > canary.tolerance:
            raise BundleRefused(
                Reason.CANARY_DRIFT,
                f"the canary {canary.expected_text[:40]!r} scores {result.mean_nll:.3f} nats here and "
                f"{canary.mean_nll:.3f} where it was built, more than {canary.tolerance} apart",
            )
        if canary.stops and not result.stops:
            raise BundleRefused(
                Reason.CANARY_NO_STOP,
                f"the answer {canary.expected_text[:40]!r} does not end here, and was ended by an end token where it "
                "was built",
            )
    return Verified(directory=directory, digest=digest, manifest=manifest, graph=graph, checked=checked)


def _find_model(
    directory: Path, manifest: Manifest, base: Path | None, progress: BuildProgress
) -> tuple[Path, Path | None]:
    """The folder to load, and the adapter to load with it."""
    if manifest.base is None or manifest.adapter_path is None:
        if base is not None:
            raise UsageError(f"{manifest.reference} stands alone: leave --base out", field="base")
        return directory, None
    wanted = f"{manifest.base.name}@{manifest.base.version}"
    if base is None:
        raise UsageError(f"{manifest.reference} is an adapter for {wanted}: name that bundle with --base", field="base")
    theirs, digest = read_manifest(base)
    if digest != manifest.base.manifest_sha256:
        raise UsageError(
            f"{base} is {theirs.reference} ({digest[:12]}), and {manifest.reference} belongs to {wanted} "
            f"({manifest.base.manifest_sha256[:12]})",
            field="base",
        )
    check_files(base, theirs, progress)
    config = read_genai_config((base / CONFIG_FILE).read_bytes())
    adapter = path_below(directory, manifest.adapter_path)
    check_adapter(read_adapter_file(adapter), find_slots(read_graph_file(base / config.filename)))
    return base, adapter


def read_manifest(directory: Path) -> tuple[Manifest, Digest]:
    """The manifest of a bundle directory and the bundle's identity.

    Raises:
        UsageError: ``directory`` holds no manifest.
        BundleRefused: the manifest is not valid.
    """
    path = directory / MANIFEST_FILE
    if not path.is_file():
        raise UsageError(f"{directory} is not a bundle: it has no {MANIFEST_FILE}", field="bundle")
    with path.open("rb") as file:
        stored = file.read(MAX_MANIFEST_BYTES + 1)
    return parse_manifest(stored), manifest_digest(stored)


def check_files(directory: Path, manifest: Manifest, progress: BuildProgress) -> None:
    """Check that ``directory`` holds exactly the files of ``manifest``, byte for byte.

    Raises:
        BundleRefused: FILE_MISSING, FILE_EXTRA, SIZE_MISMATCH, DIGEST_MISMATCH or UNSAFE_PATH.
    """
    listed = {entry.path: entry for entry in manifest.files}
    present = list_present(directory)
    missing, extra = sorted(listed.keys() - present), sorted(present - listed.keys() - {MANIFEST_FILE})
    if missing:
        hint = f"; {extra[0]!r} is there instead" if extra else ""
        raise BundleRefused(Reason.FILE_MISSING, f"the bundle lacks {missing[0]!r}{hint}", field=missing[0])
    if extra:
        raise BundleRefused(
            Reason.FILE_EXTRA, f"the bundle holds {extra[0]!r}, which its manifest does not list", field=extra[0]
        )
    done = 0
    for entry in manifest.files:
        _check_file(path_below(directory, entry.path), entry)
        done += entry.size
        progress.advance(done, manifest.total_bytes)
    if CONFIG_FILE not in listed and manifest.base is None:
        raise BundleRefused(Reason.MODEL_INCOMPLETE, f"the bundle has no {CONFIG_FILE}")


def list_present(directory: Path) -> set[str]:
    """Paths of all files below ``directory``.

    Raises:
        BundleRefused: UNSAFE_PATH for a link, socket or anything else that is no plain file.
    """
    found: set[str] = set()
    for where, directories, files in os.walk(directory):
        for name in [*directories, *files]:
            path = Path(where) / name
            relative = path.relative_to(directory).as_posix()
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise BundleRefused(Reason.UNSAFE_PATH, f"{relative!r} is not a plain file", field=relative)
        found.update((Path(where) / name).relative_to(directory).as_posix() for name in files)
    return found


def _check_file(path: Path, entry: FileEntry) -> None:
    size = path.stat().st_size
    if size != entry.size:
        raise BundleRefused(
            Reason.SIZE_MISMATCH, f"{entry.path!r} has {size} bytes instead of {entry.size}", field=entry.path
        )
    whole = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in entry.chunks:
            piece = file.read(chunk.size)
            whole.update(piece)
            if hashlib.sha256(piece).hexdigest() != chunk.sha256:
                raise BundleRefused(
                    Reason.DIGEST_MISMATCH,
                    f"{entry.path!r} was changed within {chunk.size} bytes before byte {file.tell()}",
                    field=entry.path,
                )
    if whole.hexdigest() != entry.sha256:
        raise BundleRefused(Reason.DIGEST_MISMATCH, f"{entry.path!r} is not the file that was built", field=entry.path)
