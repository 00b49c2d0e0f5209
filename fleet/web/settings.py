"""What the console is told when it starts."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from edge_bundle.broker import BrokerAddress
from fleet.access.roles import Role
from fleet.catalogue import Listed, look_up
from fleet.rollout.spec import Spec
from fleet.store.database import Database


class OidcSettings(Struct, frozen=True, kw_only=True):
    """An OpenID provider. ``roles`` maps values of the claim ``claim`` to our roles; who has none is refused."""

    issuer: str
    title: str
    client_id: str
    client_secret: str
    claim: str = "groups"
    name_claim: str = "preferred_username"
    scope: str = "openid profile email"
    roles: dict[str, Role] = {}


class Settings(Struct, frozen=True, kw_only=True):
    """``url``: what people write in their browsers, None where it is not told; ``encrypted``: TLS ends here;
    ``proxies``: whose X-Forwarded-For is believed; ``depot`` and ``root`` as for rollouts; ``broker`` and
    ``topic_root``: where the playground asks.
    """

    database: Database
    broker: BrokerAddress | None = None
    topic_root: str = "edge/v1"
    url: str | None = None
    encrypted: bool = False
    proxies: frozenset[str] = frozenset()
    depot: str | None = None
    root: Path | None = None
    oidc: OidcSettings | None = None
    clock: Callable[[], float] = time.time

    @property
    def is_https(self) -> bool:
        return self.encrypted or (self.url is not None and self.url.startswith("https://"))

    def look_up(self, spec: Spec) -> Listed | None:
        """The bundle in the repository; None where none is configured.

        Raises:
            BundleRefused: it is not listed, or revoked. SourceUnavailable, UsageError.
        """
        if self.depot is None or self.root is None:
            return None
        return look_up(spec.name, spec.version, depot=self.depot, root=self.root)
