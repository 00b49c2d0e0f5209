"""Proofs without what they prove, for tests of what comes after: the one place where they are forged."""

from __future__ import annotations

from pathlib import Path

from contract.bundle import verifier
from contract.bundle.manifest import Manifest
from contract.bundle.verifier import VerifiedDirectory
from contract.identifiers import Digest


def pretend_verified(directory: Path, digest: Digest, manifest: Manifest) -> VerifiedDirectory:
    return VerifiedDirectory(verifier._GUARD, directory, digest, manifest)
