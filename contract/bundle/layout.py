"""Where things lie in a repository (DESIGN: a static directory that any web server can serve).

``metadata/`` holds TUF metadata with consistent snapshots, ``manifests/{name}/{sha256}.{version}.json`` the manifests
(TUF targets ``manifests/{name}/{version}.json``), ``objects/<sha256>`` whole files, deduplicated.
"""

from __future__ import annotations

import re

from contract.errors import BundleRefused
from contract.identifiers import Digest, check_bundle_name, check_digest, check_version

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


_METADATA = re.compile(r"metadata/(?:timestamp|[1-9][0-9]{0,9}\.(?:root|snapshot|targets))\.json")
_MANIFEST = re.compile(r"manifests/([^/]+)/([0-9a-f]{64})\.([^/]+)\.json")
_OBJECT = re.compile(r"objects/[0-9a-f]{64}")


def is_repository_path(path: str) -> bool:
    """Whether ``path`` is one that a repository of ours can contain; everything else is extraneous."""
    if _METADATA.fullmatch(path) or _OBJECT.fullmatch(path):
        return True
    match = _MANIFEST.fullmatch(path)
    if match is None:
        return False
    try:
        check_bundle_name(match[1])
        check_version(match[3])
    except BundleRefused:
        return False
    return True
