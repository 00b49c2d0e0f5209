"""Where things lie in a repository (DESIGN: a static directory that any web server can serve).

``metadata/`` holds TUF metadata with consistent snapshots, ``manifests/{name}/{sha256}.{version}.json`` the manifests
(TUF targets ``manifests/{name}/{version}.json``), ``objects/<sha256>`` whole files, deduplicated.
"""

from __future__ import annotations

from contract.names import Digest, check_bundle_name, check_digest, check_version

METADATA_DIR = "metadata"
MANIFESTS_DIR = "manifests"
OBJECTS_DIR = "objects"
ROLES = ("root", "timestamp", "snapshot", "targets")


def target_name(name: str, version: str) -> str:
    """TUF target path of a manifest."""
    return f"{MANIFESTS_DIR}/{check_bundle_name(name)}/{check_version(version)}.json"


def manifest_path(name: str, version: str, digest: Digest) -> str:
    """Path of the stored manifest below the repository root (TUF consistent-snapshot naming)."""
    return f"{MANIFESTS_DIR}/{check_bundle_name(name)}/{check_digest(digest)}.{check_version(version)}.json"


def object_path(digest: str) -> str:
    """Path of a whole file below the repository root."""
    return f"{OBJECTS_DIR}/{check_digest(digest)}"
