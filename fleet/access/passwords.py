"""Passwords are stored as scrypt hashes (RFC 7914) with a salt of their own."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from base64 import b64decode, b64encode

from contract.errors import RequestInvalid

MIN_LENGTH = 12
"""NIST SP 800-63B asks for 8 at least with a second factor, 15 without; nothing is asked of the kind of characters."""

MAX_BYTES = 1024
"""So that hashing takes no longer for a long one."""

COST, BLOCK, PARALLEL = 2**14, 8, 5
"""OWASP's parameters for 16 MiB."""

_MAXMEM = 64 << 20


def check_password(password: str, name: str) -> None:
    """See that ``password`` is long enough for the account ``name``.

    Raises:
        RequestInvalid: it is not.
    """
    if len(password) < MIN_LENGTH:
        raise RequestInvalid(f"a password has {MIN_LENGTH} characters at least", field="password")
    if len(password.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise RequestInvalid(f"a password has {MAX_BYTES} bytes at most", field="password")
    if name.lower() in password.lower() and len(name) >= MIN_LENGTH // 2:
        raise RequestInvalid("a password does not contain the name of its account", field="password")


def hash_password(password: str) -> str:
    """``scrypt$N$r$p$salt$hash``."""
    salt = secrets.token_bytes(16)
    found = _scrypt(password, salt, COST, BLOCK, PARALLEL)
    return f"scrypt${COST}${BLOCK}${PARALLEL}${b64encode(salt).decode()}${b64encode(found).decode()}"


def _scrypt(password: str, salt: bytes, cost: int, block: int, parallel: int) -> bytes:
    given = password.encode("utf-8", "surrogatepass")[:MAX_BYTES]
    return hashlib.scrypt(given, salt=salt, n=cost, r=block, p=parallel, maxmem=_MAXMEM, dklen=32)


_NONE = f"scrypt${COST}${BLOCK}${PARALLEL}$AAAAAAAAAAAAAAAAAAAAAA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="


def verify_password(password: str, stored: str | None) -> bool:
    """Whether ``password`` is the one of ``stored``; it takes as long where there is none, or a wrong one."""
    _, cost, block, parallel, salt, wanted = (stored or _NONE).split("$")
    found = _scrypt(password, b64decode(salt), int(cost), int(block), int(parallel))
    return hmac.compare_digest(found, b64decode(wanted)) and stored is not None
