"""The proof that a manifest is listed by TUF metadata this device trusts."""

from __future__ import annotations

from typing import final

from contract.bundle.manifest import Manifest, manifest_digest
from contract.identifiers import Digest

_GUARD = object()


@final
class TrustedManifest:
    """A manifest that signed, fresh metadata lists; only :mod:`contract.trust.resolve` makes one.

    ``stored`` are the manifest's bytes as published, ``digest`` their SHA-256, ``manifest`` what they say.
    """

    __slots__ = ("_digest", "_manifest", "_stored")

    def __init__(self, guard: object, manifest: Manifest, stored: bytes) -> None:
        if guard is not _GUARD:
            raise TypeError("a TrustedManifest is made by contract.trust.resolve and nowhere else")
        self._manifest = manifest
        self._stored = stored
        self._digest = manifest_digest(stored)

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    @property
    def stored(self) -> bytes:
        return self._stored

    @property
    def digest(self) -> Digest:
        return self._digest

    def __repr__(self) -> str:
        return f"TrustedManifest({self._manifest.reference}, {self._digest[:12]})"
