"""Adapter bundles on this device: which of them are loaded beside their base, and whether one fits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from agent.install.ports import SealedBundle
from agent.install.verify.bundle_verifier import verify_bundle
from agent.state.installation import InstalledBundle
from agent.state.layout import StateDirectory
from contract.bundle.adapter_file import check_adapter, read_adapter_file
from contract.bundle.adapter_slots import find_slots
from contract.bundle.genai_config import CONFIG_FILE, read_genai_config
from contract.bundle.manifest import Manifest
from contract.errors import BundleRefused, StoreBroken
from contract.identifiers import Digest, check_digest
from contract.onnx.wire import read_graph_file
from contract.reasons import Reason

log = logging.getLogger("edge_agent.install")


def check_has_base(manifest: Manifest, active: Digest | None) -> None:
    """Refuse an adapter bundle whose base is not what this device runs; any other bundle passes.

    Raises:
        BundleRefused: BASE_MISSING.
    """
    base = manifest.base
    if base is not None and base.manifest_sha256 != active:
        raise BundleRefused(
            Reason.BASE_MISSING,
            f"{manifest.reference} is an adapter for {base.name}@{base.version} ({base.manifest_sha256[:12]}), which "
            "is not the active bundle here; install that first",
            field="base",
        )


def check_fits(manifest: Manifest, locate: Callable[[str], Path], directory: StateDirectory) -> None:
    """Refuse an adapter file that is not made of pairs for the places of its base's graph.

    Raises:
        BundleRefused: ADAPTER_INVALID, or what is wrong with the base on this disk.
        StoreBroken: a file cannot be read.
    """
    if manifest.base is None or manifest.adapter_path is None:
        return
    base = directory.bundle(check_digest(manifest.base.manifest_sha256))
    try:
        config = read_genai_config((base / CONFIG_FILE).read_bytes())
    except FileNotFoundError as error:
        raise BundleRefused(
            Reason.BASE_MISSING, f"the base of {manifest.reference} is not here", field="base"
        ) from error
    except OSError as error:
        raise StoreBroken(f"{base / CONFIG_FILE} cannot be read: {error.strerror}") from error
    slots = find_slots(read_graph_file(base / config.filename))
    check_adapter(read_adapter_file(locate(manifest.adapter_path)), slots)


def with_adapters(base: SealedBundle, bundles: list[InstalledBundle], directory: StateDirectory) -> SealedBundle:
    """``base`` with the adapters in force for it, each verified completely; a damaged one is left out.

    Raises:
        StoreBroken: the disk does not let us look.
    """
    found = []
    for bundle in bundles:
        try:
            found.append(verify_bundle(directory.bundle(bundle.digest), bundle.digest))
        except BundleRefused as refused:
            log.warning("the adapter %s is left out: %s", bundle.reference, refused.message)
    return msgspec.structs.replace(base, adapters=tuple(found))


def with_candidate(base: SealedBundle, candidate: SealedBundle) -> SealedBundle:
    """``base`` as it would be served with ``candidate``, which takes the place of the adapter of its name."""
    others = [each for each in base.adapters if each.manifest.name != candidate.manifest.name]
    return msgspec.structs.replace(base, adapters=(*others, candidate))
