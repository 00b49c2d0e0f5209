"""Names from outside: identifiers, versions and paths, checked once, here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NewType

from contract.errors import BundleRefused
from contract.reasons import Reason

Digest = NewType("Digest", str)
"""A SHA-256 as 64 lower-case hexadecimal digits."""

MAX_PATH_BYTES = 255
"""Longest path of a file in a bundle: what every file system in use takes as one name."""

MAX_PATH_DEPTH = 8
"""Directories a bundle's file may lie below its root; real bundles need 2."""

_IDENTIFIER = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_DIGEST = re.compile(r"[0-9a-f]{64}")
# semver.org, numbers bounded to nine digits so that comparing them is cheap everywhere.
_NUMBER = r"(?:0|[1-9][0-9]{0,8})"
_LABEL = r"(?:0|[1-9][0-9]{0,8}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_SEMVER = re.compile(
    rf"({_NUMBER})\.({_NUMBER})\.({_NUMBER})(?:-({_LABEL}(?:\.{_LABEL})*))?(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?"
)
# Names that Windows resolves to devices in every directory: a repository may be served or unpacked there.
_WINDOWS_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(?:\..*)?", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"|?*\\\u200e\u200f\u202a-\u202e\u2066-\u2069]')


def is_identifier(text: str) -> bool:
    """Whether ``text`` may stand as one MQTT topic level of ours: device, client, group, request id."""
    return _IDENTIFIER.fullmatch(text) is not None


def check_bundle_name(text: str) -> str:
    """Return ``text`` if it can name a bundle.

    Raises:
        BundleRefused: UNSAFE_NAME.
    """
    if _NAME.fullmatch(text) is None or ".." in text or _WINDOWS_RESERVED.fullmatch(text):
        raise BundleRefused(
            Reason.UNSAFE_NAME,
            f"{text!r} cannot name a bundle: use 1 to 64 of a-z, 0-9, '.', '_', '-', "
            "starting and ending with a letter or digit",
            field="name",
        )
    return text


def check_version(text: str) -> str:
    """Return ``text`` if it is a SemVer 2.0 version of at most 64 characters.

    Raises:
        BundleRefused: UNSAFE_NAME.
    """
    if len(text) > 64 or _SEMVER.fullmatch(text) is None:
        raise BundleRefused(
            Reason.UNSAFE_NAME,
            f"{text!r} is not a version: write it as MAJOR.MINOR.PATCH (semver.org)",
            field="version",
        )
    return text


def parse_reference(text: str) -> tuple[str, str]:
    """Split ``NAME@VERSION``.

    Raises:
        BundleRefused: UNSAFE_NAME.
    """
    name, at, version = text.partition("@")
    if not at:
        raise BundleRefused(Reason.UNSAFE_NAME, f"{text!r} is not NAME@VERSION", field="bundle")
    return check_bundle_name(name), check_version(version)


def check_digest(text: str) -> Digest:
    """Return ``text`` as a :data:`Digest`.

    Raises:
        BundleRefused: SCHEMA_INVALID.
    """
    if _DIGEST.fullmatch(text) is None:
        raise BundleRefused(Reason.SCHEMA_INVALID, f"{text[:80]!r} is not a SHA-256 in lower-case hexadecimal")
    return Digest(text)


def check_path(text: str) -> PurePosixPath:
    """Return ``text`` as a path inside a bundle: relative, normalised POSIX, portable.

    Raises:
        BundleRefused: UNSAFE_PATH.
    """

    def refuse(why: str) -> BundleRefused:
        return BundleRefused(Reason.UNSAFE_PATH, f"the path {text[:120]!r} {why}", field="path")

    if not text or len(text.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES:
        raise refuse(f"must have 1 to {MAX_PATH_BYTES} bytes")
    if _FORBIDDEN.search(text) or any("\ud800" <= c <= "\udfff" for c in text):
        raise refuse("contains a character that is not allowed")
    if text.startswith("/"):
        raise refuse("is absolute")
    parts = text.split("/")
    if len(parts) > MAX_PATH_DEPTH:
        raise refuse(f"is deeper than {MAX_PATH_DEPTH} directories")
    for part in parts:
        if part in ("", ".", ".."):
            raise refuse("is not normalised")
        if part != part.strip() or part.endswith("."):
            raise refuse("has a name that begins or ends with white space or ends with a dot")
        if _WINDOWS_RESERVED.fullmatch(part):
            raise refuse("has a name that is reserved on Windows")
    return PurePosixPath(text)


def check_paths_distinct(paths: Iterable[str]) -> None:
    """Refuse twins (case-folded too) and a path that is another's directory.

    Raises:
        BundleRefused: UNSAFE_PATH.
    """
    seen: dict[str, str] = {}
    directories: dict[str, str] = {}
    for path in paths:
        folded = path.casefold()
        if folded in seen or folded in directories:
            other = seen.get(folded) or directories[folded]
            raise BundleRefused(Reason.UNSAFE_PATH, f"the paths {other!r} and {path!r} collide", field="path")
        seen[folded] = path
        for parent in PurePosixPath(folded).parents:
            if str(parent) == ".":
                continue
            if str(parent) in seen:
                raise BundleRefused(
                    Reason.UNSAFE_PATH, f"the paths {seen[str(parent)]!r} and {path!r} collide", field="path"
                )
            directories[str(parent)] = path


def path_below(root: Path, relative: str) -> Path:
    """The absolute path of ``relative`` below ``root``, proved to lie inside it after resolving links.

    Raises:
        BundleRefused: UNSAFE_PATH.
    """
    base = root.resolve()
    target = (base / check_path(relative)).resolve()
    if not target.is_relative_to(base):
        raise BundleRefused(Reason.UNSAFE_PATH, f"the path {relative!r} leads out of its directory", field="path")
    return target
