"""Keys and their use, as :class:`fleet.gateway.keys.Store` needs them."""

from __future__ import annotations

from collections.abc import Mapping

from fleet.gateway.quota import Bucket, Used, starts
from fleet.store import tokens
from fleet.store.database import Database
from fleet.store.tokens import TokenRow


class KeyStore:
    """In a database. Methods block, and may be called by any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def load(self) -> Mapping[str, TokenRow]:
        """By their hash, those that were revoked, too."""
        with self._database.read() as connection:
            return {row.hash: row for row in tokens.rows(connection)}

    def exchange(self, used: Mapping[Bucket, Used], now: float) -> Mapping[Bucket, Used]:
        """Add ``used``; what was used by all in the windows of ``now``."""
        if not used:
            with self._database.read() as connection:
                return tokens.usage(connection, starts(now))
        with self._database.write() as connection:
            tokens.add_usage(connection, used, now)
            return tokens.usage(connection, starts(now))
