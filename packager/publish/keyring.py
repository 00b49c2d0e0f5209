"""Private keys in a directory, one PEM file each, encrypted with a passphrase unless told otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from contract.errors import BuildRefused
from contract.system.durable import Disk
from contract.trust.signing import SigningKey, keyid_of

KEYID_CHARACTERS = 16
"""How much of a key id stands in a file name: enough to tell any two of ours apart."""


class KeyRing:
    """The keys that lie in ``directory``; those of other people may lie elsewhere and sign in turn.

    ``passphrase`` is asked once, when the first encrypted key is needed or made; None means that new keys are written
    unencrypted (for demonstrations and tests).
    """

    def __init__(self, directory: Path, passphrase: Callable[[], str] | None, disk: Disk | None = None) -> None:
        self._directory = directory
        self._ask = passphrase
        self._passphrase: str | None = None
        self._disk = disk or Disk()
        self._loaded: dict[str, SigningKey] = {}

    def generate(self, role: str) -> SigningKey:
        """Make a key for ``role`` and store it, with its public half beside it in ``.pub``."""
        key = SigningKey.generate()
        stem = f"{role}-{key.keyid[:KEYID_CHARACTERS]}"
        self._disk.make_directory(self._directory, 0o700)
        self._disk.write_file(self._directory / f"{stem}.pub", f"{key.public}\n".encode())
        self._disk.write_file(self._directory / f"{stem}.key", key.to_pem(self._phrase() if self._ask else None), 0o600)
        self._loaded[key.public] = key
        return key

    def find(self, publics: Iterable[str]) -> list[SigningKey]:
        """Those of ``publics`` whose private key lies here.

        Raises:
            BuildRefused: a key file cannot be read or decrypted.
        """
        return [key for public in publics if (key := self._load(public)) is not None]

    def _load(self, public: str) -> SigningKey | None:
        if public in self._loaded:
            return self._loaded[public]
        for path in sorted(self._directory.glob(f"*-{keyid_of(public)[:KEYID_CHARACTERS]}.key")):
            try:
                pem = path.read_bytes()
            except OSError as error:
                raise BuildRefused(f"the key {path} cannot be read: {error.strerror}") from error
            try:
                key = SigningKey.load(pem, self._phrase() if b"ENCRYPTED" in pem else None)
            except BuildRefused as error:
                raise BuildRefused(f"{path}: {error.message}") from error
            if key.public == public:
                self._loaded[public] = key
                return key
        return None

    def _phrase(self) -> str:
        if self._passphrase is None:
            if self._ask is None:
                raise BuildRefused("the keys are encrypted: give the passphrase that they were made with")
            self._passphrase = self._ask()
            if not self._passphrase:
                raise BuildRefused("an empty passphrase protects nothing; use --unencrypted if that is meant")
        return self._passphrase


def read_public_key(path: Path) -> str:
    """The public key in a ``.pub`` file.

    Raises:
        BuildRefused: it cannot be read, or holds no usable key.
    """
    try:
        public = path.read_text("ascii").strip()
    except (OSError, ValueError) as error:
        raise BuildRefused(f"the public key {path} cannot be read: {error}") from error
    keyid_of(public)
    return public
