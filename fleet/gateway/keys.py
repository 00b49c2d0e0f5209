"""API keys: who holds one is let in, within its quota. Hashes alone are kept, here as in the database."""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import hashlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol

from contract.errors import EdgeBundleError, RequestInvalid
from fleet.access.secrets import KEY_PREFIX, TOKEN_PREFIX
from fleet.gateway.access import Grant
from fleet.gateway.quota import Bucket, Ledger, Limits, Used

log = logging.getLogger("edge_fleet.gateway")

REFRESH_SECONDS = 2.0
"""Until a key that was revoked is refused everywhere, and until processes know what was used at the others."""

FRESH_SECONDS = 0.2
"""An unknown key is looked up again, so that a new one holds at once, but not more often than this."""


def make_key() -> str:
    """A new key: 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    """What is kept of it. Random keys cannot be guessed from a plain hash, as passwords can."""
    return hashlib.sha256(key.encode()).hexdigest()


class Key(Protocol):
    """A row of :mod:`fleet.store.tokens`."""

    @property
    def name(self) -> str: ...
    @property
    def hash(self) -> str: ...
    @property
    def expires_at(self) -> float | None: ...
    @property
    def revoked_at(self) -> float | None: ...
    @property
    def models(self) -> tuple[str, ...]: ...
    @property
    def limits(self) -> Limits: ...


class Store(Protocol):
    """Where keys and their use are kept; methods block."""

    def load(self) -> Mapping[str, Key]:
        """Keys by their hash."""

    def exchange(self, used: Mapping[Bucket, Used], now: float) -> Mapping[Bucket, Used]:
        """Add ``used``; what was used by all in the windows of now."""


class _Grant:
    def __init__(self, ring: KeyRing, key: Key) -> None:
        self._ring = ring
        self._key = key
        self._reserved = 0

    @property
    def owner(self) -> str:
        return self._key.name

    @property
    def headers(self) -> dict[str, str]:
        return self._ring.ledger.headers(self._key.name, self._key.limits, self._ring.clock())

    def may_ask(self, model: str) -> bool:
        return not self._key.models or any(fnmatch.fnmatchcase(model, each) for each in self._key.models)

    def reserve(self, tokens: int) -> None:
        self._reserved = tokens
        self._ring.ledger.reserve(self._key.name, tokens)

    def settle(self, tokens: int) -> None:
        self._ring.ledger.settle(self._key.name, self._reserved, tokens, self._ring.clock())
        self._reserved = 0


class KeyRing:
    """An :class:`fleet.gateway.access.Access`. While the database is away the keys that are known go on."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self.ledger = Ledger()
        self.clock = clock
        self._store = store
        self._keys: Mapping[str, Key] = {}
        self._loaded_at: float | None = None
        self._loading = asyncio.Lock()
        self._trouble = ""

    def warnings(self) -> dict[str, str]:
        """That the database is away."""
        return {"keys": self._trouble} if self._trouble else {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Kept up to date; what was used is written down at the end, too."""
        refreshing = asyncio.create_task(self._refresh())
        try:
            yield
        finally:
            refreshing.cancel()
            await asyncio.gather(refreshing, return_exceptions=True)
            with contextlib.suppress(EdgeBundleError):
                await self._exchange()

    async def _refresh(self) -> None:
        while True:
            try:
                await self._exchange()
                await self._load(newer_than=asyncio.get_running_loop().time())
            except EdgeBundleError as error:
                if not self._trouble:
                    log.warning("%s; keys that are known go on", error.message)
                self._trouble = error.message
            else:
                self._trouble = ""
            await asyncio.sleep(REFRESH_SECONDS)

    async def _exchange(self) -> None:
        taken = self.ledger.take_unsaved()
        try:
            totals = await asyncio.to_thread(self._store.exchange, taken, self.clock())
        except EdgeBundleError:
            self.ledger.put_back(taken)
            raise
        self.ledger.learn(totals, self.clock())

    async def _load(self, newer_than: float) -> None:
        """Know at least what stood in the database at ``newer_than``; many that wait for that wait for one look."""
        async with self._loading:
            now = asyncio.get_running_loop().time
            if self._loaded_at is not None:
                if self._loaded_at >= newer_than:
                    return
                await asyncio.sleep(self._loaded_at + FRESH_SECONDS - now())
            began = now()
            self._keys = await asyncio.to_thread(self._store.load)
            self._loaded_at = began

    async def admit(self, authorization: str | None) -> Grant:
        """Let the request with this header in.

        Raises:
            RequestInvalid: 401, 429. SourceUnavailable, StoreBroken: keys cannot be looked up.
        """
        scheme, _, key = (authorization or "").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise _unauthorized("no API key was given: send `Authorization: Bearer KEY`")
        hashed = hash_key(key)
        found = self._keys.get(hashed)
        if found is None:
            await self._load(newer_than=asyncio.get_running_loop().time())
            found = self._keys.get(hashed)
        now = self.clock()
        if found is None:
            raise _unauthorized(_unknown(key))
        if found.revoked_at is not None:
            raise _unauthorized(f"the API key {found.name} was revoked")
        if found.expires_at is not None and found.expires_at <= now:
            raise _unauthorized(f"the API key {found.name} has expired")
        self.ledger.admit(found.name, found.limits, now)
        return _Grant(self, found)


def _unknown(key: str) -> str:
    if key.startswith(TOKEN_PREFIX):
        return (
            f"this is an account's token for /api/v1; /v1 takes a key ({KEY_PREFIX}…), which asks devices and may do "
            "nothing else: `edge-fleet token create` makes one"
        )
    return "this API key is not known: `edge-fleet token create` makes one"


def _unauthorized(message: str) -> RequestInvalid:
    return RequestInvalid(message, code=401, kind="invalid_api_key")
