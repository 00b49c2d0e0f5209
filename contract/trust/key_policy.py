"""Which keys and signatures count: Ed25519 with honest keys and canonical signatures, each key once.

python-tuf counts signatures by key id, accepts any key type it can verify and leaves malformed signatures to the
library below it. Metadata passes here before python-tuf sees it.
"""

from __future__ import annotations

import re
from typing import Any

from contract.errors import BundleRefused
from contract.reasons import Reason

MAX_KEYS = 64
"""Keys in one root: four roles of at most a dozen people."""

MAX_SIGNATURES = 128
"""Signatures on one document: a root carries those of two generations of keys."""

_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P
_ORDER = 2**252 + 27742317777372353535851937790883648493
_HEX_KEY = re.compile(r"[0-9a-f]{64}")
_HEX_SIGNATURE = re.compile(r"[0-9a-f]{128}")


def _recover_x(y: int) -> int | None:
    """The even root x of the curve equation -x² + y² = 1 + d·x²·y² (RFC 8032, 5.1.3), or None off the curve."""
    square = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if (x * x - square) % _P:
        x = x * pow(2, (_P - 1) // 4, _P) % _P
    if (x * x - square) % _P:
        return None
    return _P - x if x & 1 else x


def _double(x: int, y: int) -> tuple[int, int]:
    product = _D * x * x * y * y % _P
    return (
        2 * x * y * pow(1 + product, -1, _P) % _P,
        (y * y + x * x) * pow(1 - product, -1, _P) % _P,
    )


def check_public_key(public: str) -> None:
    """Refuse what is not the canonical encoding of a point of large order on Curve25519.

    With a public key of small order (at most 8) a signature verifies for many messages, so anyone can make one.

    Raises:
        BundleRefused: KEY_REFUSED.
    """
    if _HEX_KEY.fullmatch(public) is None:
        raise BundleRefused(Reason.KEY_REFUSED, "a public key is not 32 bytes in lower-case hexadecimal")
    encoded = int.from_bytes(bytes.fromhex(public), "little")
    y = encoded & (2**255 - 1)
    x = _recover_x(y) if y < _P else None
    if x is None or (x == 0 and encoded >> 255):
        raise BundleRefused(Reason.KEY_REFUSED, f"the public key {public[:16]}… is not a point on the curve")
    point = (x, y)
    for _ in range(3):
        point = _double(*point)
    if point == (0, 1):
        raise BundleRefused(
            Reason.KEY_REFUSED, f"the public key {public[:16]}… has small order: anyone can sign for it"
        )


def check_signature(signature: object) -> None:
    """Refuse a signature that is not 64 bytes, or whose second half is not below the group order (RFC 8032, 5.1.7).

    Raises:
        BundleRefused: SIGNATURE_INVALID.
    """
    if not isinstance(signature, str) or _HEX_SIGNATURE.fullmatch(signature) is None:
        raise BundleRefused(Reason.SIGNATURE_INVALID, "a signature is not 64 bytes in lower-case hexadecimal")
    if int.from_bytes(bytes.fromhex(signature)[32:], "little") >= _ORDER:
        raise BundleRefused(Reason.SIGNATURE_INVALID, "a signature is not canonical")


def _refuse(what: str, why: str) -> BundleRefused:
    return BundleRefused(Reason.METADATA_INVALID, f"{what} {why}")


def _is_count(value: object) -> bool:
    # bool is an int to Python, and true would pass as 1.
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_metadata(document: Any, what: str, *, delegations: bool = False) -> None:
    """Apply the policy to one parsed metadata document, before any signature is verified.

    Our repositories do not delegate, so devices refuse ``delegations``; a general TUF client allows them.

    Raises:
        BundleRefused: KEY_REFUSED, SIGNATURE_INVALID or METADATA_INVALID.
    """
    if not isinstance(document, dict):
        raise _refuse(what, "is not an object")
    signed, signatures = document.get("signed"), document.get("signatures")
    if not isinstance(signed, dict) or not isinstance(signatures, list) or len(signatures) > MAX_SIGNATURES:
        raise _refuse(what, "has no signed part or no list of signatures")
    if not _is_count(signed.get("version")):
        raise _refuse(what, "has no version number")
    signers = [entry.get("keyid") if isinstance(entry, dict) else None for entry in signatures]
    if not all(isinstance(signer, str) for signer in signers) or len(set(signers)) != len(signers):
        raise _refuse(what, "has a signature without a key, or two of the same key")
    for entry in signatures:
        check_signature(entry.get("sig"))
    if signed.get("_type") == "root":
        _check_root(signed, what)
    if signed.get("delegations") is not None:
        if not delegations or not isinstance(signed["delegations"], dict):
            raise _refuse(what, "delegates to other roles, which is not supported")
        _check_keys(signed["delegations"].get("keys"), what)


def _check_root(signed: dict[str, Any], what: str) -> None:
    _check_keys(signed.get("keys"), what)
    roles = signed.get("roles")
    if not isinstance(roles, dict):
        raise _refuse(what, "has no roles")
    for name, role in roles.items():
        if not isinstance(role, dict) or not _is_count(role.get("threshold")):
            raise _refuse(what, f"has no threshold for {name[:40]}")


def _check_keys(keys: object, what: str) -> None:
    if not isinstance(keys, dict) or len(keys) > MAX_KEYS:
        raise _refuse(what, "has no keys, or too many")
    seen: set[str] = set()
    for key in keys.values():
        value = key.get("keyval") if isinstance(key, dict) else None
        public = value.get("public") if isinstance(value, dict) else None
        if not isinstance(public, str) or key.get("keytype") != "ed25519" or key.get("scheme") != "ed25519":
            raise BundleRefused(Reason.KEY_REFUSED, f"{what} has a key that is not Ed25519")
        check_public_key(public)
        if public in seen:
            raise BundleRefused(Reason.KEY_REFUSED, f"{what} lists the key {public[:16]}… twice: it would count twice")
        seen.add(public)
