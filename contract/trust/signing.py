"""The publisher's side of TUF: keys, and making, signing and reading the four documents.

Everything works on the documents' bytes, so that partly signed ones can travel between machines. Signatures are over
canonical JSON as TUF has it; what is stored is compact JSON and is never re-serialised once its digest is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from msgspec import Struct
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.metadata import Metadata, MetaFile, Role, Root, Snapshot, TargetFile, Targets, Timestamp

from contract import strict_json
from contract.bundle.layout import ROLES
from contract.errors import BuildRefused, BundleRefused
from contract.reasons import Reason
from contract.trust.key_policy import check_metadata, check_public_key
from contract.trust.targets_index import REVOKED_FIELD, SIGNED_FIELD, TIME_FORMAT, Entry, TargetsIndex

MAX_DOCUMENT_BYTES = 5_000_000


class SigningKey:
    """One Ed25519 private key; ``keyid`` and ``public`` (64 hexadecimal digits) are what others know of it."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self._signer = CryptoSigner(private)

    @classmethod
    def generate(cls) -> SigningKey:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, pem: bytes, passphrase: str | None) -> SigningKey:
        """From PKCS #8 PEM.

        Raises:
            BuildRefused: wrong or missing passphrase, not an Ed25519 key.
        """
        try:
            private = load_pem_private_key(pem, passphrase.encode() if passphrase is not None else None)
        except TypeError as error:
            wanted = "needs a passphrase" if passphrase is None else "is not encrypted, but a passphrase was given"
            raise BuildRefused(f"the key {wanted}") from error
        except ValueError as error:
            raise BuildRefused("the key cannot be read: the passphrase is wrong or the file is damaged") from error
        if not isinstance(private, Ed25519PrivateKey):
            raise BuildRefused("the key is not an Ed25519 key")
        return cls(private)

    def to_pem(self, passphrase: str | None) -> bytes:
        """PKCS #8 PEM, encrypted (PBES2: scrypt or PBKDF2, AES-256-CBC) when a passphrase is given."""
        encryption: KeySerializationEncryption = NoEncryption()
        if passphrase is not None:
            encryption = BestAvailableEncryption(passphrase.encode())
        return self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)

    @property
    def public(self) -> str:
        return self._private.public_key().public_bytes_raw().hex()

    @property
    def keyid(self) -> str:
        return str(self._signer.public_key.keyid)


class RoleKeys(Struct, frozen=True):
    """Who may sign for a role: public keys in hexadecimal, and how many of them must."""

    publics: tuple[str, ...]
    threshold: int


class RoleState(Struct, frozen=True):
    """What one document says of itself, for ``show``."""

    version: int
    expires: datetime
    signed_by: list[str]


def keyid_of(public: str) -> str:
    """The TUF key id of a public key."""
    return str(_public_key(public).keyid)


def _public_key(public: str) -> SSlibKey:
    check_public_key(public)
    return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)))


def _read(data: bytes, what: str) -> Metadata[Any]:
    """Parse a document of ours as strictly as a device does.

    Raises:
        BundleRefused: with the reason.
    """
    check_metadata(strict_json.loads(data, max_bytes=MAX_DOCUMENT_BYTES, what=what), what)
    try:
        return Metadata[Any].from_bytes(data)
    except Exception as error:
        raise BundleRefused(Reason.METADATA_INVALID, f"{what} cannot be read: {error}") from error


def _new(signed: Any) -> bytes:
    return Metadata(signed).to_bytes()


def make_root(roles: Mapping[str, RoleKeys], *, version: int, expires: datetime, signed_at: datetime) -> bytes:
    """An unsigned root that gives ``roles`` their keys.

    Raises:
        BuildRefused: a role without keys, a threshold nobody can meet, a key listed twice for a role.
    """
    keys: dict[str, Any] = {}
    made: dict[str, Role] = {}
    for role in ROLES:
        wanted = roles[role]
        if len(set(wanted.publics)) != len(wanted.publics):
            raise BuildRefused(f"a key is given twice for {role}")
        if not 1 <= wanted.threshold <= len(wanted.publics):
            raise BuildRefused(f"{role} has {len(wanted.publics)} keys, so {wanted.threshold} cannot be required")
        listed = [_public_key(public) for public in wanted.publics]
        keys |= {key.keyid: key for key in listed}
        made[role] = Role([key.keyid for key in listed], wanted.threshold)
    fields = {SIGNED_FIELD: signed_at.strftime(TIME_FORMAT)}
    return _new(Root(version, None, expires, keys, made, True, fields))


def make_targets(
    bundles: Mapping[str, Entry], revoked: Iterable[str], *, version: int, expires: datetime, signed_at: datetime
) -> bytes:
    """Unsigned targets that list ``bundles`` (by TUF target path) and ``revoked`` NAME@VERSIONs."""
    files = {path: TargetFile(entry.size, {"sha256": entry.digest}, path) for path, entry in sorted(bundles.items())}
    fields = {SIGNED_FIELD: signed_at.strftime(TIME_FORMAT), REVOKED_FIELD: sorted(revoked)}
    return _new(Targets(version, None, expires, files, None, fields))


def make_snapshot(targets: bytes, *, version: int, expires: datetime) -> bytes:
    """An unsigned snapshot of ``targets``."""
    meta = MetaFile.from_data(_read(targets, "targets").signed.version, targets, ["sha256"])
    return _new(Snapshot(version, None, expires, {"targets.json": meta}))


def make_timestamp(snapshot: bytes, *, version: int, expires: datetime) -> bytes:
    """An unsigned timestamp of ``snapshot``."""
    meta = MetaFile.from_data(_read(snapshot, "snapshot").signed.version, snapshot, ["sha256"])
    return _new(Timestamp(version, None, expires, meta))


def sign(document: bytes, keys: Iterable[SigningKey]) -> bytes:
    """``document`` with the signatures of ``keys`` added; the same bytes when they were all there already."""
    metadata = _read(document, "the document to sign")
    missing = [key for key in keys if key.keyid not in metadata.signatures]
    for key in missing:
        metadata.sign(key._signer, append=True)
    return metadata.to_bytes() if missing else document


def missing_signatures(document: bytes, role: str, root: bytes) -> int:
    """How many more valid signatures ``root`` requires on ``document``; 0 when it is fully signed."""
    metadata = _read(document, role)
    result = _read(root, "root").signed.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    return int(result.missing)


def role_keys(root: bytes) -> dict[str, RoleKeys]:
    """The keys of every role in ``root``."""
    signed = _read(root, "root").signed
    return {
        name: RoleKeys(tuple(signed.keys[keyid].keyval["public"] for keyid in role.keyids), role.threshold)
        for name, role in signed.roles.items()
    }


def state_of(document: bytes, what: str) -> RoleState:
    """Version, expiry and signers of a document, without verifying it."""
    metadata = _read(document, what)
    return RoleState(metadata.signed.version, metadata.signed.expires, sorted(metadata.signatures))


def referenced(document: bytes, what: str) -> int:
    """The version of the snapshot that a timestamp names, or of the targets that a snapshot names."""
    signed = _read(document, what).signed
    if isinstance(signed, Timestamp):
        return int(signed.snapshot_meta.version)
    return int(signed.meta["targets.json"].version)


def listing_of(targets: bytes) -> TargetsIndex:
    """What our own targets document lists."""
    return TargetsIndex(_read(targets, "targets").signed)
