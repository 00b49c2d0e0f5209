"""Session and API tokens: 256 random bits each. Only their SHA-256 is stored: what is in the database opens nothing."""

from __future__ import annotations

import hashlib
import hmac
import secrets

TOKEN_PREFIX = "eft_"  # noqa: S105
"""Of accounts' API tokens, so that scanners of secrets find them, and whoever is given one knows what it is."""

KEY_PREFIX = "ebk-"
"""Of keys for the gateway."""


def make_secret() -> str:
    """For a session."""
    return secrets.token_urlsafe(32)


def make_token() -> str:
    """For the API."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def hash_secret(secret: str) -> str:
    """What is stored; no salt is needed for random bits."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def csrf_token(session: str) -> str:
    """What forms of the session must bring along: only pages that were served to it have it."""
    return hmac.new(session.encode("utf-8", "surrogatepass"), b"edge-fleet csrf", hashlib.sha256).hexdigest()


def same(a: str, b: str) -> bool:
    """Compare without saying by time how much is right."""
    return hmac.compare_digest(a.encode("utf-8", "surrogatepass"), b.encode("utf-8", "surrogatepass"))
