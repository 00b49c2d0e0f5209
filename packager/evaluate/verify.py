"""Holding a bundle directory against its manifest: every file, every byte, then the model itself."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from contract.bundle.adapter_file import check_adapter, read_adapter_file
from contract.bundle.adapter_slots import find_slots
from contract.bundle.genai_config import CONFIG_FILE, read_genai_config
from contract.bundle.manifest import MANIFEST_FILE, Manifest
from contract.bundle.verifier import StoredManifest, VerifiedDirectory, read_manifest, verify_directory
from contract.errors import BundleRefused, UsageError
from contract.identifiers import path_below
from contract.onnx.wire import read_graph_file
from contract.reasons import Reason
from packager.build.progress import BuildProgress
from packager.evaluate.check import check_model
from packager.evaluate.jobs import CheckResult
from packager.graph.facts import GraphFacts, read_back
from packager.graph.not_executed import NOT_RUN, not_executed_result

STAGES = 3


class Verified(Struct, frozen=True):
    """What ``check`` found to be whole; ``checked`` holds what this host measured just now."""

    bundle: VerifiedDirectory
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
    verified = verify_files(directory, read_bundle_manifest(directory), progress)
    manifest = verified.manifest
    progress.stage(2, STAGES, "reading the graph")
    model_dir, adapter = _find_model(directory, manifest, base, progress)
    _, graph = read_back(model_dir)
    if manifest.model.ep != "cpu":
        progress.stage(3, STAGES, f"{NOT_RUN}: {manifest.model.ep}")
        return Verified(verified, graph, not_executed_result(graph))
    progress.stage(3, STAGES, "loading and scoring the canaries")
    known = [(canary.prompt, canary.expected_text, canary.stops) for canary in manifest.canary]
    questions = () if known else ("Hello",)
    checked = check_model(
        model_dir,
        log,
        questions=questions,
        known=known,
        adapter=adapter,
        shown=manifest.picture_canary,
        on_progress=progress.advance,
    )
    shown, seen = manifest.picture_canary, checked.seen
    # Not >: what is no number must not pass.
    if shown is not None and seen is not None and not abs(seen.mean_nll - shown.mean_nll) <= shown.tolerance:
        raise BundleRefused(
            Reason.CANARY_DRIFT,
            f"the canary about a picture scores {seen.mean_nll:.3f} nats here and {shown.mean_nll:.3f} where it was "
            f"built, more than {shown.tolerance} apart",
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
    return Verified(verified, graph, checked)


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
    theirs = read_bundle_manifest(base)
    if theirs.digest != manifest.base.manifest_sha256:
        raise UsageError(
            f"{base} is {theirs.manifest.reference} ({theirs.digest[:12]}), and {manifest.reference} belongs to "
            f"{wanted} ({manifest.base.manifest_sha256[:12]})",
            field="base",
        )
    verify_files(base, theirs, progress)
    config = read_genai_config((base / CONFIG_FILE).read_bytes())
    adapter = path_below(directory, manifest.adapter_path)
    check_adapter(read_adapter_file(adapter), find_slots(read_graph_file(base / config.filename)))
    return base, adapter


def read_bundle_manifest(directory: Path) -> StoredManifest:
    """The manifest of a bundle directory.

    Raises:
        UsageError: ``directory`` holds no manifest.
        BundleRefused: the manifest is not valid.
    """
    if not (directory / MANIFEST_FILE).is_file():
        raise UsageError(f"{directory} is not a bundle: it has no {MANIFEST_FILE}", field="bundle")
    return read_manifest(directory)


def verify_files(directory: Path, found: StoredManifest, progress: BuildProgress) -> VerifiedDirectory:
    """Check that ``directory`` holds exactly the files of the manifest ``found`` in it, byte for byte.

    Raises:
        BundleRefused: FILE_MISSING, FILE_EXTRA, SIZE_MISMATCH, DIGEST_MISMATCH or UNSAFE_PATH.
        StoreBroken: the disk does not let us look.
    """
    manifest, done = found.manifest, 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        progress.advance(done, manifest.total_bytes)

    verified = verify_directory(directory, found.digest, on_bytes)
    if manifest.base is None and not any(entry.path == CONFIG_FILE for entry in manifest.files):
        raise BundleRefused(Reason.MODEL_INCOMPLETE, f"the bundle has no {CONFIG_FILE}")
    return verified
